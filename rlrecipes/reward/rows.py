"""The rows that a reward model is trained on, and those that say which step to keep: comparisons or ratings as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from rlrecipes.data.split import set_aside
from rlrecipes.job import Job
from rlrecipes.model.tokens import encode, fitting_comparisons
from rlrecipes.recipe import Prompt, Rating
from rlrecipes.reward.agreement import scale_of
from rlrecipes.run.console import say
from rlrecipes.run.resume import check_rows, length_of, record_drops


@dataclass(frozen=True)
class Rows:
    """What a reward model learns from."""

    train: list[dict[str, Any]]
    aside: list[dict[str, Any]]
    """Training rows that it does not learn from: they say which step to keep. Empty: the last is kept."""
    record: dict[str, Any]
    """What `done.json` holds of them."""


def comparison_rows(job: Job, tokenizer: Any, max_tokens: int) -> Rows:
    """The training comparisons of at most `max_tokens`.

    A row has TRL's columns: `chosen_ids`, `rejected_ids` and, where any comparison has one, `margin`.

    Raises:
        UserError: no comparison is short enough, or there are fewer than a batch needs.
    """
    tasks = [fitting_comparisons(tokenizer, data.train.comparisons, max_tokens) for data in job.tasks.values()]
    total = sum(len(data.train.comparisons) for data in job.tasks.values())
    dropped = record_drops("comparisons", total, sum(map(len, tasks)), max_tokens, job.profile.model.max_length)
    balanced = _balance(tasks)
    rows = [{"chosen_ids": chosen, "rejected_ids": rejected} for _, chosen, rejected in balanced]
    margins = [comparison.margin for comparison, _, _ in balanced]
    count = sum(margin is not None for margin in margins)
    if count:  # TRL reads the margins only if a batch's first row has one, so all rows get one
        rows = [{**row, "margin": margin or 0.0} for row, margin in zip(rows, margins, strict=True)]
    record = {"too_long": dropped, **({"margins": count} if count else {})}
    prompts = [comparison.prompt for comparison, _, _ in balanced]
    return _divided(job, rows, prompts, "comparisons", f", {count} with margins" if count else "", record)


def rating_rows(job: Job, tokenizer: Any, max_tokens: int) -> Rows:
    """The training ratings of at most `max_tokens`.

    A row has `ids` and `score`. Scores have mean 0 and standard deviation 1 over each recipe's training ratings, since
    recipes may rate on different scales.

    Raises:
        UserError: no rating is short enough, or there are fewer than a batch needs.
    """
    tasks = [_fitting_ratings(tokenizer, data.train.ratings, max_tokens) for data in job.tasks.values()]
    total = sum(len(data.train.ratings) for data in job.tasks.values())
    dropped = record_drops("ratings", total, sum(map(len, tasks)), max_tokens, job.profile.model.max_length)
    scales = [scale_of([rating.score for rating, _ in rows]) for rows in tasks]
    balanced = _balance(
        [
            [
                (rating.prompt, {"ids": ids, "score": (rating.score - scale["mean"]) / scale["std"]})
                for rating, ids in task
            ]
            for task, scale in zip(tasks, scales, strict=True)
        ]
    )
    prompts, rows = ([part[i] for part in balanced] for i in (0, 1))
    record = {"too_long": dropped, "targets": dict(zip(job.tasks, scales, strict=True))}
    return _divided(job, rows, prompts, "ratings", ", by regression", record)


def _divided(
    job: Job, rows: list[dict[str, Any]], prompts: Sequence[Prompt], what: str, how: str, record: dict[str, Any]
) -> Rows:
    settings = job.profile.reward
    train, aside = set_aside(rows, prompts) if settings.keep == "best" else (rows, [])
    check_rows(what, len(train), settings.per_device_train_batch_size, "reward.per_device_train_batch_size")
    beside = f", {len(aside)} set aside" if aside else ""
    say(f"  {length_of(settings)} on {len(train)} {what}{how}{beside}")
    return Rows(train, aside, record)


def _fitting_ratings(tokenizer: Any, ratings: Sequence[Rating], max_tokens: int) -> list[tuple[Rating, list[int]]]:
    rows = [(rating, encode(tokenizer, rating.prompt, rating.answer).ids) for rating in ratings]
    return [(rating, ids) for rating, ids in rows if len(ids) <= max_tokens]


def _balance(tasks: Sequence[Sequence[Any]]) -> list[Any]:
    """As many rows of each recipe as the largest has; the smaller ones repeat. Batches mix all of them."""
    most = max(map(len, tasks))
    return [row for rows in tasks for row in islice(cycle(rows), most)]
