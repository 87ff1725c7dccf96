"""The side of each row, training or held out, where a column `split` says it.

{"prompt": "Hello!", "completion": "Hi.", "split": "validation"}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rlrecipes.data.files import Row
from rlrecipes.errors import UserError
from rlrecipes.recipe import spelled
from rlrecipes.text import quoted

SIDES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(
        (
            "test",
            "testing",
            "eval",
            "evaluation",
            "held_out",
            "heldout",
            "held-out",
            "holdout",
            "hold_out",
            "hold-out",
            "held out",
            "hold out",
        ),
        "test",
    ),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
}
"""What a column `split` may say, and the side that it means."""


def by_split(files: Sequence[list[Row]]) -> tuple[list[list[Row]], list[list[Row]], list[str]]:
    """The training rows of files and the held-out ones, as a column 'split' says, and sentences on it.

    A file without the column is for training. A column that holds nothing out is no such column.

    Raises:
        UserError: it holds rows out, and says something else of others.
    """
    sides = [[_side(row) for row in rows if row.values.get("split")] for rows in files]
    told = Counter(side for file in sides for side in file)
    if not told.keys() & {"test", "validation"}:
        return list(files), [], []
    if None in told:
        raise _other(next(row for rows in files for row in rows if row.values.get("split") and _side(row) is None))
    held_out = "test" if told["test"] else "validation"
    notes = [f"The column 'split' holds out {told[held_out]:,} rows."]
    if held_out == "test" and told["validation"]:
        notes.append(f"{told['validation']:,} rows of the validation split are not used, since there is a test split.")
    train = [[_without_split(row) for row in rows if _side(row) == "train"] for rows in files]
    other = [[_without_split(row) for row in rows if _side(row) == held_out] for rows in files]
    return [rows for rows in train if rows], [rows for rows in other if rows], notes


def _side(row: Row) -> str | None:
    return SIDES.get(spelled(row.values.get("split") or "train"))


def _other(row: Row) -> UserError:
    """A sentence about a row that is on neither side, in a file that has rows of both."""
    said = quoted(str(row.values["split"]), 20)
    return UserError(
        f"{row.file}, row {row.number}: 'split' is {said}, and test or validation in others; write train, validation or "
        "test, take such rows out, or give the column another name"
    )


def _without_split(row: Row) -> Row:
    return row._replace(values={name: value for name, value in row.values.items() if name != "split"})
