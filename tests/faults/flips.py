"""A bit flips in a file of a run, of its base or of an interrupted stage, and somebody goes in by one of the doors.

    runs/road/translation/sft/adapter/adapter_model.safetensors is damaged (it has been changed: …); make its stage again …

It is told, or it makes no difference to what comes out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import kills
from conftest import ROOT

from faults.attempt import Ended, Outcome, command, fault_of, forked

FLIPS, SECONDS = 1000, 300
OPTIONS = kills.ROAD[1:]
OTHER = [part for part in OPTIONS if not part.startswith("reward.")]
OTHER[OTHER.index("road")] = "other"
DOORS: dict[str, Sequence[str]] = {
    "again": kills.ROAD,
    "ppo": ("ppo", *OPTIONS, "--force"),
    "answers": ("answers", *OPTIONS, "--force"),
    "evaluate": ("evaluate", *OPTIONS, "--force"),
    "report": ("report", *OPTIONS, "--force"),
    "reward.model": ("reward", *OTHER, "reward.model=runs/road/translation/reward/adapter"),
    "chat": ("chat", "translation", "--run", "road"),
    "export": ("export", "translation", "--run", "road"),
}
"""Who uses what a finished run has left."""
KILLED = 0.7
"""The part of the road after which a second run is killed; the same command goes on with it."""


def outcomes(folder: Path, done: set[str], flips: int = FLIPS) -> Iterator[Outcome]:
    """A process of its own: a child that is forked after a backward pass cannot make one."""
    listed = folder / "done.txt"
    listed.write_text("\n".join(done), encoding="utf-8")
    arguments = [sys.executable, "-m", "faults.flips", str(folder), str(listed), str(flips)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"kind"'):
                yield Outcome(**json.loads(line))
    if process.returncode:
        yield Outcome("flips", "all", "fell", f"the process ended with {process.returncode}", 0)


def tried(folder: Path, done: set[str], flips: int) -> Iterator[Outcome]:
    """Every flip on a fresh copy of a whole run, or of a killed one; each has a seed of its own."""
    kills.load()
    here, whole, killed = (folder / name for name in ("home", "whole", "killed"))
    for place in (here, whole, killed):
        shutil.rmtree(place, ignore_errors=True)
    changes = kills.counted(lambda: kills.road(kills.made(folder, here.name)))
    sft = ("sft", *OTHER, "reward.model=runs/road/translation/reward/adapter")
    assert forked(command(sft, here), folder / "output", SECONDS).status == 0
    here.rename(whole)  # and back for each flip: adapters name their base by its whole path
    assert (
        kills.forked(lambda: kills.road(kills.made(folder, here.name)), kills.Moment(change=int(KILLED * changes)))
        == -9
    )
    here.rename(killed)
    expected = {door: _gone_in(folder, whole, door)[1] for door in DOORS}
    whole_road = {name: value for name, value in kills.results(whole).items() if "README.md" not in name}
    for seed in range(flips):
        draw = random.Random(seed)
        half = draw.random() < 0.2  # of what lies on the disk, this much is half done
        home = killed if half else whole
        path = draw.choice(_files(home))
        door = "again" if half else draw.choice(list(DOORS))
        case = f"{seed}: {path.relative_to(home)}, {door}"
        if case in done:
            continue
        place, bit = draw.randrange(path.stat().st_size), 1 << draw.randrange(8)
        started = time.monotonic()

        def flip(copy: Path, path: Path = path, place: int = place, bit: int = bit, home: Path = home) -> None:
            with (copy / path.relative_to(home)).open("r+b") as file:
                file.seek(place)
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes([byte ^ bit]))

        name = str(path.relative_to(home))
        ended, found = _gone_in(folder, home, door, flip, name)
        wanted = whole_road if half else expected[door]
        different = [key for key in {*wanted, *found} - {name} if wanted.get(key) != found.get(key)]
        if half:  # the second run stands beside the whole one alone
            different = [key for key in different if "/other/" not in key and key != "output"]
        last = (ended.errors.strip().splitlines() or [""])[-1]
        if ended.status:
            called = "damaged" in last or "no longer what was written" in last
            wrong = fault_of(ended) or ("" if called else f"it is not called damaged: {last}")
        else:
            wrong = f"byte {place}, bit {bit}: other bytes in {different[:3]}" if different else ""
        result = "fell" if wrong else "told" if ended.status else "same"
        yield Outcome("flips", case, result, wrong or last, round(time.monotonic() - started, 1))


def _files(home: Path) -> list[Path]:
    """Those with something in them, but for the other run's."""
    found = (path for path in sorted((home / "runs").rglob("*")) if path.is_file() and path.stat().st_size)
    return [path for path in found if "other" not in path.parts and "export" not in path.parts]


def _gone_in(
    folder: Path, home: Path, door: str, flip: Callable[[Path], None] = lambda copy: None, name: str = ""
) -> tuple[Ended, dict[str, object]]:
    """Goes in by a door of a copy, in which something is flipped; how that ended, and what lies there then."""
    here, output = folder / "home", folder / "output"
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(home, here)
    flip(here)

    def work() -> int:
        if door == "chat":
            reader, writer = os.pipe()
            os.write(writer, b"Das Kind liest.\n")
            os.close(writer)
            os.dup2(reader, 0)
        return command(DOORS[door], here)()

    ended = forked(work, output, SECONDS)
    if name:
        (here / name).unlink(missing_ok=True)  # nobody has read it
    found = kills.results(here) if ended.status == 0 else {}
    found = {name: value for name, value in found.items() if "README.md" not in name}  # which has the date
    if door == "chat":
        found["output"] = output.read_bytes()
    return ended, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, kind in (("folder", Path), ("done", Path), ("flips", int)):
        parser.add_argument(name, type=kind)
    given = parser.parse_args()
    done = set(given.done.read_text(encoding="utf-8").splitlines())
    for outcome in tried(given.folder, done, given.flips):
        print(json.dumps(dataclasses.asdict(outcome)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
