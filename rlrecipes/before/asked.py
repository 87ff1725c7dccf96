"""The settings that a command line or a call from Python asks for: the profile that it means, and what it changes in it.

asked_profile(None, ["sft.max_steps=50", "terms.chrf=2"], "Qwen/Qwen2.5-0.5B")    -> Profile("own", …), ["terms.chrf=2"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlrecipes.before.fit import PROFILE as OWN
from rlrecipes.before.fit import fit
from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.profile import (
    ALGORITHMS,
    Profile,
    RunSettings,
    algorithms,
    check_once,
    functions_joined,
    make_profile,
    named_algorithms,
    outweighed,
    read_tables,
)
from rlrecipes.recipe import Reward
from rlrecipes.run.console import say
from rlrecipes.run.settings import NAME, Settings

PROFILE = "tiny"
"""The profile where none is named, but for a model of one's own."""


def usual_profile(named: str | None, model: str | None) -> str:
    """The profile that is named, or else the one for the model."""
    return named or (OWN if model not in (None, "builtin") else PROFILE)


def asked_profile(
    named: str | None,
    overrides: Sequence[str],
    model: str | None,
    own: Settings | None = None,
    stages: Sequence[str] = (),
) -> tuple[Profile, list[str]]:
    """The profile with the overrides, and the overrides of reward weights, which belong to the recipe.

    `own` are the settings that a run has kept, which take the profile's place. Algorithms among the `stages` that are asked
    for by name are the run's from then on.

    Raises:
        UserError: for anything wrong in them.
    """
    overrides = functions_joined(overrides)
    check_once(overrides)
    weights = [s for s in overrides if s.startswith("terms.")]
    others = [s for s in overrides if s not in weights]
    name, tables = (own.profile, own.tables) if own else (usual_profile(named, model), {})
    origin = NAME if own else f"profile '{name}'"
    tables = tables or read_tables(name)
    others = _with_algorithms(tables, others, stages)
    profile = make_profile(tables, name, others, model, origin)
    for table in outweighed(tables, others):
        steps, epochs = getattr(profile, table).max_steps, tables[table]["num_train_epochs"]
        say(f"{table}.max_steps={steps} takes the place of {table}.num_train_epochs={epochs} in {origin}")
    return profile, weights


def with_algorithms(profile: Profile, stages: Sequence[str]) -> Profile:
    """A profile that was put together in Python, with the algorithms among the stages that are asked for by name."""
    asked = [stage for stage in stages if stage in ALGORITHMS and stage not in algorithms(profile)]
    if not asked:
        return profile
    names = ",".join(named_algorithms(" ".join([*algorithms(profile), *asked])))
    return replace(profile, run=replace(profile.run, algorithms=names))


def _with_algorithms(tables: Mapping[str, Any], overrides: Sequence[str], stages: Sequence[str]) -> list[str]:
    """The overrides, of which `run.algorithms` names the algorithms among the stages too."""
    asked = [stage for stage in stages if stage in ALGORITHMS]
    if not asked:
        return [*overrides]
    key = "run.algorithms="
    said = [override.removeprefix(key) for override in overrides if override.startswith(key)]
    names = [*(said or [tables.get("run", {}).get("algorithms", RunSettings.algorithms)]), *asked]
    others = [override for override in overrides if not override.startswith(key)]
    return [*others, f"{key}{','.join(named_algorithms(' '.join(names)))}"]


def refuse_unlearned(overrides: Sequence[str], reward: Reward) -> None:
    """Refuses overrides that only a learned reward reads, where `terms.learned=0` stands beside them; `reward.model` always.

    Raises:
        UserError: the sentence names the override.
    """
    if reward.learned:
        return
    said = any(s.startswith("terms.learned=") for s in overrides)
    overrides = [setting for setting in overrides if not setting.startswith("reward.function=")]
    idle = ("reward.", *(f"{name}.anyway=" for name in ALGORITHMS)) if said else ("reward.model=",)
    for setting in overrides:
        if setting.startswith(idle):
            raise UserError(f"{setting} has no effect while terms.learned is 0; give that a weight or leave it out")


def fitted(job: Job, named: str | None, overrides: Sequence[str]) -> Job:
    """The job, under settings that fit it where no profile is named for a model of one's own (`fit`).

    Raises:
        UserError: an override contradicts them.
    """
    if named is not None or job.profile.name != OWN:
        return job
    return fit(job, [override for override in overrides if not override.startswith("terms.")])
