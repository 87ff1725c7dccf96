"""How long each phase of a run takes on a machine, as a table beside the memory that it needs.

time         rtx4090  a10    most of it on rtx4090
sft          1.9 h    2.4 h  forward and backward 99 %, optimizer 1 %
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlrecipes.before.cards import Card
from rlrecipes.before.durations import passes
from rlrecipes.before.learning import Plan
from rlrecipes.before.parts import NF4
from rlrecipes.before.rates import Rates, measured, seconds
from rlrecipes.text import aligned

PRODUCTS, MEMORY, KERNEL = 0.5, 0.7, 15e-6
"""What is assumed of a GPU: the shares of both rates that operations reach, and seconds that Python, PyTorch and PEFT take
to start one: 13 on an AMD EPYC, measured as `rates` measures a CPU, and some for the launch. None was measured on a GPU."""
TOLD = 3
"""Parts of a phase that are told."""


@dataclass(frozen=True)
class Duration:
    """How long one phase takes."""

    phase: str
    parts: Mapping[str, float]
    """Seconds by what is done."""

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def durations(plan: Plan, rates: Rates) -> list[Duration]:
    """The phases in the order in which they run."""
    found = []
    for phase, counted in passes(plan).items():
        parts: dict[str, float] = {}
        for each in counted:
            parts[each.what] = parts.get(each.what, 0.0) + seconds(each, rates)
        found.append(Duration(phase, parts))
    return found


def cpu_rates(plan: Plan) -> Rates:
    """This machine's, at the sizes that the plan's passes have."""
    return measured(plan.sizes, [each.tokens for counted in passes(plan).values() for each in counted])


def card_rates(name: str, card: Card, width: int) -> Rates:
    """A card's; numbers of the model have `width` bytes."""
    memory = MEMORY * card.gb * 1e9
    return Rates(
        where=name,
        products={1: PRODUCTS * (card.tflops or 0) * 1e12},
        moved={1: memory},
        weights=memory,
        unpacked=memory / (NF4 + 2 * width),  # they are read, written whole, and read again
        kernel=KERNEL,
        queued=True,
    )


def table(found: Mapping[str, list[Duration]]) -> list[str]:
    """The lines of the table: a column a machine, by its name; the parts are those of the first."""
    first, *_ = found
    several = f"most of it on {first}" if len(found) > 1 else "most of it"
    columns = [[told(duration.seconds) for duration in given] for given in found.values()]
    parts = [_parts(duration) for duration in found[first]]
    rows = [list(row) for row in zip([duration.phase for duration in found[first]], *columns, parts, strict=True)]
    total = ["total", *(told(sum(duration.seconds for duration in given)) for given in found.values())]
    return aligned([["time", *found, several], *rows, total], words={0, len(found) + 1})


def _parts(duration: Duration) -> str:
    largest = sorted(duration.parts.items(), key=lambda part: -part[1])[:TOLD]
    whole = duration.seconds or 1.0
    return ", ".join(f"{what} {part / whole:.0%}" for what, part in largest if part / whole >= 0.01)


def told(seconds: float) -> str:
    """Seconds, minutes or hours with two digits or so."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min")):
        if seconds < limit:
            return f"{seconds / unit:.{0 if seconds / unit >= 10 else 1}f} {name}"
    return f"{seconds / 3600:.{0 if seconds >= 36000 else 1}f} h"
