"""The device's memory ran out: in which phase, what the plan says of it, and what to lower.

out of memory in the ppo rollout: it needs 12.6 GiB by the plan and the card has 24.0; lower
ppo.local_rollout_forward_batch_size=32, ppo.response_length=128 or model.max_length=1024
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from rlrecipes.before.needs import fullest, moments
from rlrecipes.before.parts import GIB
from rlrecipes.before.shape import read_shape
from rlrecipes.errors import UserError
from rlrecipes.profile import Profile
from rlrecipes.run.stages import phases


def halved(profile: Profile, phase: str) -> tuple[Profile, dict[str, tuple[int, int]]] | None:
    """The profile with half the phase's micro-batch at an equal batch, and what changed, `{"sft.…": (8, 4)}`.

    None where it cannot be halved.
    """
    table, key = phases()[phase].batch.split(".")
    settings = getattr(profile, table)
    size = _value(profile, phases()[phase].batch)
    changes = {key: size // 2}
    if key == "per_device_train_batch_size":
        if size % 2:
            return None
        for parts in ("gradient_accumulation_steps", "steps_per_generation"):
            if getattr(settings, parts, None) is not None:
                changes[parts] = 2 * getattr(settings, parts)
    if size < 2:
        return None
    difference = {f"{table}.{name}": (getattr(settings, name), value) for name, value in changes.items()}
    return dataclasses.replace(profile, **{table: dataclasses.replace(settings, **changes)}), difference


def out_of_memory(profile: Profile, phase: str, learned: bool) -> UserError:
    """The error: the phase, the plan's need beside the card's memory, and the settings to lower."""
    table, _, key = (batch := phases()[phase].batch).partition(".")
    lower = [f"{name}={_value(profile, name)}" for name in (batch, *phases()[phase].lower)]
    if key == "per_device_train_batch_size" and not _value(profile, f"{table}.gradient_checkpointing"):
        lower.append(f"set {table}.gradient_checkpointing=true")
    *others, last = lower
    return UserError(
        f"out of memory in the phase '{phase}'{_plan(profile, phase, learned)}; lower {', '.join(others)} or {last}"
    )


def _plan(profile: Profile, phase: str, learned: bool) -> str:
    """The need by the plan, where the plan can read the model's configuration."""
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        needs = moments(read_shape(profile, learned), profile, device=device, learned=learned)[phase]
    except UserError:
        return ""
    need = fullest(needs).total / GIB
    return f", which needs {need:.1f} GiB by the plan{_card()}"


def _card() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    return f" where the card has {total / GIB:.1f} GiB ({free / GIB:.1f} free)"


def _value(profile: Profile, name: str) -> Any:
    """A setting's value; no more rows are sampled together than a batch has, whatever the setting says."""
    table, key = name.split(".")
    settings = getattr(profile, table)
    value = getattr(settings, key)
    return min(value, settings.batch) if key == "local_rollout_forward_batch_size" else value
