"""Tries every kind of fault, and prints a table of tried, told, same bytes, fell.

    PYTHONPATH=.:tests python -m faults --folder runs/faults --kinds files,options

It may be stopped at any moment: what has been tried stands in `<folder>/outcomes.jsonl`, and the same command goes on.
Exit status 0: nothing fell.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from faults import files, flips, killed, options, settings, writes
from faults.attempt import Outcome

KINDS: dict[str, Callable[[Path, set[str]], Iterator[Outcome]]] = {
    "files": files.outcomes,
    "options": options.outcomes,
    "settings": settings.outcomes,
    "kills": killed.outcomes,
    "flips": flips.outcomes,
    "writes": writes.outcomes,
}
"""What tries the cases of a kind, but for those with the names given; its folder is its own."""
RESULTS = {"told": "told", "same": "same bytes", "changed": "other bytes", "fell": "fell"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    record = arguments.folder.resolve() / "outcomes.jsonl"
    record.parent.mkdir(parents=True, exist_ok=True)
    outcomes = tried(record)
    for kind in arguments.kinds.split(","):
        folder = record.parent / kind
        folder.mkdir(exist_ok=True)
        done = {outcome.case for outcome in outcomes if outcome.kind == kind}
        for outcome in KINDS[kind](folder, done):
            outcomes.append(outcome)
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
            if outcome.result == "fell":
                print(f"{kind}: {outcome.case}: {outcome.detail}", flush=True)
    print(table(outcomes))
    return 1 if any(outcome.result == "fell" for outcome in outcomes) else 0


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
