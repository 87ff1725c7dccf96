"""One attempt at a stage, or two: it fills the stage's draft, and where memory runs out begins once more with less."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from transformers import set_seed

from rlrecipes.before.out_of_memory import halved, out_of_memory
from rlrecipes.job import Job
from rlrecipes.profile import Profile
from rlrecipes.run.circumstances import git_commit, machine, versions
from rlrecipes.run.console import say
from rlrecipes.run.determinism import orders_told
from rlrecipes.run.out_of_memory import OutOfMemoryError, phase, release
from rlrecipes.run.resume import check_weights
from rlrecipes.run.stages import STAGES
from rlrecipes.run.tracking import tracked

SUMMARY = ("metrics", "members", "comparisons", "examples", "kept", "stopped", "objective", "ceiling", "calibration")
"""What W&B's summary has of a stage's record; values keep their intervals."""


def make_stage(job: Job, model_name: str, stage: str, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a stage in its draft and returns its record; `halve_on_oom` gives it one more attempt with half the micro-batch.

    `conditions` are all that decide its bytes: a draft that was begun under others is begun anew.

    Raises:
        UserError: memory ran out; the sentence says in which phase, and what to lower. Or something adds in no fixed order.
    """
    try:
        return _made(job, model_name, stage, conditions)
    finally:
        release()  # whatever comes next loads its own


def _made(job: Job, model_name: str, stage: str, conditions: Mapping[str, Any]) -> dict[str, Any]:
    learned = bool(job.recipe.reward.learned)
    try:
        return _attempt(job, job.profile, model_name, stage, conditions)
    except OutOfMemoryError as error:
        at = error.phase
    release()  # here, since the error holds tensors up to the end of its block
    smaller = halved(job.profile, at) if job.profile.memory.halve_on_oom else None
    if smaller is None:
        raise out_of_memory(job.profile, at, learned)
    profile, changes = smaller
    settings = ", ".join(f"{name}={now} instead of {before}" for name, (before, now) in changes.items())
    say(f"  out of memory in the phase '{at}'; once more with {settings} (memory.halve_on_oom)")
    try:
        return {**_attempt(job, profile, model_name, stage, conditions), "halved": changes}
    except OutOfMemoryError as error:
        at = error.phase
    raise out_of_memory(profile, at, learned)


def _attempt(job: Job, profile: Profile, model_name: str, stage: str, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a stage once under `profile`, which may be smaller than the job's; the record has the job's settings."""
    module = importlib.import_module(f"rlrecipes.stages.{stage}")
    draft = job.run.open(stage, conditions)
    set_seed(job.seed)  # adapters draw their weights before a trainer sets it; a stage then depends on none before it
    with (
        tracked(job.run, profile.track, stage, draft, _described(job, stage)) as tracker,
        phase([stage, *STAGES[stage].phases][-1]),
        orders_told(),
    ):
        record: dict[str, Any] = module.run(dataclasses.replace(job, profile=profile), model_name, draft, tracker)
        check_weights(stage, draft)
        if profile.track.artifacts:
            tracker.artifact(job.run, stage, draft)
        tracker.summary({key: record[key] for key in SUMMARY if record.get(key) is not None})
        return {"warnings": [], **record, "wandb": tracker.link}


def _described(job: Job, stage: str) -> dict[str, Any]:
    """What W&B lists of a stage: its settings, seed and data, and how it came about."""
    return {
        **job.settings(stage),
        "recipe": job.recipe.name,
        "profile": job.profile.name,
        "git_commit": git_commit(),
        "versions": versions(),
        "machine": machine(),
    }
