"""The rows that a reward model, or DPO, learns from, and those that say which step to keep: comparisons or ratings as ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from rlrecipes.data.split import set_aside
from rlrecipes.job import Job
from rlrecipes.model.tokens import encode, fitting_comparisons
from rlrecipes.profile import TrainingSettings
from rlrecipes.recipe import Prompt, Rating
from rlrecipes.reward.agreement import scale_of
from rlrecipes.run.console import say
from rlrecipes.run.resume import check_rows, length_of, record_drops


@dataclass(frozen=True)
class Rows:
    """What is learned from."""

    train: list[dict[str, Any]]
    aside: list[dict[str, Any]]
    """Training rows that are not learned from: they say which step to keep. Empty: the last is kept."""
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
    rows = [{"chosen_ids": chosen.ids, "rejected_ids": rejected.ids} for _, chosen, rejected in balanced]
    margins = [comparison.margin for comparison, _, _ in balanced]
    count = sum(margin is not None for margin in margins)
    if count:  # TRL reads the margins only if a batch's first row has one, so all rows get one
        rows = [{**row, "margin": margin or 0.0} for row, margin in zip(rows, margins, strict=True)]
    record = {"too_long": dropped, **({"margins": count} if count else {})}
    prompts = [comparison.prompt for comparison, _, _ in balanced]
    return divided(
        job.profile.reward, "reward", rows, prompts, "comparisons", f", {count} with margins" if count else "", record
    )


def preference_rows(job: Job, tokenizer: Any, max_tokens: int) -> Rows:
    """The training comparisons of at most `max_tokens`, as DPO reads them: those of `comparison_rows`.

    A row has TRL's columns: `prompt_ids`, `chosen_ids` and `rejected_ids`, the answers without their prompt.

    Raises:
        UserError: no comparison is short enough, or there are fewer than a batch needs.
    """
    comparisons = job.data.train.comparisons
    fitting = fitting_comparisons(tokenizer, comparisons, max_tokens)
    dropped = record_drops("comparisons", len(comparisons), len(fitting), max_tokens, job.profile.model.max_length)
    rows = [
        {"prompt_ids": chosen.prompt, "chosen_ids": chosen.answer, "rejected_ids": rejected.answer}
        for _, chosen, rejected in fitting
    ]
    margins = sum(comparison.margin is not None for comparison, _, _ in fitting)
    how = f", without the margins that {margins} have" if margins else ""
    prompts = [comparison.prompt for comparison, _, _ in fitting]
    return divided(job.profile.dpo, "dpo", rows, prompts, "comparisons", how, {"too_long": dropped})


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
    return divided(job.profile.reward, "reward", rows, prompts, "ratings", ", by regression", record)


def divided(
    settings: TrainingSettings,
    stage: str,
    rows: list[dict[str, Any]],
    prompts: Sequence[Prompt],
    what: str,
    how: str,
    record: dict[str, Any],
) -> Rows:
    """The rows of a stage, of which some are set aside where `keep` is `best`; the console says how many.

    Raises:
        UserError: there are fewer than a batch needs.
    """
    train, aside = set_aside(rows, prompts) if settings.keep == "best" else (rows, [])
    check_rows(what, len(train), settings.per_device_train_batch_size, f"{stage}.per_device_train_batch_size")
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
