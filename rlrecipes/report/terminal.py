"""Tables that a terminal of a hundred columns shows without breaking their lines.

recipe       headline  base   SFT    RLOO   GRPO   PPO    PPO over SFT, 95 %       wins
translation  chrf      0.612  0.764  0.951  0.957  0.959  +0.195 [0.178, 0.209]  0.871
left out for width: RM, time
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rlrecipes.text import aligned

WIDEST = 100
"""Columns of a terminal."""


def fitted(rows: Sequence[Sequence[str]], spared: Sequence[str], words: Collection[int] | None = None) -> list[str]:
    """The lines of a table under its heads, the first row, as `text.aligned` sets them.

    Where they are too wide, it goes without the columns with the heads `spared`, the last of them first, and a line says so.
    """
    heads, left = list(rows[0]), list(spared)
    while True:
        kept = [i for i, head in enumerate(heads) if head not in spared or head in left]
        to_left = None if words is None else {place for place, i in enumerate(kept) if i in words}
        lines = aligned([[row[i] for i in kept] for row in rows], to_left)
        if max(map(len, lines)) <= WIDEST or not left:
            break
        left.pop()
    gone = [head for head in heads if head in spared and head not in left]
    return [*lines, *([f"left out for width: {', '.join(gone)}"] if gone else [])]
