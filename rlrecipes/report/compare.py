"""Runs beside one another: what they were asked for, what they reached, and which differences are more than chance.

    kl over mine: chrf +0.031 [+0.012, +0.049] on 300 held-out prompts, better     -> runs/compare-mine-kl/index.html

Two runs that answered the same held-out prompts are compared answer against answer, as policies of one run are. The interval
is over prompts; by how much another seed alone would change a run, only runs with other seeds can say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rlrecipes.errors import UserError, command, has_make
from rlrecipes.metrics import mean_interval
from rlrecipes.recipe import unknown
from rlrecipes.report.listing import find_runs
from rlrecipes.report.numbers import Cell, duration, estimate_cell
from rlrecipes.report.page import write_page
from rlrecipes.report.plots import PREFERENCES, PROGRESS, Plot, overlay
from rlrecipes.report.records import (
    Logs,
    Records,
    columns,
    finished_algorithms,
    finished_records,
    headline_value,
    json_lines,
    last_trained,
    measures_of,
)
from rlrecipes.report.terminal import WIDEST, fitted
from rlrecipes.report.verdict import FEWEST
from rlrecipes.run.folder import Run
from rlrecipes.run.stages import POLICIES
from rlrecipes.text import aligned, number, shortened

MOST = 8
"""Runs on a page: as many as there are colours."""


@dataclass(frozen=True)
class Side:
    """A run of a recipe, with the records of its finished stages."""

    run: Run
    records: Records

    @property
    def settings(self) -> dict[str, Any]:
        """What the run's last finished stage was made with: its settings, then commit, libraries and machine."""
        record = [*self.records.values()][-1] if self.records else {}
        kinds = (("library", "versions"), ("machine", "machine"))
        beside = {f"{kind} {name}": value for kind, key in kinds for name, value in record.get(key, {}).items()}
        return {**record.get("settings", {}), "git commit": record.get("git_commit"), **beside}

    @property
    def headline(self) -> str | None:
        """The headline's name; None before the evaluation."""
        return self.records.get("evaluate", {}).get("headline")

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The evaluation's held-out prompts with each policy's answer."""
        return json_lines(self.run.stage("evaluate") / "samples.jsonl") if self.headline else []

    @property
    def fingerprint(self) -> str:
        """A checksum of the held-out prompts and their references, in their order."""
        asked = [(row["prompt"], row["references"]) for row in self.samples]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    @property
    def scores(self) -> list[float]:
        """The headline of the last policy's answer to each held-out prompt."""
        policy = last_trained(self.records).name
        return [row["policies"][policy]["headline"] for row in self.samples]


@dataclass(frozen=True)
class Pairing:
    """A run against the first one."""

    name: str
    gain: Mapping[str, float] | None
    """In the headline of the last policies; None where the two cannot be paired."""
    verdict: str
    """In words: better, worse, or why nothing can be said."""
    tone: str = "open"


def compare(names: Sequence[str], recipe: str | None = None, root: Path = Path("runs")) -> tuple[Path, str]:
    """Writes the page on some runs, and returns its path and a short text for the terminal.

    Raises:
        UserError: a run is not there, or no recipe is in two of them.
    """
    tasks = sides_of(names, recipe, root)
    title = ", ".join(names)
    folder = root / _name(names)
    write_page(folder, "compare.html.j2", title=f"Runs {title}", tasks=[_values(*task) for task in tasks.items()])
    return folder / "index.html", "\n\n".join(_text(*task) for task in tasks.items())


def _name(names: Sequence[str]) -> str:
    whole = "-".join(["compare", *names])
    return whole if len(whole) <= 100 else f"{whole[:90]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def sides_of(names: Sequence[str], recipe: str | None, root: Path) -> dict[str, list[Side]]:
    """The named runs by recipe, for each recipe that at least two of them have."""
    there = find_runs(root)
    known = list(dict.fromkeys(run.name for run in there))
    for name in names:
        if name not in known:
            raise UserError(unknown("run", name, known, f"see `{command('runs')}`"))
    if len(set(names)) < max(2, len(names)) or len(names) > MOST:
        how = " (RUNS='…')" if has_make() else ""
        which = f"of these: {', '.join(known)}" if known else f"there are none yet, and `{command('demo')}` makes some"
        raise UserError(f"name two to {MOST} runs, each once{how}; {which}")
    found = [run for name in names for run in there if run.name == name and recipe in (None, run.recipe)]
    recipes = list(dict.fromkeys(run.recipe for run in found))
    tasks = {task: [run for run in found if run.recipe == task] for task in recipes}
    if not any(len(runs) > 1 for runs in tasks.values()):
        what = "no recipe" if recipe is None else f"no {recipe}"
        raise UserError(f"{', '.join(names)} have {what} in common; see `{command('runs')}`")
    return {task: [Side(run, finished_records(run)) for run in runs] for task, runs in tasks.items() if len(runs) > 1}


def changes(sides: Sequence[Side]) -> dict[str, list[Any]]:
    """The settings in which the runs differ, with each run's value; None where a run has not come so far."""
    found = {}
    for key in dict.fromkeys(key for side in sides for key in side.settings):
        # a term of weight 0 is not among a run's settings, though its other terms are
        usual = [0 if key.startswith("terms.") and "terms.learned" in side.settings else None for side in sides]
        values = [side.settings.get(key, other) for side, other in zip(sides, usual, strict=True)]
        if len({json.dumps(value) for value in values if value is not None}) > 1:
            found[key] = values
    return found


def pairings(sides: Sequence[Side]) -> list[Pairing]:
    """Every other run against the first."""
    return [_pairing(sides[0], side) for side in sides[1:]]


def _pairing(first: Side, other: Side) -> Pairing:
    policies = [last_trained(side.records).policy.title for side in (other, first)]
    names = [side.run.name for side in (other, first)]
    if policies[0] != policies[1]:
        names = [f"{policy} of {run}" for policy, run in zip(policies, names, strict=True)]
    name = " over ".join(names)
    if missing := [side.run.name for side in (first, other) if side.headline is None]:
        return Pairing(name, None, f"cannot be paired: {' and '.join(missing)} has no evaluation yet")
    if first.headline != other.headline:
        return Pairing(name, None, f"cannot be paired: one is judged by {first.headline}, one by {other.headline}")
    if first.fingerprint != other.fingerprint:
        return Pairing(name, None, "cannot be paired: they answered different held-out prompts")
    gain = mean_interval([b - a for a, b in zip(first.scores, other.scores, strict=True)]).as_json()
    if len(first.scores) < FEWEST:
        return Pairing(name, gain, f"too few held-out prompts ({len(first.scores)}) to tell")
    if gain["low"] > 0 or gain["high"] < 0:
        verdict, tone = ("better", "better") if gain["low"] > 0 else ("worse", "worse")
        return Pairing(name, gain, f"{verdict}, on {len(first.scores)} held-out prompts", tone)
    return Pairing(name, gain, f"no difference shown on {len(first.scores)} held-out prompts")


def over_seeds(sides: Sequence[Side]) -> list[list[str]]:
    """For runs that differ in nothing but the seed: how many, and mean and standard deviation of each headline and gain."""
    groups: dict[str, list[Side]] = {}
    for side in sides:
        if side.headline is not None:
            settings = {**side.records["evaluate"]["settings"], "seed": None}
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(side)
    rows, shown = [], columns(side.records for side in sides)
    for group in groups.values():
        if len(group) > 1:
            values = [[_value(headline_value(side.records, policy)) for side in group] for policy in shown.policies]
            gains = [_value(measures_of(side.records, shown.pair.name).get("gain")) for side in group]
            seeds = ", ".join(str(side.settings["seed"]) for side in group)
            rows.append([seeds, *(_mean(v) for v in values), _mean(gains, signed=True)])
    return rows


def _value(estimate: Mapping[str, float] | None) -> float | None:
    return None if estimate is None else estimate["value"]


def _mean(values: Sequence[float | None], signed: bool = False) -> str:
    """`0.953 ± 0.004`: mean and standard deviation over seeds; a dash where a run has none."""
    there = [value for value in values if value is not None]
    if len(there) < len(values):
        return "–"
    return f"{number(fmean(there), signed=signed)} ± {number(stdev(there))}"


def _heads(sides: Sequence[Side]) -> list[str]:
    return columns(side.records for side in sides).heads


def _results(sides: Sequence[Side]) -> list[tuple[str, list[Cell]]]:
    """Each run's name and cells: headline, every policy's value, gain, reward gain, time."""
    rows, shown = [], columns(side.records for side in sides)
    for side in sides:
        pair = measures_of(side.records, shown.pair.name)
        cells = [
            Cell(side.headline or "–"),
            *(estimate_cell(headline_value(side.records, policy)) for policy in shown.policies),
            *(estimate_cell(pair.get(name), signed=True) for name in ("gain", "reward_gain")),
            Cell(duration(sum(record.get("seconds", 0) for record in side.records.values()))),
        ]
        rows.append((side.run.name, cells))
    return rows


def _text(recipe: str, sides: Sequence[Side]) -> str:
    """The short text for a terminal."""
    heads, results = [recipe, "headline", *_heads(sides)], _results(sides)
    lines = aligned([heads, *([name, cells[0].value, *map(_whole, cells[1:-2])] for name, cells in results)])
    if max(map(len, lines)) > WIDEST:  # the page has the policies' own intervals
        rows = [[name, *(cell.value for cell in cells[:-3]), _whole(cells[-3])] for name, cells in results]
        lines = fitted([heads, *rows], ["headline"])
    for pairing in pairings(sides):
        gain = "" if pairing.gain is None else " ".join(estimate_cell(pairing.gain, signed=True)) + ", "
        lines.append(f"{pairing.name}: {gain}{pairing.verdict}")
    for seeds, *values in over_seeds(sides):
        named = ", ".join(f"{head} {value}" for head, value in zip(_heads(sides), values, strict=True))
        lines.append(f"mean ± deviation over the seeds {seeds}: {named}")
    if found := changes(sides):
        lines.append(f"they differ in {shortened(', '.join(found), 200)}")
    return "\n".join(lines)


def _whole(cell: Cell) -> str:
    return " ".join(cell).strip()


def _trained(sides: Sequence[Side]) -> dict[str, Logs]:
    """The logs of the runs' training, by run, for curves on the same axes.

    Where no run has more than one algorithm, that is one set, without a name; else one for each algorithm, by its title.
    """
    logs = {
        side.run.name: {
            name: json_lines(side.run.stage(name) / "log.jsonl") for name in finished_algorithms(side.records)
        }
        for side in sides
    }
    if all(len(own) < 2 for own in logs.values()):
        return {"": {run: [row for rows in own.values() for row in rows] for run, own in logs.items()}}
    names = dict.fromkeys(name for own in logs.values() for name in own)
    return {POLICIES[name].title: {run: own.get(name, ()) for run, own in logs.items()} for name in names}


def _progress(name: str, logs: Logs) -> list[Plot | None]:
    terms = sorted({key for rows in logs.values() for row in rows for key in row if key.startswith("terms/")})
    weighted = [(key, f"Term: {key.partition('/')[2]}", "before its weight") for key in terms]
    curves = (PROGRESS[0], *weighted, *PROGRESS[1:], *PREFERENCES)
    return [overlay(logs, key, f"{name}: {title}" if name else title, note) for key, title, note in curves]


def _values(recipe: str, sides: Sequence[Side]) -> dict[str, Any]:
    """The template's values for one recipe."""
    plots = [plot for name, logs in _trained(sides).items() for plot in _progress(name, logs)]
    for stage, title in (("sft", "SFT loss"), ("reward", "Reward model loss")):
        logs = {side.run.name: json_lines(side.run.stage(stage) / "log.jsonl") for side in sides}
        plots.append(overlay(logs, "loss", title, "on its training batches"))
    return {
        "recipe": recipe,
        "runs": [side.run for side in sides],
        "headline": sides[0].headline or "the headline",
        "heads": _heads(sides),
        "results": _results(sides),
        "pairings": pairings(sides),
        "seeds": over_seeds(sides),
        "changes": changes(sides),
        "plots": [plot for plot in plots if plot is not None],
    }
