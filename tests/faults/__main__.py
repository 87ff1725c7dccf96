"""Tries every kind of fault, and prints a table of tried, told, same bytes, fell.

    PYTHONPATH=.:tests python -m faults --folder runs/faults --kinds files,options

Kinds run side by side, one on a core. It may be stopped at any moment: what has been tried stands in `<folder>/<kind>.jsonl`,
and the same command goes on. Exit status 0: nothing fell.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults import files, flips, killed, options, settings, writes
from faults.attempt import Outcome

KINDS: dict[str, Callable[[Path, set[str]], Iterator[Outcome]]] = {
    "writes": writes.outcomes,
    "settings": settings.outcomes,
    "kills": killed.outcomes,
    "flips": flips.outcomes,
    "options": options.outcomes,
    "files": files.outcomes,
}
"""What tries the cases of a kind, but for those with the names given; its folder is its own. The longest are first."""
RESULTS = {"told": "told", "same": "same bytes", "changed": "other bytes", "fell": "fell"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    folder, kinds = arguments.folder.resolve(), arguments.kinds.split(",")
    folder.mkdir(parents=True, exist_ok=True)
    if whole := len(kinds) == 1:
        try_all(kinds[0], folder)
    else:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            whole = all([*pool.map(lambda kind: try_apart(kind, folder), kinds)])
    outcomes = [outcome for kind in kinds for outcome in tried(folder / f"{kind}.jsonl")]
    print(table(outcomes))
    return 0 if whole and not any(outcome.result == "fell" for outcome in outcomes) else 1


def try_apart(kind: str, folder: Path) -> bool:
    """Tries a kind in a process of its own, with one thread; whether that came to its end without a fall."""
    command = [sys.executable, "-m", "faults", "--folder", str(folder), "--kinds", kind]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print("".join(f"{line}\n" for line in ended.stdout.splitlines() if not line.startswith("|")), end="", flush=True)
    return ended.returncode == 0


def try_all(kind: str, folder: Path) -> None:
    """Tries all of a kind that was not tried yet."""
    record, place = folder / f"{kind}.jsonl", folder / kind
    place.mkdir(exist_ok=True)
    for outcome in KINDS[kind](place, {outcome.case for outcome in tried(record)}):
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
        if outcome.result == "fell":
            print(f"{kind}: {outcome.case}: {outcome.detail}", flush=True)


def tried(record: Path) -> list[Outcome]:
    """What an earlier call tried; a last line that was cut off is tried again."""
    lines = record.read_text(encoding="utf-8").splitlines(keepends=True) if record.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    record.write_text("".join(whole), encoding="utf-8")
    return [Outcome(**json.loads(line)) for line in whole]


def table(outcomes: list[Outcome]) -> str:
    """One row a kind."""
    rows = [["kind", "tried", *RESULTS.values(), "seconds"]]
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        ours = [outcome for outcome in outcomes if outcome.kind == kind]
        counts = [sum(outcome.result == result for outcome in ours) for result in RESULTS]
        rows.append([kind, *map(str, [len(ours), *counts]), f"{sum(outcome.seconds for outcome in ours):.0f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


if __name__ == "__main__":
    sys.exit(main())
