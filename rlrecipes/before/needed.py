"""Which stages a job needs, and which of its algorithms are not run on its reward model."""

from __future__ import annotations

from rlrecipes.job import Job
from rlrecipes.profile import ALGORITHMS
from rlrecipes.reward.judge import missing
from rlrecipes.reward.strength import withheld
from rlrecipes.run.console import say
from rlrecipes.run.stages import STAGES


def needed(job: Job, stage: str) -> bool:
    """Whether the job needs a stage."""
    return unneeded(job, stage) is None


def unneeded(job: Job, stage: str) -> str | None:
    """Why the job does without a stage, in a sentence without its stop; None where it needs it."""
    if STAGES[stage].for_learned_reward and not job.recipe.reward.learned:
        return "terms.learned is 0, so there is no reward model to train"
    if stage == "sft" and job.start is None:
        return "run.start=base begins at the model as it is"
    if not job.has(stage):
        return f"run.algorithms={job.profile.run.algorithms} leaves it out"
    return missing(job) if stage == "judge" else None


def required(job: Job, stage: str) -> bool:
    """Whether what stands on a stage cannot do without it: of the algorithms one is enough."""
    finished = STAGES[stage].algorithm and any(job.run.done(name) for name in ALGORITHMS)
    return needed(job, stage) and (not finished or job.run.done(stage) is not None)


def withheld_aloud(job: Job, stage: str) -> bool:
    """Whether a stage is an algorithm that is not run on this reward model, which the console then says."""
    reason = withheld(job, stage) if STAGES[stage].algorithm else None
    if reason is not None:
        say(f"{job.recipe.name} · {stage}: not run: {reason}")
    return reason is not None


def is_withheld(job: Job, stage: str) -> bool:
    return STAGES[stage].algorithm and withheld(job, stage) is not None
