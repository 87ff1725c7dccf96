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
    """Names what the block does, should memory run out in it.

    Raises:
        OutOfMemoryError: instead of torch's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise OutOfMemoryError(name) from None


def release() -> None:
    """Gives back what a failed stage held; to be called where its error is no longer at hand."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
