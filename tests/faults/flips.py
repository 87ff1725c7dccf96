"""A bit flips in a file of a run, of its base or of an interrupted stage, and somebody goes in by one of the doors.

    runs/road/translation/sft/adapter/adapter_model.safetensors is damaged (it has been changed: …); make its stage again …

It goes in by a door that reads the file, and is told: the command refuses it, or says that it goes on without it.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
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
CALLED = ("damaged", "no longer what was written", "is not used")
"""What a line has that tells of damage: a refusal, or the console of a command that goes on with an older checkpoint."""
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
    ways = {whole: _ways(folder, whole, DOORS), killed: _ways(folder, killed, ["again"])}
    whole_road = {name: value for name, value in kills.results(whole).items() if "README.md" not in name}
    for seed in range(flips):
        draw = random.Random(seed)
        half = draw.random() < 0.2  # of what lies on the disk, this much is half done
        home = killed if half else whole
        name = draw.choice(sorted(ways[home]))
        door = draw.choice(ways[home][name])
        case = f"{seed}: {name}, {door}"
        if case in done:
            continue
        offset, bit = draw.randrange((home / name).stat().st_size), 1 << draw.randrange(8)
        started = time.monotonic()

        def flip(copy: Path, name: str = name, offset: int = offset, bit: int = bit) -> None:
            with (copy / name).open("r+b") as file:
                file.seek(offset)
                byte = file.read(1)[0]
                file.seek(offset)
                file.write(bytes([byte ^ bit]))

        ended, found, _ = _gone_in(folder, home, door, flip)
        wanted = whole_road if half else expected[door]
        different = [key for key in {*wanted, *found} - {name} if wanted.get(key) != found.get(key)]
        if half:  # the second run stands beside the whole one alone
            different = [key for key in different if "/other/" not in key and key != "output"]
        said = (folder / "output").read_text(encoding="utf-8", errors="replace") if ended.status == 0 else ended.errors
        called = [line for line in said.splitlines() if any(word in line for word in CALLED)]
        last = (called or ended.errors.strip().splitlines() or [""])[-1].strip()
        if ended.status:
            wrong = fault_of(ended) or ("" if called else f"it is not called damaged: {last}")
        else:
            wrong = f"byte {offset}, bit {bit}: other bytes in {different[:3]}" if different else ""
        result = "fell" if wrong else "told" if called else "same"
        yield Outcome("flips", case, result, wrong or last, round(time.monotonic() - started, 1))


def _ways(folder: Path, home: Path, doors: Iterable[str]) -> dict[str, list[str]]:
    """Each file of a home with something in it, and the doors that open it to read where nothing is damaged."""
    read = {door: _gone_in(folder, home, door)[2] for door in doors}
    names = [str(path.relative_to(home)) for path in sorted((home / "runs").rglob("*")) if path.is_file()]
    ways = {name: [door for door in read if name in read[door]] for name in names if (home / name).stat().st_size}
    return {name: doors for name, doors in ways.items() if doors}


def _gone_in(
    folder: Path, home: Path, door: str, flip: Callable[[Path], None] = lambda copy: None
) -> tuple[Ended, dict[str, object], set[str]]:
    """Goes in by a door of a copy, in which something is flipped; how that ended, what lies there then, what was read."""
    here, output, read = folder / "home", folder / "output", folder / "read.txt"
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(home, here)
    flip(here)

    def work() -> int:
        if door == "chat":
            reader, writer = os.pipe()
            os.write(writer, b"Das Kind liest.\n")
            os.close(writer)
            os.dup2(reader, 0)
        opened: set[str] = set()
        sys.addaudithook(lambda event, given: _note(opened, event, given))
        status = command(DOORS[door], here)()
        read.write_text("\n".join(opened), encoding="utf-8")
        return status

    ended = forked(work, output, SECONDS)
    found = kills.results(here) if ended.status == 0 else {}
    found = {name: value for name, value in found.items() if "README.md" not in name}  # which has the date
    if door == "chat":
        found["output"] = output.read_bytes()
    paths = (Path(os.path.abspath(here / line)) for line in read.read_text(encoding="utf-8").splitlines())
    return ended, found, {str(path.relative_to(here)) for path in paths if path.is_relative_to(here)}


def _note(opened: set[str], event: str, given: tuple[object, ...]) -> None:
    """Notes a file that Python opens to read; only to force it to the disk is something else (`os.open`, without a mode)."""
    if event == "open" and isinstance(given[0], str | Path) and str(given[1]).startswith("r"):
        opened.add(str(given[0]))


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
