"""Whether a reward model is worth climbing: no algorithm is run on one that is not shown to beat guessing or answers' length.

the reward model's held-out accuracy 0.560 [0.480, 0.640] is not shown to be above the 0.530 that preferring …
"""

from __future__ import annotations

from rlrecipes.job import Job
from rlrecipes.profile import algorithms
from rlrecipes.run.stages import STAGES
from rlrecipes.text import interval, number

WAYS_OUT = "bring more comparisons, a better base or other terms, or say {}.anyway=true"


def too_weak(job: Job, algorithm: str) -> str | None:
    """Why an algorithm is not run on the reward model of a job, in a sentence without its stop; None where it is, or where it
    climbs none.

    The lower end of the interval has to lie above the better of two judges that read nothing: chance, and the longer
    answer; of a rank correlation with ratings, above 0. Nothing is asked where there is no reward model yet, none in the
    reward, or no held-out row that it was measured on.

    Raises:
        UserError: the record of the reward stage is damaged.
    """
    if not STAGES[algorithm].climbs or getattr(job.profile, algorithm).anyway or not job.recipe.reward.learned:
        return None
    record = job.run.done("reward") or {}
    metrics = record.get("metrics", {})
    if "spearman" in metrics and (record.get("objective") == "regression" or "accuracy" not in metrics):
        measure, name, bar, by = metrics["spearman"], "rank correlation", 0.0, "guessing has"
    elif "accuracy" in metrics:
        measure, name, longer = metrics["accuracy"], "accuracy", metrics["longer_wins"]["value"]
        bar, by = (longer, "preferring the longer answer has") if longer > 0.5 else (0.5, "guessing has")
    else:
        return None
    if measure["low"] > bar:
        return None
    found = " ".join(interval(measure))
    rows = WAYS_OUT.format(algorithm)
    if name != "accuracy":
        rows = rows.replace("comparisons", "ratings")
    if bar > 0.5:
        rows = rows.replace("comparisons", "comparisons, also such that the shorter answer wins", 1)
    return f"the reward model's held-out {name} {found} is not shown to be above the {number(bar)} that {by}; {rows}"


def withheld(job: Job, algorithm: str) -> str | None:
    """Like `too_weak`; None where the algorithm is finished all the same."""
    return too_weak(job, algorithm) if job.run.done(algorithm) is None else None


def any_withheld(job: Job) -> str | None:
    """Why the first of a job's algorithms that is not run on its reward model is not, likewise."""
    return next((why for name in all_withheld(job) if (why := withheld(job, name))), None)


def all_withheld(job: Job) -> list[str]:
    """The names of those of a job's algorithms that are not run on its reward model."""
    return [name for name in algorithms(job.profile) if withheld(job, name)]
