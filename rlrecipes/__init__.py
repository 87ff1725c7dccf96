"""Recipes that fine-tune a language model with a reward on one GPU.

    from rlrecipes import load_profile, run_recipe

    records = run_recipe("translation", load_profile("tiny", ["sft.max_steps=50"]), data="pairs.jsonl")

docs/python.md says more. Importing the package imports nothing else: each name comes from its module at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlrecipes.errors import UserError
    from rlrecipes.pipeline import run_recipe
    from rlrecipes.profile import load_profile
    from rlrecipes.recipe import load_recipe

__version__ = "0.1.0"
__all__ = ["UserError", "load_profile", "load_recipe", "run_recipe"]

_HOMES = {"UserError": "errors", "load_profile": "profile", "load_recipe": "recipe", "run_recipe": "pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlrecipes' has no attribute '{name}'")
    return getattr(importlib.import_module(f"rlrecipes.{_HOMES[name]}"), name)
