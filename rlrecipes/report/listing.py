"""All runs of a folder in one table, from their records alone: nothing is checked, so it is there at once.

run   recipe       headline        last policy               over SFT                 profile  model    state
tiny  translation  chrf            PPO 0.959 [0.951, 0.966]  +0.195 [+0.178, +0.209]  tiny     builtin  finished 2026-…
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from rlrecipes.errors import UserError
from rlrecipes.report.numbers import estimate_cell
from rlrecipes.report.records import Records, headline_value, last_trained
from rlrecipes.run.folder import DONE, Run, read_json
from rlrecipes.run.lock import is_held
from rlrecipes.run.settings import NAME, read_settings
from rlrecipes.run.stages import STAGES
from rlrecipes.text import aligned, shortened

HEADS = ("run", "recipe", "headline", "last policy", "gain", "profile", "model", "state", "date")


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
    """A line for each run: its headline with the interval, the gain, what it was begun with, and how far it is."""
    return "\n".join(aligned([HEADS, *map(_row, runs)]))


def _row(run: Run) -> list[str]:
    records = {stage: record for stage in STAGES if (record := read_json(run.stage(stage) / DONE))}
    try:
        own = read_settings(run.folder / NAME)
        begun = [own.profile, shortened(_short(str(own.tables.get("model", {}).get("name", "–"))), 30)]
    except UserError:
        begun = ["–", "–"]
    return [run.name, run.recipe, *_results(records), *begun, *_state(run, records)]


def _short(model: str) -> str:
    """A hub id as it is, a folder's last part: of a long path that tells more than its beginning."""
    return Path(model).name if Path(model).is_absolute() else model


def _results(records: Records) -> list[str]:
    pair, evaluation = last_trained(records), records.get("evaluate", {})
    value = headline_value(records, pair.name)
    if value is None:
        return ["–", "–", "–"]
    gain = " ".join(estimate_cell(pair.measures.get("gain"), signed=True))
    reached = f"{pair.policy.title} {' '.join(estimate_cell(value))}"
    return [str(evaluation.get("headline")), reached, f"{gain} over {pair.over.title}"]


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
