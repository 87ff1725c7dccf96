"""How the C library's allocator treats the large, short-lived tensors of a training step."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's numbers for `mallopt(3)`."""


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
