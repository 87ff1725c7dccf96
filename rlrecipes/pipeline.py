"""Runs a recipe's stages in order, each into its own folder, none twice.

The libraries are imported only when a stage really has to run: seeing that all is done takes no ten seconds.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

from rlrecipes.console import quiet, say
from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.run import STAGES, Stopwatch, git_commit
from rlrecipes.versions import require_trl, versions


def run_stages(job: Job, stages: Sequence[str], force: bool = False) -> None:
    """Runs `stages` of a job, leaving out those that are finished under the same settings.

    Raises:
        UserError: a stage cannot run, or was finished under other settings and `force` is not set.
    """
    if not any(needed(job, stage) for stage in stages):
        raise UserError("terms.learned is 0, so there is no reward model to train; give it a weight or go on with ppo")
    for below in STAGES[: STAGES.index(stages[0])]:
        if needed(job, below) and below != "report":
            job.run.need(below)
            job.run.is_finished(below, job.settings(below))
    pending = [stage for stage in stages if needed(job, stage) and (force or not _finished(job, stage))]
    for note in job.data.notes if pending else ():
        say(f"{job.recipe.name}: {note}")
    for reason, count in job.data.dropped.items() if pending else ():
        say(f"{job.recipe.name}: {count} rows left out: {reason}")
    if not pending:
        return
    require_trl()
    quiet()
    from rlrecipes.tracking import sync_command

    name = _base(job)
    for stage in pending:
        _run_stage(job, name, stage)
        if force:  # what stood on the old stage no longer stands on anything
            job.run.forget_above(stage)
    if command := sync_command(job):
        say(f"  tracked offline; upload with: {command}")


def needed(job: Job, stage: str) -> bool:
    """A reward of programmatic terms alone needs no reward model."""
    return stage != "reward" or bool(job.recipe.reward.learned)


def _finished(job: Job, stage: str) -> bool:
    finished = job.run.is_finished(stage, job.settings(stage))
    if finished:
        say(f"{job.recipe.name} · {stage}: done already, in {job.run.stage(stage)}")
    return finished


def _base(job: Job) -> str:
    from rlrecipes.base import embedded_base
    from rlrecipes.models import check_model, eos_note

    if job.profile.model.name == "builtin":
        return str(embedded_base(job.profile.base, job.run.root))
    check_model(job.profile.model.name)
    if note := eos_note(job.profile.model.name):
        say(f"{job.recipe.name}: {note}")
    return job.profile.model.name


def _run_stage(job: Job, model_name: str, stage: str) -> None:
    from transformers import set_seed

    from rlrecipes.tracking import tracked

    module = importlib.import_module(f"rlrecipes.stages.{stage}")
    say(f"{job.recipe.name} · {stage}")
    stopwatch = Stopwatch()
    draft = job.run.open(stage)
    settings = job.settings(stage)
    set_seed(job.seed)  # adapters are drawn before a trainer sets it, and a stage alone gives what it gives in a row
    try:
        with tracked(job, stage, draft, settings) as tracker:
            record: dict[str, Any] = module.run(job, model_name, draft, tracker)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    job.run.close(
        stage,
        draft,
        {
            **record,
            "settings": settings,
            "seed": job.seed,
            "data": job.described_data(),
            "versions": versions(),
            "git_commit": git_commit(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": stopwatch.seconds(),
            "peak_memory_mb": stopwatch.peak_memory_mb(),
        },
    )
    say(f"  {stopwatch.seconds():.0f} s, peak {stopwatch.peak_memory_mb()} MB → {job.run.stage(stage)}")
