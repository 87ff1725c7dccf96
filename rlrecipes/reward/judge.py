"""The judge of evaluation: a second reward model, which PPO never climbs, from preferences that the first never saw.

    250 held-out comparisons train it, the 250 others measure it: accuracy 0.81 [0.76, 0.86]

A policy that found a fault of its reward model scores well with that model, and not with one that learned from other
preferences (Gao et al. 2022, arXiv 2210.10760; Coste et al. 2023, arXiv 2310.02743). The two share the base, so they may
share its blind spots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rlrecipes.data.split import halves
from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.profile import find_function
from rlrecipes.recipe import Example, Split, TermFunction
from rlrecipes.reward.terms import score_each
from rlrecipes.text import shortened

FEWEST = 100
"""Comparisons or ratings in either half. Of fewer than 100, the interval of an accuracy of 0.6 reaches down to guessing."""

SEED = 1000
"""Added to the run's seed, so that the judge draws another head and another order of its rows."""


def judge_job(job: Job) -> Job:
    """The job of training the judge: one half of the held-out comparisons or ratings trains it, the other measures it."""
    train, held_out = (
        Split(comparisons=comparisons, ratings=ratings)
        for comparisons, ratings in zip(
            halves(job.data.held_out.comparisons), halves(job.data.held_out.ratings), strict=True
        )
    )
    data = dataclasses.replace(
        job.data, train=dataclasses.replace(train, demonstrations=job.data.train.demonstrations), held_out=held_out
    )
    reward = dataclasses.replace(job.profile.reward, model=None, seeds=1, combine="mean")
    profile = dataclasses.replace(job.profile, reward=reward)
    return dataclasses.replace(job, data=data, profile=profile, seed=(job.seed + SEED) % 2**32)


def rows(job: Job) -> tuple[str, int, int]:
    """What the judge of a job learns from, `comparisons` or `ratings`, and how many rows train and measure it."""
    split, kind = judge_job(job).data, job.profile.reward.objective
    rated = kind == "regression" or (kind == "auto" and not job.data.held_out.comparisons)
    name = "ratings" if rated else "comparisons"
    return name, len(getattr(split.train, name)), len(getattr(split.held_out, name))


def missing(job: Job) -> str | None:
    """Why there is no second reward model, in a sentence without its stop; None where there is one."""
    if job.profile.evaluate.judge_url:
        return f"{job.profile.evaluate.judge_model} judges in its place (evaluate.judge_url)"
    if job.profile.evaluate.judge != "auto":
        return f"evaluate.judge is {job.profile.evaluate.judge}"
    name, train, held_out = rows(job)
    if name == "ratings" and len({rating.score for rating in judge_job(job).data.train.ratings}) == 1:
        return "all held-out ratings that a second reward model would learn from are the same"
    # a tenth may be set aside, and what is left has to fill a batch
    fewest = max(FEWEST, job.profile.reward.per_device_train_batch_size * 10 // 9 + 1)
    if train >= fewest and held_out >= FEWEST:
        return None
    return (
        f"a second reward model needs {fewest} held-out {name} to learn from and {FEWEST} others to be measured on, and "
        f"the data hold out {train} and {held_out}"
    )


def own_judge(setting: str) -> TermFunction | None:
    """The function that `evaluate.judge=judges.py:polite` names, as a term is called; None where the setting names none.

    It takes the messages of the prompt, the answer and the references, and returns a number.

    Raises:
        UserError: the file is not there or cannot be imported, or has no such function.
    """
    if setting in ("auto", "none"):
        return None
    if ":" not in setting:
        raise UserError(f"evaluate.judge={setting}: say auto, none, or a function of yours, as judges.py:polite")
    _, _, judge = find_function("evaluate.judge", setting)
    return lambda prompt, answer, example: judge(prompt, answer, example.answers)


def judged(job: Job, answers: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """What the function that `evaluate.judge` names gives each answer.

    Raises:
        UserError: it raises, takes too long, or gives no number.
    """
    setting = job.profile.evaluate.judge
    judge = own_judge(setting)
    assert judge is not None, "the setting names a function"
    name, seconds = f"the judge {shortened(setting, 40)}", job.profile.limits.term_seconds
    return score_each(name, judge, "mend the function or set evaluate.judge=none", answers, examples, seconds)
