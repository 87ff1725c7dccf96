"""How often the chosen answer has the higher score, overall and by parts of the rows, and what its scores promise.

    {"overall": {"value": 0.91, "low": 0.88, "high": 0.94, "count": 500}, "parts": {"longer answer": {"chosen": {…}, …}}}

Plain arithmetic on scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rlrecipes.after.examine.subject import Pair
from rlrecipes.metrics import mean_interval
from rlrecipes.recipe import Example, Prompt
from rlrecipes.reward.baselines import win
from rlrecipes.text import number

QUARTERS = 4
FEWEST = 20
"""With fewer rows a part says nothing; they are then not parted by quantiles."""
LABELS = 6
"""A value of the rows with more than so many kinds is no label."""


def accuracy_by_parts(pairs: Sequence[Pair], examples: Sequence[Example]) -> dict[str, Any]:
    """The accuracy overall and by parts, each with its interval and count; `examples` know labels of the prompts."""
    right = [win(pair.chosen, pair.rejected) for pair in pairs]

    def of(rows: Sequence[int]) -> dict[str, float]:
        return mean_interval([right[i] for i in rows]).as_json() | {"count": len(rows)}

    groups = {
        "difference of the scores": _quantiles([abs(pair.chosen - pair.rejected) for pair in pairs]),
        "margin in the data": _quantiles([pair.comparison.margin for pair in pairs]),
        "longer answer": _grouped(map(_longer, pairs)),
        "recipe": _grouped(pair.recipe for pair in pairs),
        "label": _grouped(_flipped(pair.comparison.flipped) for pair in pairs),
        **_labels(pairs, examples),
    }
    return {
        "overall": of(range(len(pairs))),
        "parts": {
            title: {name: of(rows) for name, rows in parts.items()} for title, parts in groups.items() if len(parts) > 1
        },
    }


def _longer(pair: Pair) -> str:
    chosen, rejected = pair.lengths
    return "the chosen" if chosen > rejected else "the rejected" if chosen < rejected else "neither"


def _flipped(flipped: bool | None) -> str | None:
    return None if flipped is None else "swapped on purpose" if flipped else "right"


def _labels(pairs: Sequence[Pair], examples: Sequence[Example]) -> dict[str, dict[str, list[int]]]:
    """The parts by each value of few kinds that the data know of a prompt, such as its language."""
    truths: Mapping[Prompt, Mapping[str, Any]] = {example.prompt: example.truth for example in examples}
    known = [truths.get(pair.comparison.prompt, {}) for pair in pairs]
    names = {name for truth in known for name, value in truth.items() if isinstance(value, str | int)}
    parts = {name: _grouped(truth.get(name) for truth in known) for name in sorted(names)}
    return {name: groups for name, groups in parts.items() if len(groups) <= LABELS}


def _grouped(names: Iterable[Any]) -> dict[str, list[int]]:
    """The places of rows by the part that each belongs to; None is in no part."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        if name is not None:
            groups.setdefault(str(name), []).append(place)
    return dict(sorted(groups.items()))


def _quantiles(values: Sequence[float | None]) -> dict[str, list[int]]:
    """The places of values in up to four parts of like size, from the lowest; none where there are too few."""
    known = np.array([value for value in values if value is not None])
    if len(known) < FEWEST:
        return {}
    edges = np.unique(np.quantile(known, np.linspace(0, 1, QUARTERS + 1)))
    names = [f"{number(low, 2)} to {number(high, 2)}" for low, high in pairwise(edges)]
    parts: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        if value is not None:
            part = min(int(np.searchsorted(edges, value, side="right")) - 1, len(names) - 1)
            parts.setdefault(names[part], []).append(place)
    return {name: parts[name] for name in names if name in parts}


# What the scores promise: by Bradley and Terry the sigmoid of their difference is the chance that the higher one is chosen.

BINS = 10


def calibration(differences: Sequence[float]) -> dict[str, Any]:
    """How well the chances that score differences (chosen minus rejected, `[n]`) promise are kept; nothing without rows.

    A row's chance is that of the answer with the higher score, 0.5 to 1; it is kept where that answer is the chosen one.
    `ece` is the expected calibration error (Guo et al. 2017), `brier` the mean squared error of the chance (Brier 1950).
    A temperature is fitted on every second row and tried on the others; that is an offer, and nothing here applies it.
    """
    if not len(differences):
        return {}
    values = np.asarray(differences, dtype=float)
    found: dict[str, Any] = {**_measures(values), "bins": _bins(values), "count": len(values)}
    fitted, tried = values[::2], values[1::2]
    temperature = fit_temperature(fitted) if len(tried) >= FEWEST else None
    if temperature is not None:
        found["temperature"] = {
            "value": round(temperature, 6),
            "fitted_on": len(fitted),
            "tried_on": len(tried),
            "before": _measures(tried),
            "after": _measures(tried / temperature),
        }
    return found


def fit_temperature(differences: np.ndarray) -> float | None:
    """The divisor of score differences `[n]` under which the data are likeliest; None where none is, as with no wrong row.

    The derivative of the negative log-likelihood in the divisor's inverse grows with it, so bisection finds its zero.
    """

    def slope(inverse: float) -> float:
        return float(-(differences * _sigmoid(-inverse * differences)).mean())

    low, high = 1e-4, 1e4
    if not slope(low) < 0 < slope(high):
        return None
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / low


def _sigmoid(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-np.clip(values, -500, 500)))
    return result


def _kept(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chance of the higher score, and whether it was the chosen answer's; a half for equal scores."""
    return _sigmoid(np.abs(differences)), (np.sign(differences) + 1) / 2


def _measures(differences: np.ndarray) -> dict[str, Any]:
    chances, kept = _kept(differences)
    bins = _bins(differences)
    ece = sum(part["count"] * abs(part["accuracy"]["value"] - part["chance"]) for part in bins) / len(differences)
    return {"ece": round(ece, 6), "brier": mean_interval(list((chances - kept) ** 2)).as_json()}


def _bins(differences: np.ndarray) -> list[dict[str, Any]]:
    """Bins of equal width from 0.5 to 1 that have rows: the mean chance, how often it was kept, and the rows."""
    chances, kept = _kept(differences)
    places = np.minimum(((chances - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return [
        {
            "chance": round(float(chances[places == place].mean()), 6),
            "accuracy": mean_interval(list(kept[places == place])).as_json(),
            "count": int((places == place).sum()),
        }
        for place in sorted(set(places.tolist()))
    ]
