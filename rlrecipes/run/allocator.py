"""How the C library's allocator, and that of a GPU, treat the large, short-lived tensors of a training step."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's numbers for `mallopt(3)`."""


OPTIONS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""PyTorch's names for its allocator's options: today's, and those of earlier versions."""


def grow_in_place() -> None:
    """Lets a GPU's allocator enlarge what it has instead of taking new segments, unless the user chose otherwise.

    Rows of ever other lengths leave gaps that no later tensor fits into (PyTorch's notes on CUDA semantics,
    `expandable_segments`). It counts from the first use of the GPU on.
    """
    if not any(name in os.environ for name in OPTIONS):
        os.environ[OPTIONS[0]] = "expandable_segments:True"


def keep_freed_memory() -> None:
    """Lets glibc keep up to 1 GiB of freed memory, and map only blocks above 32 MiB; without glibc it does nothing.

    By default glibc gives memory back to the system after a step and takes it again, page by page, in the next: a tenth to a
    quarter of a training step on a CPU. 32 MiB is the most that every version of glibc accepts.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(MMAP_THRESHOLD, 32 << 20)
    mallopt(TRIM_THRESHOLD, 1 << 30)
