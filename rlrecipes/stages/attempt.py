"""One attempt at a stage, or two: it fills the stage's draft, and where memory runs out begins once more with less.

Of several processes the first makes the stage, and calls the others, who follow.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import set_seed

from rlrecipes.before.out_of_memory import halved, out_of_memory
from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.profile import Profile
from rlrecipes.run.circumstances import git_commit, machine, versions
from rlrecipes.run.console import quiet, say
from rlrecipes.run.determinism import orders_told, repeatable
from rlrecipes.run.folder import differences
from rlrecipes.run.gpu import use_one_gpu
from rlrecipes.run.out_of_memory import OutOfMemoryError, phase, release
from rlrecipes.run.processes import from_first, rank, several, together, world
from rlrecipes.run.resume import check_weights
from rlrecipes.run.stages import STAGES
from rlrecipes.run.tracking import Tracker, tracked

SUMMARY = ("metrics", "members", "comparisons", "examples", "kept", "stopped", "objective", "ceiling", "calibration")
"""What W&B's summary has of a stage's record; values keep their intervals."""


@dataclasses.dataclass(frozen=True)
class _Call:
    """What the first process tells the others of a stage."""

    stage: str
    model_name: str
    profile: Profile
    settings: Mapping[str, Any]


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
        smaller = dataclasses.replace(job, profile=profile)
        with _called(smaller, model_name, stage):
            record: dict[str, Any] = module.run(smaller, model_name, draft, tracker)
        check_weights(stage, draft)
        if profile.track.artifacts:
            tracker.artifact(job.run, stage, draft)
        tracker.summary({key: record[key] for key in SUMMARY if record.get(key) is not None})
        return {"warnings": [], **record, "wandb": tracker.link}


@contextmanager
def _called(job: Job, model_name: str, stage: str) -> Iterator[None]:
    """Inside, the other processes take part in a stage."""
    if stage == "report" or several() == 1:
        yield
        return
    with together():
        from_first(lambda: _Call(stage, model_name, job.profile, job.settings(stage)))
        yield


def follow(job: Job) -> None:
    """Takes part in every stage that the first process calls, until it calls none. It leaves nothing on the disk.

    Raises:
        UserError: as the stage, or this process reads other data or settings than the first.
    """
    with together():
        while (call := from_first(_nothing)) is not None:
            use_one_gpu(call.profile.model.device)
            quiet()
            with repeatable(call.profile.run.deterministic):
                _take_part(dataclasses.replace(job, profile=call.profile), call)


def _nothing() -> _Call | None:
    return None


def _take_part(job: Job, call: _Call) -> None:
    if differ := differences(call.settings, job.settings(call.stage)):
        raise UserError(
            f"process {rank()} of {world()} reads something else than the first: {differ}; give all the same files"
        )
    module = importlib.import_module(f"rlrecipes.stages.{call.stage}")
    with TemporaryDirectory(prefix="rlrecipes-") as folder:
        set_seed(job.seed)
        try:
            with phase([call.stage, *STAGES[call.stage].phases][-1]), orders_told():
                module.run(job, call.model_name, Path(folder), Tracker(Path(folder)))
        except OutOfMemoryError as error:
            raise out_of_memory(job.profile, error.phase, bool(job.recipe.reward.learned)) from None
        finally:
            release()


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
