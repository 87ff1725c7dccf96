"""One try of the command line in a forked child, and what came of it.

    Outcome("files", "cut.jsonl", "told", "error: cut.jsonl, row 1 (the last line) is cut off; …", 0.1)

The parent pays for the imports once; a child is as fresh as the parent is.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlrecipes.__main__ import main

LONGEST = 300
"""Characters of an error."""


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    kind: str
    case: str
    result: str
    """`told`: refused in one line with status 2; `same`: every byte as without it; `changed`: a setting took effect; `fell`:
    anything else."""
    detail: str
    seconds: float


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    """Its exit status; negative: the signal that killed it."""
    errors: str
    """What it wrote to standard error."""
    seconds: float


def forked(work: Callable[[], int], output: Path, limit: float, memory: int | None = None) -> Ended:
    """Runs `work` in a child, killed after `limit` seconds, that may take `memory` bytes more than the parent has.

    `output` gets standard output; `output` with `.err` behind it standard error.
    """
    errors, started = output.with_name(output.name + ".err"), time.monotonic()
    child = os.fork()
    if child == 0:
        gc.freeze()  # stages collect garbage often, and need not look through the libraries each time
        os.setsid()
        for path, handle in ((output, 1), (errors, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), handle)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if memory is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
        try:
            status = work()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    status = _waited(child, started + limit)
    return Ended(status, errors.read_text(encoding="utf-8", errors="replace"), round(time.monotonic() - started, 1))


def _waited(child: int, deadline: float) -> int:
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(argv: Sequence[str], home: Path) -> Callable[[], int]:
    """The command line in the folder `home`."""

    def work() -> int:
        os.chdir(home)
        return main(list(argv))

    return work


def fault_of(ended: Ended) -> str | None:
    """Why a refusal is none that a person can use: its last line is the error, short, and nothing is a traceback."""
    lines = ended.errors.strip().splitlines()
    if ended.status < 0:
        return f"killed by signal {-ended.status} after {ended.seconds} s"
    if "Traceback" in ended.errors:
        return f"a traceback: {lines[-1]}"
    if ended.status != 2 or not lines or not lines[-1].startswith("error: "):
        return f"status {ended.status} and {lines[-1:] or 'not a word'}"
    if sum(line.startswith("error: ") for line in lines) > 1:
        return "more than one error"
    if len(lines[-1]) - len("error: ") > LONGEST:
        return f"an error of {len(lines[-1])} characters: {lines[-1][:200]}"
    if not lines[-1].isprintable():
        return f"an error that does not print: {lines[-1]!r}"
    return None
