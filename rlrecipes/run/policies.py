"""The policies that an evaluation compares: those of the table, and others that lie in folders.

    chosen("base ppo runs/other", run) -> {"base": …, "runs/other": Policy(place="runs/other/…/adapter"), "ppo": …}

A folder is another run (its last policy), an adapter, such as an export or `runs/other/translation/sft/adapter`, or a whole
model. An adapter has to stand on the run's own base, and becomes one more adapter of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError, option
from rlrecipes.recipe import unknown
from rlrecipes.run.checksums import MANIFEST
from rlrecipes.run.folder import Run, read_json
from rlrecipes.run.stages import POLICIES, Policy, models, policies

ADAPTER = "adapter_config.json"
CHECKPOINT = "config.json"


def chosen(setting: str, run: Run, start: str = "sft") -> dict[str, Policy]:
    """The policies that `evaluate.policies` names, in the table's order, others before the last; all of the table for `all`.

    `start` is where the run's training begins (`run.start`).

    Raises:
        UserError: there is no such policy, and no such folder.
    """
    table = policies(start)
    names = list(table) if setting == "all" else [name for name in re.split(r"[,\s]+", setting) if name]
    own = [name for name in table if name in names]
    others = dict.fromkeys(name for name in names if name not in table)
    if "sft" in others and start == "base":
        raise UserError("evaluate.policies names sft, and run.start=base does without SFT; leave it out")
    over = "base" if start == "base" else "sft"
    found = {name: _elsewhere(name, f"elsewhere{i}", over, run) for i, name in enumerate(others)}
    return {**{name: table[name] for name in own[:-1]}, **found, **{name: table[name] for name in own[-1:]}}


def kinds(named: Mapping[str, Policy], pass_at: int = 0) -> dict[str, list[str]]:
    """The kinds of answers that each policy has to give, those of which others take the best included.

    For pass@k each gives `pass_at` answers, called `1`, `2`, … as those are.
    """
    drawn = [str(draw) for draw in range(1, pass_at + 1)]
    wanted = {name: ["greedy", "sampled", *drawn] for name, policy in named.items() if not policy.best_of}
    for policy in named.values():
        if policy.best_of:
            given = wanted.setdefault(str(policy.over), [])
            given += [kind for kind in map(str, range(1, policy.best_of + 1)) if kind not in given]
    return wanted


def check_shared(named: dict[str, Policy], base: str) -> None:
    """Refuses adapters from elsewhere that cannot stand on `base`.

    Raises:
        UserError: the sentence names the adapter and what it stands on.
    """
    for name, policy in named.items():
        if policy.place and policy.role:
            check_adapter(
                f"evaluate.policies: {name}", Path(policy.place), base, "export it merged, and give that folder"
            )


def check_adapter(what: str, place: Path, base: str, instead: str) -> None:
    """Refuses an adapter that cannot stand on `base` as a policy; `what` names it, and `instead` says what to do.

    Raises:
        UserError: the sentence says what it is, or stands on.
    """
    config = read_json(place / ADAPTER)
    own, task = str(config.get("base_model_name_or_path")), config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise UserError(f"{what} is no policy: its adapter was trained for {task}; leave it out")
    if config.get("peft_type") != "LORA" or _beyond_lora(config):
        raise UserError(f"{what} is more than a LoRA adapter; {instead}")
    if _real(own) != _real(base) and not _is_copy(place.parent / own, Path(base)):
        raise UserError(f"{what} stands on '{own}', and this run on '{base}'; {instead}")


def _beyond_lora(config: Mapping[str, Any]) -> bool:
    """Whether an adapter's configuration says that it changes more than `lora_A` and `lora_B` tell, or computes otherwise.

    PiSSA and its like begin from a base that they have changed, which would be another for all roles.
    """
    more = ("modules_to_save", "use_dora", "alora_invocation_tokens", "trainable_token_indices", "layer_replication")
    begun = str(config.get("init_lora_weights")).lower().startswith(("pissa", "olora", "corda", "loftq"))
    return any(config.get(key) for key in more) or config.get("bias", "none") != "none" or begun


def _elsewhere(name: str, role: str, over: str, run: Run) -> Policy:
    folder = Path(os.path.expanduser(name))
    if place := _adapter_in(folder, run):
        return Policy(name, role=role, over=over, place=str(place))
    if (folder / CHECKPOINT).is_file():
        return Policy(name, over=over, place=str(folder))
    if folder.is_dir():
        raise UserError(
            f"evaluate.policies: {name} holds no {ADAPTER}, no {CHECKPOINT} and no finished run of {run.recipe}; give a "
            "folder that does"
        )
    known = f"there are {', '.join(POLICIES)}, and no folder of this name"
    raise UserError(f"evaluate.policies: {unknown('policy', name, list(POLICIES), known)}")


def find_start(setting: str, run: Run) -> Path:
    """The adapter that `run.start` names: a folder with one, or a run, whose last policy it is.

    Raises:
        UserError: there is none, or it is this run's own.
    """
    folder = Path(setting)
    place = _adapter_in(folder, run)
    if place is None:
        known = f"say sft, base, or give a folder with an {ADAPTER}"
        there = f"the folder {setting} holds no {ADAPTER} and no finished run of {run.recipe}; {known}"
        raise UserError(
            f"run.start: {there if folder.is_dir() else unknown('folder', setting, ['sft', 'base'], known)}"
        )
    if place.resolve().is_relative_to(run.folder.resolve()):
        raise UserError(f"run.start={setting} is in this run, {run.folder}, itself; name another run ({option('run')})")
    return place


def _adapter_in(folder: Path, run: Run) -> Path | None:
    """The adapter in a folder, which may be an export's or a run's; of a run, that of the last policy."""
    stages = [policy.stage for policy in reversed(models().values()) if policy.stage]
    of_run = (folder / part / stage / "adapter" for part in ("", run.recipe) for stage in stages)
    places = [folder, folder / "adapter", *of_run]
    return next((place for place in places if (place / ADAPTER).is_file()), None)


def _is_copy(place: Path, base: Path) -> bool:
    """Whether the base that lies beside an exported adapter is `base`, by the checksums of the embedded one's files."""
    manifests = [folder / MANIFEST for folder in (place, base)]
    return all(path.is_file() for path in manifests) and manifests[0].read_bytes() == manifests[1].read_bytes()


def _real(name: str) -> str:
    path = Path(os.path.expanduser(name))
    return str(path.resolve()) if path.is_dir() else name
