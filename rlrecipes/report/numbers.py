"""Numbers as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Cell(NamedTuple):
    """A table's cell: a value, and what stands beside it in small print (its interval, as a rule)."""

    value: str
    beside: str = ""


def estimate_cell(found: Mapping[str, float] | float | None, signed: bool = False) -> Cell:
    """A value with its interval, all to as many places; a plain number without; a dash for nothing."""
    if found is None:
        return Cell("–")
    if not isinstance(found, Mapping):
        return Cell(str(found) if isinstance(found, int) else number(found))
    places = 3 if max(abs(found["low"]), abs(found["high"])) < 10 else 1
    interval = f"[{number(found['low'], places)}, {number(found['high'], places)}]"
    return Cell(number(found["value"], places, signed), interval if math.isfinite(found["value"]) else "")


def number(value: float, places: int = 3, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "–"
    value = round(value, places) + 0.0  # no minus zero
    return f"{value:{'+' if signed else ''},.{places}f}".replace("-", "−")


def duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.2g} min" if seconds >= 60 else f"{seconds:.0f} s"


def shortened_to(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
