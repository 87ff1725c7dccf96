"""Why rows are left out: one line a reason, with a count and the first row's place, and nothing of what the rows hold.

    ValueError("'target' must be a text, not 'Call me, 555 0199'")  ->  "'target' must be a text, not …"

A row's values are private, and reasons reach the console, `done.json` and the card of an export.
"""

from __future__ import annotations

import re
import string
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from rlrecipes.errors import first_line
from rlrecipes.text import shortened

LONGEST = 150
"""Characters of a reason."""


class Drop(NamedTuple):
    """A row that was left out."""

    reason: str
    place: str
    """`train.jsonl, row 51`."""


def counted(drops: Sequence[Drop]) -> dict[str, int]:
    """Rows by reason, in order of first appearance: `{"empty answer (first: train.jsonl, row 51)": 3}`."""
    first: dict[str, str] = {}
    for drop in drops:
        first.setdefault(drop.reason, drop.place)
    counts = Counter(drop.reason for drop in drops)
    return {f"{reason} (first: {place})": counts[reason] for reason, place in first.items()}


def reason_of(error: BaseException, names: frozenset[str]) -> str:
    """An error's text as far as it stands in the code that raised it, or is one of `names`; the rest may be a row's value.

    A text that is cut so ends in an ellipsis. An error other than a `ValueError`, or one of which no word is left, is told
    by its class and its line.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    written = _written(tuple((frame.f_code, frame.f_globals.get("__name__", "")) for frame in frames), names)
    text = first_line(error)
    known = text[: match.end()] if (match := written.match(text)) else ""
    if known != text:
        known = known.rstrip(string.punctuation + " ")
        known = f"{known} …" if len(known.split()) > 1 else ""
    if known and isinstance(error, ValueError):
        return shortened(known, LONGEST)
    last = traceback.extract_tb(error.__traceback__)[-1]
    told = f": {known}" if known else f" ({Path(last.filename).name}, line {last.lineno})"
    return shortened(f"the reader raised {type(error).__name__}{told}", LONGEST)


@lru_cache(maxsize=64)
def _written(codes: tuple[tuple[CodeType, str], ...], names: frozenset[str]) -> re.Pattern[str]:
    """Matches what functions of modules can say by themselves: `names`, the constants in their code and punctuation."""
    texts = {*names, "no"}
    for code, module in codes:
        texts |= {*_texts(code.co_consts), *_named(code, vars(sys.modules.get(module, object)))}
    pieces = {piece for text in texts for piece in (text, *re.split(r"%[a-z]|\{[^}]*\}", text)) if piece.strip()}
    alternatives = "|".join(map(_whole, sorted(pieces, key=len, reverse=True)))
    return re.compile(f"(?:{alternatives}|[{re.escape(string.punctuation)} …])*")


def _whole(piece: str) -> str:
    """A pattern for a piece of text that neither starts nor ends within a word."""
    starts, ends = re.match(r"\w", piece), re.search(r"\w$", piece)
    return (r"(?<!\w)" if starts else "") + re.escape(piece) + (r"(?!\w)" if ends else "")


def _texts(constant: Any) -> Iterator[str]:
    """A code's constants as texts, those within tuples and sets too."""
    if isinstance(constant, tuple | frozenset):
        for item in constant:
            yield from _texts(item)
    elif isinstance(constant, str | int | float) or constant is None:
        yield str(constant)


def _named(code: CodeType, names: Mapping[str, Any]) -> Iterator[str]:
    """The texts and numbers that a function reads from its module."""
    for name in code.co_names:
        yield from _texts(value) if isinstance(value := names.get(name), str | int | float) else ()
