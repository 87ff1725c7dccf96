"""The disk fails in the middle of the road: full, broken or read-only. It is told, and the same command goes on afterwards.

    runs/road/translation/.sft/log.jsonl: no space left on device; free space and give the same command again

The road is a process with `failing.c` before the system's calls, so that what the libraries write in Rust and C++ fails too.
Without a C compiler there is nothing to try.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import kills
from conftest import ROOT

from faults.attempt import Outcome, command, fault_of, forked

ROUNDS, TRIES = 21, 20
ALL = 1 << 40
KINDS = {
    "full": (errno.ENOSPC, ALL),
    "broken": (errno.EIO, 1),
    "read-only": (errno.EROFS, ALL),
    "quota": (errno.EDQUOT, 3),
}
"""The error of a disk, and how many calls fail with it."""
SECONDS = 300


def outcomes(folder: Path, done: set[str], rounds: int = ROUNDS, tries: int = TRIES) -> Iterator[Outcome]:
    """Each round is tried whole, from a seed of its own, in a process of its own."""
    if not (compiler := shutil.which("cc")):
        return
    library = folder / "failing.so"
    source = Path(__file__).with_name("failing.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    for seed in range(rounds):
        if f"seed {seed}, end" in done:
            continue
        arguments = [sys.executable, "-m", "faults.writes", str(folder), str(library), str(seed), str(tries)]
        environment = os.environ | {
            "LD_PRELOAD": str(library),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        }
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"kind"') and (outcome := Outcome(**json.loads(line))).case not in done:
                    yield outcome
        if process.returncode:
            yield Outcome("writes", f"seed {seed}, end", "fell", f"the round ended with {process.returncode}", 0)


def tried(folder: Path, library: ctypes.CDLL, seed: int, tries: int) -> Iterator[Outcome]:
    """One round: the road fails `tries` times on its way, and its bytes are those of a whole one."""
    kills.load()
    road, draw = list(kills.ROAD), random.Random(seed)
    for place in folder.glob(f"*-{seed}-*"):
        shutil.rmtree(place)
    whole = kills.made(folder, f"whole-{seed}-0")
    calls = _calls(library, whole, road)
    expected, home, started = kills.results(whole), None, time.monotonic()
    for number in range(tries + 1):
        home = home or kills.made(folder, f"failed-{seed}-{number}")
        kind = draw.choice(list(KINDS))
        error, length = KINDS[kind]
        # The last is free. A road that got through is begun again.
        call = 1 + int(draw.uniform(0, 0.5) * calls) if number < tries else ALL
        started = time.monotonic()

        def work(call: int = call, length: int = length, error: int = error, home: Path = home) -> int:
            _arm(library, call, length, error)
            return command(road, home)()

        ended = forked(work, folder / f"output-{seed}", SECONDS)
        case = f"seed {seed}, {number}: {kind} at call {call}" if number < tries else f"seed {seed}, end"
        if ended.status == 0:
            found = kills.results(home)
            different = [name for name in sorted(expected.keys() | found) if expected.get(name) != found.get(name)]
            result, detail = (
                ("fell", f"different: {different[:3]}") if different else ("same", "every byte is the same")
            )
            home = None
        else:
            wrong = fault_of(ended) or _unsaid(ended.errors, error)
            result, detail = ("fell", wrong) if wrong else ("told", ended.errors.strip().splitlines()[-1])
        yield Outcome("writes", case, result, detail, round(time.monotonic() - started, 1))
    for place in folder.glob(f"*-{seed}-*"):
        shutil.rmtree(place)


def _unsaid(errors: str, error: int) -> str | None:
    last = errors.strip().splitlines()[-1]
    return None if os.strerror(error).lower() in last.lower() else f"it does not say what the disk did: {last}"


def _arm(library: ctypes.CDLL, call: int, length: int, error: int) -> None:
    library.failing_arm(b"/runs", ctypes.c_long(call), ctypes.c_long(length), error)


def _calls(library: ctypes.CDLL, home: Path, road: list[str]) -> int:
    reader, writer = os.pipe()

    def work() -> int:
        _arm(library, 0, 0, 0)
        status = command(road, home)()
        os.write(writer, str(library.failing_count()).encode())
        return status

    ended = forked(work, home / "output", SECONDS)
    assert ended.status == 0, ended.errors[-2000:]
    return int(os.read(reader, 20))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, kind in (("folder", Path), ("library", Path), ("seed", int), ("tries", int)):
        parser.add_argument(name, type=kind)
    given = parser.parse_args()
    library = ctypes.CDLL(str(given.library))
    library.failing_count.restype = ctypes.c_long
    for outcome in tried(given.folder, library, given.seed, given.tries):
        print(json.dumps(dataclasses.asdict(outcome)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
