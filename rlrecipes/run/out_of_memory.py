"""The device's memory ran out: in which phase."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class OutOfMemoryError(Exception):
    """The device's memory ran out in a phase of `plan`."""

    def __init__(self, phase: str) -> None:
        super().__init__(phase)
        self.phase = phase


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Names the phase of the block, for the error of memory that runs out in it.

    Raises:
        OutOfMemoryError: instead of torch's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(name) from None


def release() -> None:
    """Gives back what a failed stage held; call it after the `except` block, whose error still holds tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
