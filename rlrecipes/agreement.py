"""How well a reward model's scores agree with held-out preferences and ratings; plain arithmetic on scores.

accuracy([Comparison(…)], chosen=[1.2], rejected=[0.3]) -> {"accuracy": {"value": 1.0, …}, "held_out_comparisons": 1}
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rlrecipes.metrics import correlation, mean_interval
from rlrecipes.recipe import Comparison, Rating


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
