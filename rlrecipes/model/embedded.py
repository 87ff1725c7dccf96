"""Which embedded base a job stands on, answered without the libraries that train one.

    runs/.base/b2857da21bc0e4af/made_of.json
    {"settings": {"vocab_size": 2048, …}, "recipes": ["dialogue", "question_answering", "text_generation", "translation"]}

The folder's name is a fingerprint of settings and documents. Reading all documents takes longer than `show` may, so the
folder also holds what the base was made of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlrecipes.data.made import documents_of
from rlrecipes.errors import UserError
from rlrecipes.profile import BaseSettings
from rlrecipes.recipe import Example, load_recipe, recipe_names
from rlrecipes.run.checksums import MANIFEST, check, files_in, sealed
from rlrecipes.run.folder import read_json, write_json

SHARING = ("dialogue", "question_answering", "text_generation", "translation")
"""The recipes that every base reads."""
FOLDER, MADE_OF, MACHINE = ".base", "made_of.json", "machine.json"
"""The folder of all bases, and two files of each. A base's machine is recorded, since another machine or number of threads
trains another base from the same settings and text."""
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
"""The settings that a base's `config.json` holds too."""


def sources(recipe: str) -> list[str]:
    """The recipes whose documents a recipe's base reads; a recipe without documents of its own stands on the shared base."""
    return [name for name in recipe_names() if name in SHARING or (name == recipe and load_recipe(name).documents)]


def documents(recipe: str) -> list[Example]:
    """The texts that a recipe's base learns from, a prompt with its answer each.

    Raises:
        UserError: there is nothing to read, or one of the recipes whose documents it reads cannot be imported or give them.
    """
    texts = [document for name in sources(recipe) for document in documents_of(load_recipe(name))]
    if not texts:
        raise UserError("no recipe has documents for it; give one of them documents")
    return texts


def key(settings: BaseSettings, documents: Sequence[Example]) -> str:
    """The name of a base's folder: 16 hex digits."""
    text = json.dumps([asdict(settings), [(d.prompt, d.answers) for d in documents]], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def made_of(settings: BaseSettings, recipe: str) -> dict[str, Any]:
    """What tells one base from another, as `made_of.json` has it."""
    return {"settings": asdict(settings), "recipes": sources(recipe)}


def find_base(root: Path, settings: BaseSettings, recipe: str) -> Path | None:
    """The newest of a recipe's bases under these settings; None while there is none.

    A folder without `made_of.json`, as the first ones were, counts if its sizes match.

    Raises:
        UserError: it is damaged.
    """
    sizes = {name: getattr(settings, name) for name in SIZES}
    for path in sorted((root / FOLDER).glob("[!.]*/config.json"), key=lambda path: -path.stat().st_mtime):
        record, config = read_json(path.with_name(MADE_OF)), read_json(path)
        match = record == made_of(settings, recipe) if record else {name: config.get(name) for name in SIZES} == sizes
        if match:
            check_base(path.parent)
            return path.parent.absolute()
    return None


def seal_base(folder: Path) -> None:
    """Writes the checksums of a base's files beside them."""
    files = [path for path in files_in(folder) if path != folder / MANIFEST]
    write_json(folder / MANIFEST, sealed({}, folder, files))


def check_base(folder: Path) -> None:
    """Refuses a base of which a file is damaged; one from before there were checksums has none.

    Raises:
        UserError: with the file and what is wrong with it.
    """
    again = f"delete the folder {folder} and give the same command again, which trains it anew"
    path = folder / MANIFEST
    if path.exists():
        # A manifest that is no JSON object is empty here, and then lacks its own checksum.
        check(read_json(path) or {"files": {}}, folder, MANIFEST, again)
