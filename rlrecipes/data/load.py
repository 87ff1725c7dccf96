"""The door to a recipe's data: its built-in data where it has any, the user's own files, or public sets.

    data/train.jsonl, row 1: {"prompt": "Hello!", "completion": "Hello, what can I do for you?", "score": 0.9}

gives a `Rating`. Files and public sets are sources of such records, and take the same road from there. What they lack (a
held-out split, demonstrations, comparisons) is made from what they bring, and `Data.notes` says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlrecipes.data.derive import check_derived, derivation_notes, derive, grading_of, uniform_mark
from rlrecipes.data.files import Row, find_splits
from rlrecipes.data.hub_sets import read_sets
from rlrecipes.data.layouts import Records, check_names, records, rows_of
from rlrecipes.data.made import builtin_of, caution_of, judge_of
from rlrecipes.data.reasons import counted
from rlrecipes.data.sides import by_split
from rlrecipes.data.split import (
    HELD_OUT,
    Source,
    at_most,
    canonical,
    check_enough,
    hold_out_fifth,
    once_each,
    unread_clause,
    without_held_out_prompts,
)
from rlrecipes.data.unread import unread_notes, written_notes
from rlrecipes.errors import UserError, option
from rlrecipes.recipe import BUILT_IN, HUB, Data, Recipe, is_hub


def load(recipe: Recipe, source: str | None, columns: Mapping[str, str], root: Path) -> Data:
    """The data of a recipe.

    Args:
        source: `built-in` or None: its built-in data; `hub` or `hub:<id>,…`: public sets; otherwise a file or folder.
        columns: the column of the files that is read under each name: `{"target": "post_edit"}`.
        root: the folder of all runs; fetched sets are kept in its `.hub`.

    Raises:
        UserError: the recipe has no built-in data, or the files or sets have a fault, which it names.
    """
    if source is None or source == BUILT_IN:
        if columns:
            raise UserError(
                f"--columns maps the columns of a file, but no file is named; name one with {option('data')}"
            )
        return _built_in(recipe)
    if not is_hub(source):
        check_names(recipe, columns)
        return _data(recipe, source, [_read_files(recipe, source, columns)], columns)
    if columns:
        raise UserError("--columns maps the columns of a file; sets of the hub are read as they are")
    sets = read_sets(recipe, source, root)
    return _data(recipe, f"{HUB}:{','.join(one.name for one in sets)}", sets)


def _built_in(recipe: Recipe) -> Data:
    if recipe.builtin is None:
        hub = f"{option('data', 'hub')}, or " if recipe.hub else ""
        raise UserError(
            f"{recipe.name} has no built-in data; bring your own as {hub}{option('data', '<file>')} with the columns "
            f"{', '.join(recipe.columns.required)} (docs/own-data.md has other layouts), "
            f"and with {option('profile', 'tiny')} a base model as {option('model')}"
        )
    return builtin_of(recipe)


def _read_files(recipe: Recipe, source: str, columns: Mapping[str, str]) -> Source:
    train_paths, held_out_paths, notes = find_splits(source)
    train_files, held_out_files = (
        [rows_of(recipe, path, columns) for path in paths] for paths in (train_paths, held_out_paths)
    )
    train_rows, test_rows, split_notes = by_split([rows for rows, _ in train_files])
    train, drops = _records(recipe, train_rows)
    held_out, held_out_drops = _records(recipe, [*test_rows, *(rows for rows, _ in held_out_files)])
    notes += [*split_notes, *dict.fromkeys(note for _, told in (*train_files, *held_out_files) for note in told)]
    unread = unread_notes(Counter(name for row in (*train, *held_out) for name in row.unread))
    drops += held_out_drops
    answers = [
        *(row.rating.answer for row in train if row.rating),
        *(row.comparison.chosen for row in train if row.comparison),
        *(answer for row in train if row.example for answer in row.example.answers),
    ]
    notes += written_notes("prompts", [row.prompt[-1].content.removeprefix(recipe.prefix) for row in train])
    notes += written_notes("answers", answers)
    return Source(source, train, held_out, drops, notes, unread, undivided=not (held_out_paths or test_rows))


def _records(recipe: Recipe, files: Sequence[list[Row]]) -> Records:
    read = [records(recipe, rows) for rows in files]
    return once_each(([row for rows, _ in read for row in rows], [drop for _, drops in read for drop in drops]))


def _data(recipe: Recipe, name: str, sources: Sequence[Source], columns: Mapping[str, str] = {}) -> Data:
    """The one road of all records: split them by prompt, limit the held-out ones, derive what either split lacks."""
    sources, clashes = without_held_out_prompts([hold_out_fifth(source) for source in sources])
    drops = [drop for source in sources for drop in source.drops] + clashes
    check_enough(name, sources, drops)
    notes = [note for source in sources for note in (*source.notes, *source.unread)]
    limited = [at_most(HELD_OUT, source) for source in sources]
    notes += [note for _, limit_notes in limited for note in limit_notes]
    train_parts = [(source.serves, source.train) for source in sources]
    held_out_parts = [(source.serves, source.held_out) for source, _ in limited]
    grading = grading_of(train_parts) or grading_of(held_out_parts)
    train, counts = derive(recipe, train_parts, grading)
    held_out, held_out_counts = derive(recipe, held_out_parts, grading, held_out=True)
    others = unread_clause(sources)
    column, uniform = uniform_mark(train_parts, columns)
    check_derived(name, train, held_out, grading, column, uniform + others)
    uncompared = "no rejected answer can be made of its rows" if recipe.compare else "the recipe has no `compare`"
    if caution := caution_of(recipe, train.demonstrations):
        notes.append(caution)
    judge = judge_of(recipe, held_out.prompts)
    if judge:
        notes.append(f"The metric {judge.name} is a judge fitted to the held-out rows alone.")
    return Data(
        source=name,
        train=train,
        held_out=dataclasses.replace(held_out, demonstrations=()),
        notes=notes + derivation_notes(counts, held_out_counts),
        dropped=counted(drops),
        lacking=(uniform or uncompared) + others,
        metrics=(*([judge] if judge else []), *(m for source in sources if source.held_out for m in source.metrics)),
        hub=[source.record for source in sources if source.record],
    )


def lists(data: Data) -> dict[str, Sequence[Any]]:
    """All rows for training and evaluation, under the names that `done.json` counts them by, in the fingerprint's order."""
    return {
        "demonstrations": data.train.demonstrations,
        "prompts": data.train.prompts,
        "comparisons": data.train.comparisons,
        "held_out": data.held_out.prompts,
        "held_out_comparisons": data.held_out.comparisons,
        "ratings": data.train.ratings,
        "held_out_ratings": data.held_out.ratings,
    }


def fingerprint(data: Data) -> str:
    """16 hex digits that change with any row for training or evaluation, and not with the place it was read from."""
    # An empty list of held-out ratings, the newest, does not count: finished runs keep their fingerprint.
    rows = [list(part) for name, part in lists(data).items() if part or name != "held_out_ratings"]
    return digest(rows)


def digest(rows: Any) -> str:
    """16 hex digits that change with any of the rows."""
    return hashlib.sha256(canonical(rows).encode()).hexdigest()[:16]
