"""Keeps two processes out of one folder, and says which of them is in it.

    runs/tiny/translation/.lock    {"process": 4711, "since": "2026-03-01 12:00:00", "command": "rlrecipes sft translation"}

The file only tells; what locks is the kernel, and that ends with the process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rlrecipes.errors import UserError, option
from rlrecipes.run.console import say
from rlrecipes.run.folder import read_json, write_json
from rlrecipes.text import shortened

HOLDER = ".lock"


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of a folder; makes it if need be, and removes it if it stays empty.

    The lock ends with the process, however that ends.

    Raises:
        UserError: the folder cannot be made, or another process is in it and `wait` is not set.
    """
    import fcntl  # not on Windows, where the rest can still be looked at

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror}); make room for it") from None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            os.close(handle)
            raise UserError(
                f"another process is at work in {folder}{_holder(folder)}; "
                f"wait for it or name another run ({option('run')})"
            ) from None
        say(f"waiting for another process that is at work in {folder}{_holder(folder)}")
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        command = shortened(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
        with contextlib.suppress(OSError):  # a folder that can only be read may be locked too
            record = {"process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "command": command}
            write_json(folder / HOLDER, record)
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        for path in (folder, folder.parent):
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Whether a process is at work in a folder."""
    import fcntl

    if not (folder / HOLDER).exists():
        return False
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _holder(folder: Path) -> str:
    """Who holds a folder's lock, for a sentence; nothing where it did not say so."""
    record = read_json(folder / HOLDER)
    return f" (process {record['process']}, since {record['since']}: {record['command']})" if record else ""
