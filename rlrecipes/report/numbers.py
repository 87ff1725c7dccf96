"""Numbers as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rlrecipes.text import interval, number


class Cell(NamedTuple):
    """A table's cell: a value, and what stands beside it in small print (its interval, as a rule)."""

    value: str
    beside: str = ""


def estimate_cell(found: Mapping[str, float] | float | None, signed: bool = False) -> Cell:
    """A value with its interval; a plain number without; a dash for nothing."""
    if found is None:
        return Cell("–")
    if not isinstance(found, Mapping):
        return Cell(str(found) if isinstance(found, int) else number(found))
    return Cell(*interval(found, signed))


def duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.2g} min" if seconds >= 60 else f"{seconds:.0f} s"
