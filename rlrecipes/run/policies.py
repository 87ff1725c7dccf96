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

from rlrecipes.errors import UserError
from rlrecipes.recipe import unknown
from rlrecipes.run.folder import Run, read_json
from rlrecipes.run.stages import POLICIES, Policy, models

ADAPTER = "adapter_config.json"
CHECKPOINT = "config.json"


def chosen(setting: str, run: Run) -> dict[str, Policy]:
    """The policies that `evaluate.policies` names, in the table's order, others before the last; all of the table for `all`.

    Raises:
        UserError: there is no such policy, and no such folder.
    """
    names = list(POLICIES) if setting == "all" else [name for name in re.split(r"[,\s]+", setting) if name]
    own = [name for name in POLICIES if name in names]
    others = dict.fromkeys(name for name in names if name not in POLICIES)
    found = {name: _elsewhere(name, f"elsewhere{i}", run) for i, name in enumerate(others)}
    table = {name: POLICIES[name] for name in own}
    return {**{name: table[name] for name in own[:-1]}, **found, **{name: table[name] for name in own[-1:]}}


def kinds(policies: Mapping[str, Policy]) -> dict[str, list[str]]:
    """The kinds of answers that each policy has to give, those of which others take the best included."""
    wanted = {name: ["greedy", "sampled"] for name, policy in policies.items() if not policy.best_of}
    for policy in policies.values():
        if policy.best_of:
            given = wanted.setdefault(str(policy.over), [])
            given += [kind for kind in map(str, range(1, policy.best_of + 1)) if kind not in given]
    return wanted


def check_shared(policies: dict[str, Policy], base: str) -> None:
    """Refuses adapters from elsewhere that cannot stand on `base`.

    Raises:
        UserError: the sentence names the adapter and what it stands on.
    """
    for name, policy in policies.items():
        if not (policy.place and policy.role):
            continue
        config = read_json(Path(policy.place) / ADAPTER)
        own, task = str(config.get("base_model_name_or_path")), config.get("task_type")
        if task not in (None, "CAUSAL_LM"):
            raise UserError(f"evaluate.policies: {name} is no policy: its adapter was trained for {task}; leave it out")
        if config.get("peft_type") != "LORA" or config.get("modules_to_save"):
            raise UserError(
                f"evaluate.policies: {name} is more than a LoRA adapter; export it merged, and give that folder"
            )
        if _real(own) != _real(base):
            raise UserError(
                f"evaluate.policies: {name} stands on '{own}', and this run on '{base}'; export it merged, and give that "
                "folder"
            )


def _elsewhere(name: str, role: str, run: Run) -> Policy:
    folder = Path(os.path.expanduser(name))
    stages = [policy.stage for policy in reversed(models().values()) if policy.stage]
    places = [folder, *(folder / part / stage / "adapter" for part in ("", run.recipe) for stage in stages)]
    for place in places:
        if (place / ADAPTER).is_file():
            return Policy(name, role=role, over="sft", place=str(place))
    if (folder / CHECKPOINT).is_file():
        return Policy(name, over="sft", place=str(folder))
    if folder.is_dir():
        raise UserError(
            f"evaluate.policies: {name} holds no {ADAPTER}, no {CHECKPOINT} and no finished run of {run.recipe}; give a "
            "folder that does"
        )
    known = f"there are {', '.join(POLICIES)}, and no folder of this name"
    raise UserError(f"evaluate.policies: {unknown('policy', name, list(POLICIES), known)}")


def _real(name: str) -> str:
    path = Path(os.path.expanduser(name))
    return str(path.resolve()) if path.is_dir() else name
