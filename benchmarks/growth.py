"""How cost grows: batch, answer length and vocabulary are doubled one at a time, and a power law is fitted.

    {"axis": "batch", "sizes": [16, 32, 64, 128], "ours": {"cpu_s": [...], "peak_mb": [...], "cpu_s_exponent": 0.93, …}, …}

An exponent of 1 says that doubling the size doubles the cost; what does not grow (weights, say) pulls it below 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from benchmarks.work import Work

AXES = ("batch", "answer", "vocabulary")
COSTS = ("cpu_s", "peak_mb")


def growth(base: Work, doublings: int, measure: Callable[[str, Work], dict[str, Any]]) -> list[dict[str, Any]]:
    """Cost of both arms along each axis; `measure` takes an arm's name and a work. The starting point is measured once."""
    start = {arm: measure(arm, base) for arm in ("plain", "ours")}
    found = []
    for axis in AXES:
        works = [_scaled(base, axis, 2**power) for power in range(1, doublings + 1)]
        row: dict[str, Any] = {"axis": axis, "sizes": [_size(work, axis) for work in (base, *works)]}
        for arm in start:
            runs = [start[arm], *(measure(arm, work) for work in works)]
            row[arm] = {cost: [run[cost] for run in runs] for cost in COSTS}
            row[arm] |= {f"{cost}_exponent": exponent(row["sizes"], row[arm][cost]) for cost in COSTS}
        found.append(row)
    return found


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of a least-squares line through the logarithms; 0 where a cost is too small to be seen."""
    if min(costs) <= 0:
        return 0.0
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    centre, level = fmean(x), fmean(y)
    return sum((a - centre) * (b - level) for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)


def _scaled(base: Work, axis: str, factor: int) -> Work:
    if axis == "vocabulary":
        model = dataclasses.replace(base.model, vocabulary=base.model.vocabulary * factor)
        return dataclasses.replace(base, model=model)
    return dataclasses.replace(base, **{axis: getattr(base, axis) * factor})


def _size(work: Work, axis: str) -> int:
    size: int = work.model.vocabulary if axis == "vocabulary" else getattr(work, axis)
    return size
