"""Cells and tables of the pages' blocks, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlrecipes.text import interval, number

Estimate = Mapping[str, float]
"""`value`, `low`, `high`."""


def value(found: Estimate | float | None) -> str:
    if found is None:
        return "–"
    return number(found["value"] if isinstance(found, Mapping) else found)


def estimate(found: Estimate | None, signed: bool = False) -> str:
    """With its interval."""
    return "–" if found is None else " ".join(interval(found, signed)).strip()


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f" {cell} |" if cell else " |" for cell in line) for line in (heads, *rows)]
    return "\n".join(f"|{line}" for line in (lines[0], "---|" * len(heads), *lines[1:]))


def where(machine: Mapping[str, Any]) -> str:
    """A machine in words, `threads` only where they are known.

    >>> where({"cpu": "AMD EPYC", "cores": 2, "threads": 1, "torch": "2.13.0+cpu"})
    'AMD EPYC, 2 cores, 1 thread, torch 2.13.0+cpu'
    """
    counts = [
        f"{machine[what]} {what[: -1 if machine[what] == 1 else None]}"
        for what in ("cores", "threads")
        if what in machine
    ]
    return ", ".join([machine["cpu"], *counts, f"torch {machine['torch']}"])
