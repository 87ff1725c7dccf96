"""The library versions that a result depends on, and the one that has no substitute."""

from __future__ import annotations

import importlib.metadata

from rlrecipes.errors import UserError

TRL = "1.12.0"
"""The last release with `PPOTrainer`; 1.13.0 removed it (huggingface/trl pull request 7020)."""
LIBRARIES = ("torch", "trl", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "wandb")


def versions() -> dict[str, str]:
    """The installed version of each library; `none` where it is missing."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def require_trl() -> None:
    """Refuses any other TRL than the one whose PPO these recipes were built on.

    Raises:
        UserError: with the command that mends it.
    """
    found = _version("trl")
    if found != TRL:
        raise UserError(
            f"these recipes need trl {TRL}, the last with PPOTrainer, and found {found}; run: pip install trl=={TRL}"
        )
