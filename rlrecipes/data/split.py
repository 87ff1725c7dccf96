"""What is trained on and what is held out: drawn by the prompt, so that a prompt is never on both sides."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrecipes.data.files import find
from rlrecipes.data.layouts import Record, records
from rlrecipes.errors import UserError
from rlrecipes.recipe import Example, Prompt, Recipe

HELD_OUT = 1000
"""Held-out prompts that are kept: more make evaluation slow and its interval hardly narrower."""


_TEST = re.compile(r"(?<![a-z])(test|eval)(set|s|uation)?(?![a-z])")


_VALIDATION = re.compile(r"(?<![a-z])(val|valid|validation|dev)(set)?(?![a-z])")


# What is trained on, and what is held out.


def split(
    recipe: Recipe, source: str, columns: Mapping[str, str]
) -> tuple[list[Record], list[Record], dict[str, int], list[str]]:
    """Training records, held-out records, rows dropped by reason, and notes on how the two were told apart."""
    train_files, held_out_files, notes = _files(source)
    train, dropped = _gather(recipe, train_files, columns)
    held_out, dropped_there = _gather(recipe, held_out_files, columns)
    if not held_out_files:
        train, held_out, note = one_in_five(train)
        notes.append(note)
    kept = without_prompts_of(held_out, train)
    reasons = dropped + dropped_there + Counter({"prompt is held out": len(train) - len(kept)})
    check_enough(source, kept, held_out, reasons)
    held_out, cut = at_most(HELD_OUT, held_out)
    return kept, held_out, dict(+reasons), notes + cut


def _files(source: str) -> tuple[list[Path], list[Path], list[str]]:
    """Files of the training split, files of the held-out split (none where no name says so), and notes."""
    paths = find(source)
    if not Path(source).expanduser().is_dir():
        return paths, [], []
    tests = [path for path in paths if _TEST.search(path.name.lower())]
    validations = [path for path in paths if path not in tests and _VALIDATION.search(path.name.lower())]
    train = [path for path in paths if path not in tests and path not in validations]
    notes = [f"{path.name} is not used, since the folder has a test split." for path in validations if tests]
    held_out = tests or validations
    if held_out:
        notes.append(f"The held-out split is {', '.join(path.name for path in held_out)}.")
    return train, held_out, notes


def _gather(recipe: Recipe, paths: Sequence[Path], columns: Mapping[str, str]) -> tuple[list[Record], Counter[str]]:
    kept: list[Record] = []
    dropped: Counter[str] = Counter()
    for path in paths:
        found, reasons = records(recipe, path, columns)
        kept += found
        dropped += reasons
    different = unique(kept)
    dropped["duplicate row"] += len(kept) - len(different)
    return different, dropped


def unique(rows: Sequence[Record]) -> list[Record]:
    """The rows in their order, each only where it first stands."""
    return list(reversed({canonical(row): row for row in reversed(rows)}.values()))


def one_in_five(rows: Sequence[Record]) -> tuple[list[Record], list[Record], str]:
    """Draws by the prompt alone, so that appended rows never move old ones and a prompt is never on both sides."""
    held_out = [row for row in rows if draw(row.prompt) % 5 == 0]
    train = [row for row in rows if draw(row.prompt) % 5 != 0]
    note = f"No file is named as held out, so {len(held_out):,} of {len(rows):,} rows are, drawn by their prompts."
    return train, held_out, note


def draw(prompt: Prompt) -> int:
    return int(hashlib.sha256(canonical(prompt).encode()).hexdigest(), 16)


def without_prompts_of(held_out: Sequence[Record], train: Sequence[Record]) -> list[Record]:
    prompts = {row.prompt for row in held_out}
    return [row for row in train if row.prompt not in prompts]


def check_enough(source: str, train: Sequence[Any], held_out: Sequence[Any], dropped: Counter[str]) -> None:
    left_out = ", ".join(f"{reason}: {count}" for reason, count in dropped.items() if count)
    why = f" (left out: {left_out})" if left_out else ""
    if len(train) < 2:
        raise UserError(
            f"{source} leaves {len(train)} rows to train on{why}; give at least 2, with prompts of their own"
        )
    if not held_out:
        todo = "give more rows with different prompts, or a folder with train.jsonl and test.jsonl"
        raise UserError(f"{source} leaves no rows to hold out for evaluation, of {len(train)}{why}; {todo}")


def at_most(limit: int, held_out: list[Record]) -> tuple[list[Record], list[str]]:
    """The records of `limit` prompts, drawn by hash since files are often sorted, and a note if that cuts."""
    prompts = {row.prompt for row in held_out}
    if len(prompts) <= limit:
        return held_out, []
    kept = set(sorted(prompts, key=draw)[:limit])
    note = f"Of {len(prompts):,} held-out prompts {limit:,} are kept; the others are not trained on either."
    return [row for row in held_out if row.prompt in kept], [note]


def drawn(limit: int, examples: Sequence[Example]) -> list[Example]:
    """`limit` examples in their order, drawn by hash of the prompt: the first ones of a sorted file would be of one kind."""
    chosen = sorted(range(len(examples)), key=lambda i: draw(examples[i].prompt))[:limit]
    return [examples[i] for i in sorted(chosen)]


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: field for name, field in vars(value).items() if not (name == "margin" and field is None)}
    if isinstance(value, Mapping):
        return dict(value)
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
