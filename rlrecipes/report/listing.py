"""All runs of a folder in one table, from their records alone: nothing is checked, so it is there at once.

run   recipe       headline  policy      gain over SFT          state     model    profile
tiny  translation  chrf      PPO 0.959   +0.195 [0.178, 0.209]  finished  builtin  tiny
                             RLOO 0.951  +0.187 [0.170, 0.201]
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rlrecipes.errors import UserError
from rlrecipes.report.numbers import estimate_cell
from rlrecipes.report.records import Records, headline_value, is_algorithm, last_trained, trained_pairs
from rlrecipes.report.terminal import fitted
from rlrecipes.run.folder import DONE, Run, read_json
from rlrecipes.run.lock import is_held
from rlrecipes.run.settings import NAME, read_settings
from rlrecipes.run.stages import STAGES
from rlrecipes.text import shortened

HEADS = ("run", "recipe", "headline", "policy", "gain over SFT", "state", "model", "profile", "date")


def find_runs(root: Path = Path("runs")) -> list[Run]:
    """Every recipe's folder of every run in which a stage was begun, in the order of their names."""
    runs = []
    for folder in sorted(root.glob("[!.]*/[!.]*/")):
        with contextlib.suppress(UserError):  # a folder that no run could be named after is somebody's own
            runs += [Run(folder.parent.name, folder.name, root)] if _begun(folder) else []
    return runs


def _begun(folder: Path) -> bool:
    return (folder / NAME).exists() or any((folder / stage / DONE).exists() for stage in STAGES)


def listing(runs: Sequence[Run]) -> str:
    """Each run's headline and gain, a line for each algorithm, how far it is, and what it was begun with."""
    return "\n".join(fitted([HEADS, *(row for run in runs for row in _rows(run))], HEADS[-3:]))


def _rows(run: Run) -> list[list[str]]:
    records = {stage: record for stage in STAGES if (record := read_json(run.stage(stage) / DONE))}
    try:
        own = read_settings(run.folder / NAME)
        begun = [own.profile, shortened(_short(str(own.tables.get("model", {}).get("name", "–"))), 30)]
    except UserError:
        begun = ["–", "–"]
    state, date = _state(run, records)
    first, *more = _results(records)
    return [
        [run.name, run.recipe, *first, state, *begun[::-1], date],
        *(["", "", "", *row[1:], *[""] * 4] for row in more),
    ]


def _short(model: str) -> str:
    """A hub id as it is, a folder's last part: of a long path that tells more than its beginning."""
    return Path(model).name if Path(model).is_absolute() else model


def _results(records: Records) -> list[list[str]]:
    """The headline's name, what a policy reached, and its gain, of each algorithm; before one is evaluated, of SFT."""
    headline = str(records.get("evaluate", {}).get("headline"))
    pairs = [pair for pair in trained_pairs(records) if is_algorithm(pair.name) and pair.measures]
    rows = []
    for pair in pairs or [last_trained(records)]:
        if (value := headline_value(records, pair.name)) is not None:
            gain = " ".join(estimate_cell(pair.measures.get("gain"), signed=True)).strip()
            gain += "" if pair.policy.over == "sft" else f" over {pair.over.title}"
            rows.append([headline, f"{pair.policy.title} {estimate_cell(value).value}", gain])
    return rows or [["–", "–", "–"]]


def _state(run: Run, records: Records) -> list[str]:
    """How far a run is, and the day of its last finished stage."""
    draft = next((stage for stage in STAGES if run.draft(stage).is_dir()), None)
    last = [*records][-1] if records else None
    date = str(records[last].get("finished", "–"))[:10] if last else "–"
    if is_held(run.folder):
        return [f"at work{f' on {draft}' if draft else ''}", date]
    if draft is not None:
        return [f"interrupted at {draft}", date]
    if last == [*STAGES][-1]:
        return ["finished", date]
    return [f"finished up to {last}" if last else "nothing finished", date]
