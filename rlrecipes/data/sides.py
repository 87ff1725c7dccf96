"""The side of each row, training or held out, where a column `split` says it.

{"prompt": "Hello!", "completion": "Hi.", "split": "validation"}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rlrecipes.data.files import Row

SIDES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(
        ("test", "eval", "evaluation", "held_out", "heldout", "held-out", "holdout", "hold_out", "hold-out"), "test"
    ),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
"""What a column `split` may say, and the side that it means."""


def by_split(files: Sequence[list[Row]]) -> tuple[list[list[Row]], list[list[Row]], list[str]]:
    """The training rows of files and the held-out ones, as a column 'split' says, and sentences on it.

    A file without the column is for training. Where the column says something else anywhere, it is no such column.
    """
    sides = [
        [SIDES.get(str(row.values["split"]).strip().lower()) for row in rows if row.values.get("split")]
        for rows in files
    ]
    told = Counter(side for file in sides for side in file)
    if None in told or not told.keys() & {"test", "validation"}:
        return list(files), [], []
    held_out = "test" if told["test"] else "validation"
    notes = [f"The column 'split' holds out {told[held_out]:,} rows."]
    if held_out == "test" and told["validation"]:
        notes.append(f"{told['validation']:,} rows of the validation split are not used, since there is a test split.")
    train = [[_without_split(row) for row in rows if _side(row) == "train"] for rows in files]
    other = [[_without_split(row) for row in rows if _side(row) == held_out] for rows in files]
    return [rows for rows in train if rows], [rows for rows in other if rows], notes


def _side(row: Row) -> str:
    return SIDES[str(row.values.get("split") or "train").strip().lower()]


def _without_split(row: Row) -> Row:
    return row._replace(values={name: value for name, value in row.values.items() if name != "split"})
