"""Ctrl-C and SIGTERM: a training loop finishes its step and saves; everything else stops at once.

A loop runs inside `finishing_first()` and asks `stop_requested()` after each step. The second signal always stops at once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end, after the work so far was saved; the text says up to where."""


@dataclass
class _Signals:
    requested: bool = False
    loops: int = 0
    """How many `finishing_first()` blocks are open."""


_signals = _Signals()


def stop_requested() -> bool:
    """Whether a signal has asked for the end."""
    return _signals.requested


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Takes SIGINT and SIGTERM over inside the block; call it once, around a whole command."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread take signals over
        yield
        return
    before = {number: signal.signal(number, _on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals.requested = False


@contextlib.contextmanager
def finishing_first() -> Iterator[None]:
    """Lets a loop finish its step: the first signal only sets `stop_requested()`, and the block's end raises.

    Raises:
        Interrupted: a signal came, before the block or in it.
    """
    _act()
    _signals.loops += 1
    try:
        yield
    finally:
        _signals.loops -= 1
    _act()


class TooLongError(BaseException):
    """The block of a `time_limit` took longer. No `Exception`, which a person's own code may swallow."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends a block that takes longer, wherever Python runs it; 0: no limit.

    Only a main thread can be ended so, where the system has alarms. Code inside that sets an alarm of its own takes it over.
    Code that holds the interpreter, or that swallows whatever is raised, ends with its process: twice the time later
    `faulthandler`, which needs no interpreter, writes where it stands to standard error and exits with status 1.

    Raises:
        TooLongError: the time is over.
    """
    main = threading.current_thread() is threading.main_thread()
    if not (seconds and main and hasattr(signal, "setitimer")):
        yield
        return
    before = signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _on_alarm(number: int, frame: FrameType | None) -> None:
    raise TooLongError


def _act() -> None:
    """Raises for a signal that came earlier, even one that a library swallowed during its import."""
    if _signals.requested:
        raise Interrupted


def _on_signal(number: int, frame: FrameType | None) -> None:
    first, _signals.requested = not _signals.requested, True
    if first and _signals.loops:
        # not print: a signal may come in the middle of one
        os.write(2, b"\nfinishing this step, then saving; once more stops at once\n")
    else:
        raise KeyboardInterrupt
