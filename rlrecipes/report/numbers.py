"""Numbers in a form that people read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rlrecipes.text import interval, number


class Cell(NamedTuple):
    """A table's cell: a value, and small print beside it, mostly its interval."""

    value: str
    beside: str = ""


def estimate_cell(estimate: Mapping[str, float] | float | None, signed: bool = False) -> Cell:
    """A value with its interval; a plain number has none, and None becomes a dash."""
    if estimate is None:
        return Cell("–")
    if not isinstance(estimate, Mapping):
        return Cell(str(estimate) if isinstance(estimate, int) else number(estimate))
    return Cell(*interval(estimate, signed))


def duration(seconds: float) -> str:
    """`12 s`, `3.4 min` or `1.2 h`."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.2g} min" if seconds >= 60 else f"{seconds:.0f} s"
