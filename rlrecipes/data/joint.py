"""The data of several recipes that share a reward model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest

from rlrecipes.recipe import Data, Split

PLUS = "+"
"""What joins the names of recipes, and those of their data."""


def joint_data(parts: Mapping[str, Data]) -> Data:
    """The data of all recipes, whose rows take turns."""
    return Data(
        source=PLUS.join(data.source for data in parts.values()),
        train=_interleave([data.train for data in parts.values()]),
        held_out=_interleave([data.held_out for data in parts.values()]),
        notes=[f"{name}: {note}" for name, data in parts.items() for note in data.notes],
        dropped={f"{name}: {reason}": count for name, data in parts.items() for reason, count in data.dropped.items()},
    )


def _interleave(splits: Sequence[Split]) -> Split:
    kinds = [kind.name for kind in dataclasses.fields(Split)]
    turns = {kind: chain.from_iterable(zip_longest(*(getattr(split, kind) for split in splits))) for kind in kinds}
    return Split(**{kind: [row for row in rows if row is not None] for kind, rows in turns.items()})
