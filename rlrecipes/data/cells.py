"""Rows from the text of a CSV, whatever stands between its cells.

    source;target
    "Ja; gern.";"Yes, please."

is `(1, {"source": "Ja; gern.", "target": "Yes, please."})`.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError

Numbered = Iterator[tuple[int, Any]]
"""Rows as they stand in a file, each with its number from 1; not yet checked."""

BOM = "\ufeff"
"""The byte-order mark as a character."""
DELIMITERS = (",", ";", "\t", "|")
BEGINNING, ROWS_LOOKED_AT = 1 << 20, 20
"""Characters and rows of a CSV that tell what parts its cells."""
LONGEST_CELL = 2**31 - 1
"""Characters. The csv module's default, 128 Ki, is less than a long document; this is the most that any C long holds."""


def table(path: Path, content: str) -> Numbered:
    """The rows of a CSV by column, each with its number from 1; an empty cell is None.

    Raises:
        UserError: it is no CSV, or its rows do not fit its header.
    """
    csv.field_size_limit(LONGEST_CELL)
    text, delimiter = _dialect(content, tabs=".tsv" in path.name.lower())
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        first = next((cells for cells in reader if cells), [])
        check_width(path, len(first))
        lines = [first, *(cells for cells in reader if cells)] if first else []
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num} is not CSV ({error}); check its quotes") from error
    header = [name.strip() for name in lines[0]] if lines else []
    names = [name or f"column {place}" for place, name in enumerate(header, start=1)]
    refuse_twins(path, names)
    for number, cells in enumerate(lines[1:], start=1):
        if header == [cell.strip(f'{BOM}"').strip() for cell in cells]:
            raise UserError(f"{path}, row {number} is the header once more; delete the line")
        if len(cells) != len(header):
            counts = f"{len(cells)} cells under a header of {len(header)}"
            raise UserError(f"{path}, row {number} has {counts}; put quotes around text that holds {delimiter!r}")
        yield number, {name: cell or None for name, cell in zip(names, cells, strict=True)}


def swallowed(rows: Iterable[tuple[int, Mapping[str, Any]]]) -> list[str]:
    """A sentence on cells that may be several rows: a quote that was meant as text opens a cell that ends at the next."""
    numbers = [number for number, cells in rows if any(_holds_lines(cell) for cell in cells.values())]
    if not numbers:
        return []
    many = f"{len(numbers):,} rows, the first of which is row {numbers[0]}, hold"
    found = many if len(numbers) > 1 else f"Row {numbers[0]} holds"
    advice = "a quote before them opens a cell: double it, and put quotes around its cell"
    return [f"{found} a tab and a line end within quotes; if these are rows of their own, {advice}."]


def _holds_lines(cell: Any) -> bool:
    return isinstance(cell, str) and "\t" in cell and "\n" in cell


def _dialect(text: str, tabs: bool) -> tuple[str, str]:
    """A CSV without the line `sep=;` that some programs put first, and what stands between its cells.

    It is what that line says, else a tab where the file's name says so, else the one, with most names in the header, that
    parts the first rows into as many cells, else a comma, else what gives the header most names.
    """
    if said := re.match(r'"?(?i:sep)=(.)"?\r?\n', text):
        return text[said.end() :], said[1]
    header = re.match(r"[^\r\n]*", text)
    names = header[0] if header else ""
    if tabs and "\t" in names:
        return text, "\t"
    start = text[:BEGINNING]
    fitting = [delimiter for delimiter in DELIMITERS if delimiter in names and _is_even(start, delimiter)]
    if fitting or "," in names:
        return text, max(fitting, key=names.count, default=",")
    return text, max(DELIMITERS, key=names.count)


def _is_even(text: str, delimiter: str) -> bool:
    """Whether the first rows of a CSV have as many cells as its header."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        return len({len(cells) for cells in islice(reader, ROWS_LOOKED_AT) if cells}) == 1
    except csv.Error:
        return False


WIDEST = 10_000
"""The most columns of a file; a row of text has a few, and a table of numbers may have a million."""


def check_width(path: Path, columns: int) -> None:
    """Refuses a row with more columns than any row of text has, before the others are read."""
    if columns > WIDEST:
        raise UserError(f"{path} has {columns:,} columns, as tables of numbers do; keep those that hold the texts")


def refuse_twins(path: Path, names: Sequence[str]) -> None:
    """Refuses columns of one name, of which a row could hold the last alone."""
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{path} has the column '{name}' {count} times; rename all but one")
