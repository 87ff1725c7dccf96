"""The code of a reward's terms, so that a PPO which was interrupted goes on under no other reward.

code_of(recipe.reward) -> "5e884898da280471…"
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from pathlib import Path
from typing import Any

import rlrecipes
from rlrecipes.profile import Function
from rlrecipes.recipe import Reward

OURS = Path(rlrecipes.__file__).parent


def code_of(reward: Reward) -> str | None:
    """A digest of the Python files beside the terms' functions, and of the files that `reward.function` names.

    None where no term has a file of somebody's own.
    """
    scores = [term.score for term in reward.terms]
    folders = {file.parent for score in scores if (file := _file_of(score)) and OURS not in file.parents}
    files = {path for folder in folders for path in folder.glob("*.py")}
    files |= {score.file.resolve() for score in scores if isinstance(score, Function)}
    if not files:
        return None
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _file_of(function: Any) -> Path | None:
    """The file that a function, or the class of a callable object, is written in; None for those of a console."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        return Path(inspect.getfile(function if inspect.isroutine(function) else type(function))).resolve()
    except (TypeError, OSError):
        return None
