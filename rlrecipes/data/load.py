"""A recipe's data: the built-in world where it has one, or files of the user's own (`hub` has the public data sets).

    data/train.jsonl, row 1: {"prompt": "Hello!", "completion": "Hello, what can I do for you?", "score": 0.9}

gives a `Rating`. What training needs and the files do not bring (a held-out split, demonstrations, comparisons) is made
here from what they do bring, and told in `Data.notes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from rlrecipes.data.derive import Part, complete, derivation_notes
from rlrecipes.data.layouts import check_names
from rlrecipes.data.split import canonical, split
from rlrecipes.errors import UserError
from rlrecipes.recipe import BUILT_IN, Data, Recipe


def load(recipe: Recipe, source: str | None, columns: Mapping[str, str]) -> Data:
    """The data of a recipe: its built-in world, or what the file or folder `source` holds.

    `columns` says which column of the files is read under which name: `{"target": "post_edit"}`.

    Raises:
        UserError: no file is named and the recipe has no world, or whatever is wrong with the files, in one sentence.
    """
    if source in (None, BUILT_IN):
        if columns:
            raise UserError(
                "--columns maps the columns of a file, but no file is named; name one with DATA=… or --data"
            )
        return _world(recipe)
    check_names(recipe, columns)
    train, held_out, dropped, notes = split(recipe, source, columns)
    return finished(recipe, source, complete(recipe, train), complete(recipe, held_out), notes, dropped)


def _world(recipe: Recipe) -> Data:
    if recipe.builtin is None:
        hub = "DATA=hub, or " if recipe.hub else ""
        raise UserError(
            f"{recipe.name} has no built-in data; bring your own as {hub}DATA=<file> with the columns "
            f"{', '.join(recipe.columns.required)} (or --data; docs/own-data.md has other layouts), "
            "and with PROFILE=tiny a base model as MODEL=…"
        )
    return recipe.builtin()


def finished(
    recipe: Recipe, source: str, training: Part, judged: Part, notes: list[str], dropped: Mapping[str, int]
) -> Data:
    """The data of two splits, with a judge fitted to the held-out one where the recipe has such."""
    judge = recipe.judge(judged.prompts) if recipe.judge else None
    if judge:
        notes.append(f"The metric {judge.name} is a judge fitted to the held-out rows alone.")
    return Data(
        source=source,
        demonstrations=training.demonstrations,
        prompts=training.prompts,
        comparisons=training.comparisons,
        held_out=judged.prompts,
        held_out_comparisons=judged.comparisons,
        ratings=training.ratings,
        held_out_ratings=judged.ratings,
        notes=notes + derivation_notes(training, judged),
        dropped=dropped,
        metrics=(judge,) if judge else (),
    )


def fingerprint(data: Data) -> str:
    """16 hex digits that change with anything that is trained on or judged by, and not with where it was read from."""
    parts = (
        data.demonstrations,
        data.prompts,
        data.comparisons,
        data.held_out,
        data.held_out_comparisons,
        data.ratings,
        *((data.held_out_ratings,) if data.held_out_ratings else ()),  # data without any keep the fingerprint they had
    )
    return hashlib.sha256(canonical([list(part) for part in parts]).encode()).hexdigest()[:16]
