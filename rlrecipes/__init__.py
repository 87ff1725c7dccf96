"""Recipes that fine-tune a language model with a reward on one GPU.

    from rlrecipes import load_profile, run_recipe

    records = run_recipe("translation", load_profile("tiny", ["sft.max_steps=50"]), data="pairs.jsonl")

docs/python.md says more. Importing the package imports nothing else: each name comes from its module at its first use.
It sets `UNASKED` though, before any library can read it.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlrecipes.errors import UserError
    from rlrecipes.pipeline import run_recipe
    from rlrecipes.profile import load_profile
    from rlrecipes.recipe import load_recipe

__version__ = "0.1.0"
__all__ = ["UserError", "load_profile", "load_recipe", "run_recipe"]

_HOMES = {"UserError": "errors", "load_profile": "profile", "load_recipe": "recipe", "run_recipe": "pipeline"}

UNASKED = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL tells the hub of every trainer: model type, device, kind of data
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets tells a server which reader opens a folder
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # Transformers has a service open a pull request at a model without safetensors
    "WANDB_ERROR_REPORTING": "false",  # W&B sends measurements of itself, from offline runs too
}
"""What libraries would send that nobody asked for, and the variables that stop it; what you set yourself stays."""

for _name, _value in UNASKED.items():
    os.environ.setdefault(_name, _value)
if "huggingface_hub.constants" in sys.modules and os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1":
    sys.modules["huggingface_hub.constants"].HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rlrecipes' has no attribute '{name}'")
    return getattr(importlib.import_module(f"rlrecipes.{_HOMES[name]}"), name)
