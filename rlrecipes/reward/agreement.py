"""How well a reward model's scores agree with held-out preferences and ratings; plain arithmetic on scores.

accuracy([Comparison(…)], chosen=[1.2], rejected=[0.3], lengths=[(9, 7)])
    -> {"accuracy": {"value": 1.0, …}, "longer_wins": {…}, "held_out_comparisons": 1}
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.metrics import correlation, mean_interval
from rlrecipes.recipe import Comparison, Data, Rating
from rlrecipes.reward.baselines import win
from rlrecipes.reward.head import combined
from rlrecipes.reward.model import RewardModel, Row
from rlrecipes.run.console import say
from rlrecipes.run.folder import Run, write_json
from rlrecipes.run.resume import record_drops
from rlrecipes.text import interval, see, shortened


def accuracy(
    comparisons: Sequence[Comparison],
    chosen: Sequence[float],
    rejected: Sequence[float],
    lengths: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """How often the chosen answer scores higher; a tie counts half. Without comparisons, nothing.

    `chosen` and `rejected` are the scores of both answers, `lengths` their tokens, prompt included. `longer_wins` is what
    always preferring the longer answer would reach. Where every comparison says whether noise flipped it, `ceiling` is the
    share of labels that are right.
    """
    if not comparisons:
        return {}
    wins = [win(a, b) for a, b in zip(chosen, rejected, strict=True)]
    metrics: dict[str, Any] = {
        "accuracy": mean_interval(wins).as_json(),
        "longer_wins": mean_interval([win(a, b) for a, b in lengths]).as_json(),
        "held_out_comparisons": len(comparisons),
    }
    flipped = [comparison.flipped for comparison in comparisons]
    if None not in flipped:
        clean = [1 - win if flip else win for win, flip in zip(wins, flipped, strict=True)]
        metrics["ceiling"] = 1 - statistics.fmean(map(float, map(bool, flipped)))
        metrics["accuracy_without_noise"] = mean_interval(clean).as_json()
    return metrics


def correlations(ratings: Sequence[Rating], scores: Sequence[float]) -> dict[str, Any]:
    """Spearman's and Pearson's correlation of scores with ratings. Without ratings, nothing."""
    if not ratings:
        return {}
    targets = [rating.score for rating in ratings]
    return {
        "spearman": correlation(scores, targets, ranked=True).as_json(),
        "pearson": correlation(scores, targets, ranked=False).as_json(),
        "held_out_ratings": len(ratings),
    }


SCALED_ON = 512
"""Demonstrations whose scores set the scale; their mean is then known to 1/√512, 4 % of a deviation."""


ROUNDING = 1e-6
"""Scores whose range is within this share of their size are equal: float32 rounds to 6e-8, summed over a row."""


# What the reward stage records.


def write_scale(job: Job, folder: Path, model: RewardModel) -> list[str]:
    """Writes mean and deviation of the scores over the first demonstrations that the model can read to `scale.json`.

    Returns a sentence where the scores are equal, up to rounding; they are then not divided by their deviation.

    Raises:
        UserError: no demonstration is short enough, or a score is NaN or infinite.
    """
    rows = readable(job, model, SCALED_ON)
    scores = model.scores(rows, batch_size(job))
    if not all(map(math.isfinite, scores)):
        raise UserError(
            "the reward model gives NaN or infinity on demonstrations; choose another model.dtype, or another reward.model"
        )
    scale = scale_of(scores)
    constant = len(scores) > 1 and max(scores) - min(scores) <= ROUNDING * max(1.0, *map(abs, scores))
    write_json(folder / "scale.json", scale | {"std": 1.0} if constant else scale)
    if not constant:
        return []
    mend = "lower reward.learning_rate or bring more preferences"
    if name := job.profile.reward.model:
        mend = f"choose another than reward.model={shortened(name)}"
    sentence = (
        f"the reward model gives all {len(scores)} demonstrations that it was scaled on the score {scores[0]:.3g}, so PPO "
        f"learns nothing from it; look at its accuracy, {mend}"
    )
    return [see("The reward model is at chance", sentence)]


def readable(job: Job, model: RewardModel, most: int) -> list[Row]:
    """The first demonstrations that the model can read whole, `most` of them.

    Raises:
        UserError: it can read none.
    """
    demonstrations, limit = job.data.train.demonstrations, model.max_tokens
    encoded = (model.encode(example.prompt, example.answers[0]) for example in demonstrations)
    rows = list(islice((row for row in encoded if len(row["input_ids"]) <= limit), most))
    if not rows and (name := job.profile.reward.model):
        raise UserError(
            f"reward.model={name} reads at most {limit} tokens, and all {len(demonstrations)} demonstrations are longer; "
            "shorten the rows, or choose another model"
        )
    if not rows:
        record_drops("demonstrations", len(demonstrations), 0, limit, job.profile.model.max_length)
    return rows


def scale_of(scores: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation; 1 where all scores are equal, since they are divided by it."""
    return {"mean": statistics.fmean(scores), "std": statistics.pstdev(scores) or 1.0}


def measure(job: Job, model: RewardModel, metrics: dict[str, Any]) -> dict[str, Any]:
    """What `done.json` records: `metrics` with the agreement added.

    A model that several recipes share has an agreement with each: they stand under `recipes`, beside those of the models
    that the recipes have of their own.
    """
    if len(job.tasks) == 1:
        return {"metrics": {**metrics, **_agreement(model, job.data, batch_size(job))}}
    shared = {name: _agreement(model, data, batch_size(job)) for name, data in job.tasks.items()}
    single = {name: (Run(job.run.name, name, job.run.root).done("reward") or {}).get("metrics", {}) for name in shared}
    for name, agreement in shared.items():
        for measure in ("accuracy", "spearman"):
            if measure in agreement:
                beside = (
                    f"; of its own model {' '.join(interval(single[name][measure]))}" if measure in single[name] else ""
                )
                say(f"  {name}: held-out {measure} {' '.join(interval(agreement[measure]))}{beside}")
    recipes = {name: {"shared": shared[name], "single": single[name]} for name in shared}
    return {"metrics": metrics, "recipes": recipes}


def batch_size(job: Job) -> int:
    """Texts that are scored together: as many as training reads together, two for each comparison."""
    return 2 * job.profile.reward.per_device_train_batch_size


def measure_together(
    job: Job, model: RewardModel, each: Callable[[Sequence[Row]], list[list[float]]]
) -> dict[str, Any]:
    """What `done.json` records of several reward models that score together: the agreement of all, and that of each.

    `each` gives the standardised scores of rows, one list a member.
    """
    kept: list[list[list[float]]] = []
    how = job.profile.reward.combine

    def together(rows: Sequence[Row]) -> list[float]:
        kept.append(each(rows))
        scores: list[float] = combined(torch.tensor(kept[-1]), how).tolist() if rows else []
        return scores

    metrics = _agreement(model, job.data, 0, together)
    members = []
    for number in range(job.profile.reward.seeds):
        found = _agreement(model, job.data, 0, _replayed([scores[number] for scores in kept]))
        members.append({name: value for name, value in found.items() if name in ("accuracy", "spearman", "pearson")})
    measure = "accuracy" if "accuracy" in metrics else "spearman"
    if measure in metrics:
        for number, member in enumerate(members):
            say(f"  member {number}: held-out {measure} {' '.join(interval(member[measure]))}")
        say(f"  all together ({how}): {' '.join(interval(metrics[measure]))}")
    return {"metrics": metrics, "members": members}


def _replayed(lists: Sequence[list[float]]) -> Callable[[Sequence[Row]], list[float]]:
    """Gives the lists of scores again, one a call."""
    left = iter(lists)
    return lambda _: next(left)


def _agreement(
    model: RewardModel,
    data: Data,
    batch_size: int,
    scorer: Callable[[Sequence[Row]], Sequence[float]] | None = None,
) -> dict[str, Any]:
    """The agreement with the held-out comparisons and ratings that are not too long; `scorer` replaces the model's own."""
    score = scorer or (lambda rows: model.scores(rows, batch_size))
    rows = [
        (pair, model.encode(pair.prompt, pair.chosen), model.encode(pair.prompt, pair.rejected))
        for pair in data.held_out.comparisons
    ]
    rows = [row for row in rows if max(len(row[1]["input_ids"]), len(row[2]["input_ids"])) <= model.max_tokens]
    ratings = [(rating, model.encode(rating.prompt, rating.answer)) for rating in data.held_out.ratings]
    ratings = [row for row in ratings if len(row[1]["input_ids"]) <= model.max_tokens]
    return {
        **accuracy(
            [pair for pair, _, _ in rows],
            score([chosen for _, chosen, _ in rows]),
            score([rejected for _, _, rejected in rows]),
            [(len(chosen["input_ids"]), len(rejected["input_ids"])) for _, chosen, rejected in rows],
        ),
        **correlations([rating for rating, _ in ratings], score([row for _, row in ratings])),
    }
