"""Answers that begin with their prompt, where a file writes them so, are freed of it.

    {"prompt": "Hello!", "completion": "Hello! Hi, you."}

becomes `{"prompt": "Hello!", "completion": "Hi, you."}`.
"""

from __future__ import annotations

import re

from rlrecipes.data.files import Row, column_names
from rlrecipes.data.readers import BESIDE

NEARLY_ALL = 0.9
"""The share of a column's answers that has to repeat the prompt; a few also do so where it is not the file's way."""
ANSWERS = ("chosen", "rejected", "completion", "response", "output", "answer_a", "answer_b", "response_a", "response_b")
"""Columns of one answer, which some files begin with the prompt."""


def without_prompts(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows of a file in which nearly all answers of a column, as texts, start with their prompt: without it."""
    notes: list[str] = []
    names = column_names(rows)
    asks = next((name for name in ("prompt", "instruction") if name in names), "prompt")
    for column in ANSWERS:
        freed = [_freed(row, asks, column) for row in rows]
        count = sum(text is not None for text in freed)
        of = sum(bool(row.values.get(asks) and row.values.get(column)) for row in rows)
        if of > 1 and count >= NEARLY_ALL * of:
            rows = [
                row if text is None else row._replace(values={**row.values, column: text})
                for row, text in zip(rows, freed, strict=True)
            ]
            notes.append(f"The {asks} is taken off the start of '{column}', which repeats it in {count:,} rows.")
        elif count:
            notes.append(f"'{column}' starts with the {asks} in {count:,} of {of:,} rows, and stays as it is.")
    return rows, notes


def _freed(row: Row, asks: str, column: str) -> str | None:
    """An answer behind its prompt, and behind what an instruction is about; None where it repeats none or nothing follows."""
    prompt, answer = row.values.get(asks), row.values.get(column)
    if not isinstance(prompt, str) or not isinstance(answer, str) or not prompt.strip():
        return None
    rest = answer.lstrip()
    if not rest.startswith(prompt.strip()):
        return None
    rest = rest.removeprefix(prompt.strip()).lstrip()
    for name in BESIDE if asks == "instruction" else ():
        about = row.values.get(name)
        # Whole, with the answer apart from it: an answer may also begin as the input does.
        if isinstance(about, str) and (repeated := re.match(rf"{re.escape(about.strip())}\s+", rest)):
            rest = rest[repeated.end() :]
    return rest or None
