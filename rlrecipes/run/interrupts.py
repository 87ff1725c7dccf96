"""Ctrl-C, SIGTERM and a terminal that closes (SIGHUP): a training loop finishes its step and saves; everything else stops at
once.

A loop runs inside `finishing_first()` and asks `stop_requested()` after each step. The second signal always stops at once,
but for SIGHUP, which shell and kernel both send when a terminal closes.
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

from rlrecipes.errors import TooLongError

HANGUP = getattr(signal, "SIGHUP", None)
"""None on Windows."""
LONGEST = 10**8
"""Seconds of a limit, three years: the system's clocks refuse some larger numbers."""


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end, after the work so far was saved; the text says up to where."""


@dataclass
class _Signals:
    requested: bool = False
    loops: int = 0
    """How many `finishing_first()` blocks are open."""
    told: bool = False
    """Whether the command has ended and says so."""


_signals = _Signals()


def stop_requested() -> bool:
    """Whether a signal has asked for the end."""
    return _signals.requested


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Takes the signals over inside the block; call it once, around a whole command. SIGHUP stays ignored under `nohup`."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread take signals over
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:
        numbers.append(HANGUP)
    before = {number: signal.signal(number, _on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _signals.requested = _signals.told = False


def tell_end() -> None:
    """From here to the end of `handled()` a signal finds nothing to interrupt: some senders, as `timeout`, send two."""
    _signals.told = True


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


@contextlib.contextmanager
def time_limit(seconds: float, times: int = 1) -> Iterator[None]:
    """Ends a block that takes longer than `limits.term_seconds`, wherever Python runs it; 0: no limit.

    A block that judges many answers at once has the time of as many `times`.

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
    many = f" for each of {times} answers" if times > 1 else ""

    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise TooLongError(f"took more than limits.term_seconds={seconds:g}{many}")

    allowed = min(seconds * times, LONGEST)
    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, allowed)
    faulthandler.dump_traceback_later(3 * allowed, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _act() -> None:
    """Raises for a signal that came earlier, even one that a library swallowed during its import."""
    if _signals.requested:
        raise Interrupted


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _signals.told:
        return
    first, _signals.requested = not _signals.requested, True
    if first and _signals.loops:
        with contextlib.suppress(OSError):  # Ctrl-C ended the `tee` that read it, too, or the terminal is gone
            # not print: a signal may come in the middle of one
            os.write(2, b"\nfinishing this step, then saving; once more stops at once\n")
    elif first or number != HANGUP:
        raise KeyboardInterrupt
