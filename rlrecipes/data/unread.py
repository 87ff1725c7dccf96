"""What of the rows nobody reads, with its count: silence about a column would be taken for its use.

Not read: 'id' (40 rows), 'messages[].name' (12 rows), 'translation.note' (3 rows).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from rlrecipes.data.files import Row
from rlrecipes.data.turns import JOINED, UNUSABLE, cell, is_empty, turns_in, unread_of_chat
from rlrecipes.text import shortened, written

NAMED = 20
"""Columns and keys that are named; the others are counted."""
TRIED = 20
"""Texts that tell how a file writes its cells."""


class Looked(dict[str, Any]):
    """A column's object that notes the keys that a reader asks for; one that goes through it has read them all."""

    asked: set[str]

    @classmethod
    def of(cls, value: Any) -> Any:
        """Such an object of an object; a chat and any other value as they are."""
        if type(value) is not dict or turns_in(value):
            return value
        looked = cls(value)
        looked.asked = set()
        return looked

    def left(self) -> list[str]:
        """The keys that hold something and that nobody asked for."""
        return [key for key in dict.keys(self) if key not in self.asked and not is_empty(dict.get(self, key))]

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        self.asked |= set(dict.keys(self))
        return super().__iter__()

    def items(self) -> Any:
        self.asked |= set(dict.keys(self))
        return super().items()

    def values(self) -> Any:
        self.asked |= set(dict.keys(self))
        return super().values()


def check_usable(row: Row, columns: Collection[str]) -> None:
    """Raises `ValueError` where the row is another task without a column that is not among `columns`."""
    for name in UNUSABLE:
        if name not in columns and not is_empty(row.values.get(name)):
            raise ValueError(f"'{name}' cannot be used")


def unread(row: Row, columns: Collection[str]) -> Iterator[str]:
    """The columns of a row, and the keys within them, that hold something and are not read; `columns` are read."""
    for name, value in row.values.items():
        if name not in columns:
            if isinstance(value, dict):
                yield from (f"'{name}.{key}'" for key, inner in value.items() if not is_empty(inner))
            elif not is_empty(value):
                yield f"'{name}'"
        elif isinstance(value, Looked):
            yield from (f"'{name}.{key}'" for key in value.left())
        else:
            try:
                yield from sorted(set(unread_of_chat(name, cell(row, name), "chosen" not in columns)))
            except ValueError:  # a cell that cannot be read, and that its reader has refused or not needed
                continue


def unread_in(rows: Iterable[Row], columns: Collection[str]) -> Counter[str]:
    """The same of many rows, with the number of rows that hold something there."""
    return Counter(name for row in rows for name in unread(row, columns))


def unread_notes(counts: Counter[str]) -> list[str]:
    """Sentences on what nobody reads, with the number of rows that hold something there, and on text parts."""
    joined = counts[JOINED]
    counts = Counter({name: count for name, count in counts.items() if name != JOINED})
    named = [f"{shortened(name)} ({count:,} rows)" for name, count in counts.most_common(NAMED)]
    more = f" and {len(counts) - NAMED:,} more" if len(counts) > NAMED else ""
    notes = [f"Not read: {', '.join(named)}{more}."] if counts else []
    together = f"{joined:,} rows hold {JOINED}, which are joined with nothing between, as chat templates join them."
    return [*notes, together] if joined else notes


def written_notes(what: str, texts: Sequence[str]) -> list[str]:
    """A sentence where texts are lists or objects as a table's cells hold them; their author may not have meant the text."""
    if len(texts) < 2 or not all(map(_is_written, texts[:TRIED])):
        return []
    return [f"The {what} are lists or objects, written as text, and stay text; if they are meant as values, use JSONL."]


def _is_written(text: str) -> bool:
    if not text.strip().startswith(("[", "{")):
        return False
    try:
        return isinstance(written(text), list | dict)
    except ValueError:
        return False
