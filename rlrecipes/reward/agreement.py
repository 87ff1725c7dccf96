"""How well a reward model's scores agree with held-out preferences and ratings; plain arithmetic on scores.

accuracy([Comparison(…)], chosen=[1.2], rejected=[0.3]) -> {"accuracy": {"value": 1.0, …}, "held_out_comparisons": 1}
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.metrics import correlation, mean_interval
from rlrecipes.recipe import Comparison, Data, Rating
from rlrecipes.reward.model import RewardModel
from rlrecipes.run.console import say
from rlrecipes.run.folder import Run, write_json
from rlrecipes.run.resume import record_drops
from rlrecipes.text import interval


def accuracy(
    comparisons: Sequence[Comparison],
    chosen: Sequence[float],
    rejected: Sequence[float],
    lengths: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """How often the chosen answer scores higher, a tie for half; and what always preferring the longer one would reach.

    `lengths` are those of both answers with their prompt, in tokens. Nothing at all without comparisons.
    """
    if not comparisons:
        return {}
    won = [_half(a, b) for a, b in zip(chosen, rejected, strict=True)]
    metrics: dict[str, Any] = {
        "accuracy": mean_interval(won).as_json(),
        "longer_wins": mean_interval([_half(a, b) for a, b in lengths]).as_json(),
        "held_out_comparisons": len(comparisons),
    }
    flipped = [comparison.flipped for comparison in comparisons]
    if None not in flipped:
        clean = [1 - win if flip else win for win, flip in zip(won, flipped, strict=True)]
        metrics["ceiling"] = 1 - statistics.fmean(map(float, map(bool, flipped)))
        metrics["accuracy_without_noise"] = mean_interval(clean).as_json()
    return metrics


def correlations(ratings: Sequence[Rating], scores: Sequence[float]) -> dict[str, Any]:
    """Spearman's and Pearson's correlation of scores with ratings; nothing at all without ratings."""
    if not ratings:
        return {}
    expected = [rating.score for rating in ratings]
    return {
        "spearman": correlation(scores, expected, ranked=True).as_json(),
        "pearson": correlation(scores, expected, ranked=False).as_json(),
        "held_out_ratings": len(ratings),
    }


def _half(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0


SCALED_ON = 512
"""Demonstrations that the scores are standardised over."""


# What came out.


def write_scale(job: Job, folder: Path, model: RewardModel) -> None:
    encoded = (model.encode(example.prompt, example.answers[0]) for example in job.data.train.demonstrations)
    fitting = list(islice((row for row in encoded if len(row["input_ids"]) <= model.max_tokens), SCALED_ON))
    if not fitting:
        record_drops("demonstrations", len(job.data.train.demonstrations), 0, model.max_tokens)
    scores = model.scores(fitting, _at_once(job))
    if not all(map(math.isfinite, scores)):
        raise UserError(
            "the reward model gives NaN or infinity on demonstrations; choose another model.dtype, or another reward.model"
        )
    write_json(folder / "scale.json", scale_of(scores))


def scale_of(scores: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(scores), "std": statistics.pstdev(scores) or 1.0}


def measure(job: Job, model: RewardModel, metrics: dict[str, Any]) -> dict[str, Any]:
    """With the agreement among `metrics`; of a shared model, under `recipes` that with each, beside that of its own model."""
    if len(job.tasks) == 1:
        return {"metrics": {**metrics, **_agreement(model, job.data, _at_once(job))}}
    found = {name: _agreement(model, data, _at_once(job)) for name, data in job.tasks.items()}
    alone = {name: (Run(job.run.name, name, job.run.root).done("reward") or {}).get("metrics", {}) for name in found}
    for name, own in found.items():
        for measure in ("accuracy", "spearman"):
            if measure in own:
                single = (
                    f"; of its own model {' '.join(interval(alone[name][measure]))}" if measure in alone[name] else ""
                )
                say(f"  {name}: held-out {measure} {' '.join(interval(own[measure]))}{single}")
    recipes = {name: {"shared": found[name], "single": alone[name]} for name in found}
    return {"metrics": metrics, "recipes": recipes}


def _at_once(job: Job) -> int:
    """Texts that are scored together: as many as a comparison's two sides are when it is trained on."""
    return 2 * job.profile.reward.per_device_train_batch_size


def _agreement(model: RewardModel, data: Data, at_once: int) -> dict[str, Any]:
    """With the held-out comparisons and ratings that are not too long."""
    rows = [
        (pair, model.encode(pair.prompt, pair.chosen), model.encode(pair.prompt, pair.rejected))
        for pair in data.held_out.comparisons
    ]
    rows = [row for row in rows if max(len(row[1]["input_ids"]), len(row[2]["input_ids"])) <= model.max_tokens]
    rated = [(rating, model.encode(rating.prompt, rating.answer)) for rating in data.held_out.ratings]
    rated = [row for row in rated if len(row[1]["input_ids"]) <= model.max_tokens]
    return {
        **accuracy(
            [pair for pair, _, _ in rows],
            model.scores([chosen for _, chosen, _ in rows], at_once),
            model.scores([rejected for _, _, rejected in rows], at_once),
            [(len(chosen["input_ids"]), len(rejected["input_ids"])) for _, chosen, rejected in rows],
        ),
        **correlations([rating for rating, _ in rated], model.scores([row for _, row in rated], at_once)),
    }
