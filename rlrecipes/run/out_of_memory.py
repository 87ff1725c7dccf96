"""The device's memory: in which phase it ran out, and how a stage gives back all that it held."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from rlrecipes.run.device import is_out_of_memory


class OutOfMemoryError(Exception):
    """The device's memory ran out in a phase of `plan`."""

    def __init__(self, phase: str) -> None:
        super().__init__(phase)
        self.phase = phase


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Names the phase of the block, for the error of memory that runs out in it.

    Raises:
        OutOfMemoryError: instead of the error of torch or of another library.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(name) from None


def release() -> None:
    """Gives back what a stage held that has ended; call it after an `except` block, whose error still holds tensors."""
    if optimizers := sys.modules.get("bitsandbytes.optim"):
        # Beside an 8-bit optimizer, Transformers' trainer registers the model's embeddings here, and nothing removes them.
        optimizers.GlobalOptimManager.get_instance().initialize()
    gc.collect()  # trainers hold their models in circles
    if torch.cuda.is_available():
        with suppress(RuntimeError):  # after a fault the device answers nothing more
            torch.cuda.empty_cache()
