"""The end of a process, which threads of a person's own code do not keep from ending.

the threads 'poll' of a recipe are still at work and end here; start such a thread with daemon=True, or end it
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from rlrecipes.run.console import shown
from rlrecipes.run.processes import broken
from rlrecipes.text import shortened

PATIENCE = 10.0
"""Seconds that threads have to end by themselves, as those of an executor do."""


def leave(command: Callable[[], int]) -> NoReturn:
    """Runs a command and ends the process with its status: at most `PATIENCE` seconds later, whatever threads it started.

    Python itself waits for every thread that is no daemon, and for one that never ends it waits for ever.
    """
    status = 1
    try:
        status = command()
        if broken():  # what still waits for a process that is gone keeps Python from ending
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        sys.exit(status)
    finally:
        if _others():
            timer = threading.Timer(PATIENCE, _end, [status])
            timer.daemon = True
            timer.start()
            atexit.register(timer.cancel)  # called when Python has waited for all of them


def _others() -> list[str]:
    """The names of the threads that Python would wait for."""
    main = threading.main_thread()
    return [thread.name for thread in threading.enumerate() if thread is not main and not thread.daemon]


def _end(status: int) -> None:
    with contextlib.suppress(Exception):  # an output that breaks keeps no process either
        names = shortened(", ".join(f"'{name}'" for name in _others()), 80)
        advice = "start such a thread with daemon=True, or end it"
        print(shown(f"the threads {names} of a recipe are still at work and end here; {advice}"), file=sys.stderr)
        sys.stderr.flush()
        sys.stdout.flush()
    os._exit(status)
