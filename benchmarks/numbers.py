"""The figures of the pages: `python -m benchmarks.numbers` fills every block between two marks from the records of runs.

    <!-- numbers: demo -->
    `make demo` on AMD EPYC, 2 cores, 2 threads, torch 2.13.0+cpu, 2026-11-26:
    greedy answers to 300 held-out prompts, 95 % intervals.

    | recipe | headline | base | …
    <!-- end of numbers -->

Runs are not committed, so what a block stands on is kept in `docs/numbers/<name>.json`: its figures, the command that
measured them, and the machine. It is taken anew where the runs are there, and stays as it is where they are not.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import algorithms, results
from benchmarks.cells import estimate, table, value, where
from benchmarks.page import targets_table
from benchmarks.plan import table as plan_table
from benchmarks.times import table as times_table
from rlrecipes.errors import UserError
from rlrecipes.job import make_job
from rlrecipes.model.embedded import MACHINE, SHARING, find_base
from rlrecipes.profile import load_profile
from rlrecipes.recipe import BUILT_IN, recipe_names, unknown
from rlrecipes.report.records import Records, finished_records
from rlrecipes.run.console import say
from rlrecipes.run.folder import Run, read_json, write_json
from rlrecipes.run.stages import POLICIES

ROOT = Path(__file__).resolve().parents[1]
KEPT = "docs/numbers"
TABLES = {**results.TABLES, "results-algorithms": algorithms.algorithms_table}
"""The blocks whose command itself keeps their JSON."""
MARK = re.compile(r"<!-- numbers: (\S+) -->\n(.*?)<!-- end of numbers -->", re.DOTALL)

Record = Mapping[str, Any]
"""What a block shows: `command`, `machine`, `commits`, `date`, and `figures`, whose form is the block's own."""


@dataclass(frozen=True)
class Block:
    """A kind of block."""

    command: str
    """What measures its figures, as a reader gives it."""
    folders: Sequence[str]
    """Where under `runs/` its records lie."""
    read: Callable[[Path], Record] | None
    """From the folder of all runs, in which every one of `folders` is finished; None: the command itself keeps its JSON."""
    markdown: Callable[[Record], str]
    """All between the marks; pure."""


def main(argv: Sequence[str] | None = None) -> int:
    """Takes the figures from the runs that are there, then fills the pages; returns the exit status, 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numbers", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", default="runs", help="the folder of the runs (default: runs)")
    try:
        fill(ROOT, Path(parser.parse_args(argv).runs))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def fill(root: Path, runs: Path) -> None:
    """Fills the blocks of all pages under `root`.

    Raises:
        UserError: a mark names no block or is not closed, or the runs of a block do not belong together. No page has changed.
    """
    texts = {page: page.read_text(encoding="utf-8") for page in pages(root)}
    names = {name: None for page, text in texts.items() for name in names_in(text, page)}
    records = {name: _record(root / KEPT / f"{name}.json", block(name), runs) for name in names}
    for page, text in texts.items():
        if (new := filled(text, records)) != text:
            page.write_text(new, encoding="utf-8")
            say(f"{page.relative_to(root)}: written")


def pages(root: Path) -> list[Path]:
    """The Markdown files that have a block."""
    files = [
        root / "README.md",
        *(path for folder in ("docs", "recipes", "examples") for path in root.glob(f"{folder}/**/*.md")),
    ]
    return sorted(path for path in files if "<!-- numbers" in path.read_text(encoding="utf-8"))


def names_in(text: str, page: Path) -> list[str]:
    """The names of a page's blocks, in order.

    Raises:
        UserError: a mark has no name, or no end.
    """
    found = MARK.findall(text)
    if len(found) != text.count("<!-- numbers") or any("<!-- numbers" in body for _, body in found):
        raise UserError(
            f"{page} has a block of numbers without a name or an end; write '<!-- numbers: demo -->', the block, "
            "'<!-- end of numbers -->'"
        )
    return [name for name, _ in found]


def filled(text: str, records: Mapping[str, Record]) -> str:
    """A page's text with every block made anew."""

    def made(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- numbers: {name} -->\n{block(name).markdown(records[name])}\n<!-- end of numbers -->"

    return MARK.sub(made, text)


def block(name: str) -> Block:
    """The block of a mark: one of the project's own, or a recipe's card.

    Raises:
        UserError: there is none of this name.
    """
    names = recipe_names()
    if name == "demo":
        return Block("`make demo`", [f"tiny/{recipe}/evaluate" for recipe in SHARING], _read_demo, demo)
    if name == "bench":
        return Block("`make bench`", ["bench"], _read_bench, bench)
    if name == "plan-bench":
        return Block("`make plan-bench`", ["plan-bench"], lambda runs: _read_rows(runs, name), plan)
    if name == "time-bench":
        return Block("`make time-bench`", ["time-bench"], lambda runs: _read_rows(runs, name), times)
    if name == "summary":
        command = "`make summary`, after `cp -r examples/summary recipes/`,"
        return Block(command, ["tiny/summary/evaluate"], _read_summary, summary)
    if name in TABLES:
        return Block(results.command(name), [], None, TABLES[name])
    if name in names:
        again = [f"with `RUN={run} SEED={seed}`" for seed, run in enumerate(SEEDS) if seed]
        folders = [f"{run}/{name}/evaluate" for run in SEEDS]
        return Block(f"`make {name}`, and {' and '.join(again)},", folders, lambda runs: _read_card(runs, name), card)
    known = ["demo", "bench", "plan-bench", "time-bench", "summary", *TABLES, *names]
    raise UserError(unknown("block of numbers", name, known, f"there are {', '.join(known)}"))


def _record(kept: Path, block: Block, runs: Path) -> Record:
    """What a block shows: from its runs, which are then kept; where one is not there, what was kept."""
    missing = [runs / folder for folder in block.folders if not (runs / folder / "done.json").exists()]
    command = block.command.rstrip(",")
    if block.read and not missing:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {"command": block.command, **block.read(runs)})
        say(f"{kept.name}: taken from {', '.join(str(runs / folder) for folder in block.folders)}")
    elif kept.exists():
        without = f", without {', '.join(map(str, missing))}" if missing else ""
        say(f"{kept.name}: stays as it is{without}; to make it anew: {command}")
    else:
        raise UserError(
            f"{kept} is not there, nor the runs {', '.join(map(str, missing))} to make it from; run {command}"
        )
    return read_json(kept)


# from the records of runs

SEEDS = ("tiny", "seed1", "seed2")
"""The runs of a recipe's card, each with the seed of its place."""


def _read_demo(runs: Path) -> Record:
    found = [_finished(runs, "tiny", recipe, 0) for recipe in SHARING]  # a fifth may be there for a while
    return together(found) | {"figures": {run.recipe: run.outcome for run in found}}


def _read_card(runs: Path, recipe: str) -> Record:
    found = [_finished(runs, name, recipe, seed) for seed, name in enumerate(SEEDS)]
    return together(found) | {"figures": {str(seed): run.outcome for seed, run in enumerate(found)}}


def _read_summary(runs: Path) -> Record:
    found = _finished(runs, "tiny", "summary", 0, ["overlap"])
    return together([found]) | {"figures": found.outcome}


@dataclass(frozen=True)
class Finished:
    """A run of a recipe, whole."""

    recipe: str
    machines: Mapping[str, Mapping[str, Any]]
    """What made each part of it, by the part's folder."""
    commits: frozenset[str]
    date: str
    outcome: Mapping[str, Any]


def _finished(runs: Path, name: str, recipe: str, seed: int, others: Sequence[str] = ()) -> Finished:
    """A run of the profile `tiny` on the recipe's built-in data; `others` are metrics beside the headline.

    Raises:
        UserError: it was made under other settings, or with a version that did not record its machine.
    """
    run, profile = Run(name, recipe, runs), load_profile("tiny")
    job = make_job(recipe, profile, run, source=BUILT_IN, seed=seed)
    records = finished_records(run)
    for stage in records:
        run.is_finished(stage, job.settings(stage))
    machines = {str(run.stage(stage)): record.get("machine") for stage, record in records.items()}
    if base := find_base(runs, profile.base, recipe):
        machines[str(base)] = read_json(base / MACHINE) or None
    for folder, machine in machines.items():
        if machine is None:
            raise UserError(f"{folder} does not say on which machine it was made; remove it and make it again")
    torch = {"torch": records["evaluate"]["versions"]["torch"]}
    return Finished(
        recipe,
        {folder: {**(machine or {}), **torch} for folder, machine in machines.items()},
        frozenset(str(record["git_commit"]) for record in records.values()),
        max(record["finished"] for record in records.values())[: len("2026-11-26")],
        outcome(records, others),
    )


def together(found: Sequence[Finished]) -> dict[str, Any]:
    """Where and when runs were made that one block shows.

    Raises:
        UserError: on several machines.
    """
    machines = {folder: where(machine) for run in found for folder, machine in run.machines.items()}
    if len(set(machines.values())) > 1:
        told = ", ".join(
            f"{'/'.join(Path(next(f for f in machines if machines[f] == m)).parts[-2:])} by {m}"
            for m in dict.fromkeys(machines.values())
        )
        raise UserError(
            f"one block shows one machine's figures, and these were made by several: {told}; make them on one"
        )
    return {
        "machine": next(iter(found[0].machines.values())),
        "commits": sorted({commit for run in found for commit in run.commits}),
        "date": max(run.date for run in found),
    }


def outcome(records: Records, others: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of one run: each policy under the headline and `others`, the last over another, and the reward model."""
    evaluated, reward = records["evaluate"], records.get("reward", {}).get("metrics", {})
    metrics, last = evaluated["metrics"], list(evaluated["metrics"])[-1]
    headline = evaluated["headline"]
    return {
        "headline": headline,
        "examples": evaluated["examples"],
        "metrics": {
            metric: {policy: metrics[policy][metric] for policy in metrics}
            for metric in (headline, f"{headline}_sampled", *others)
        },
        "gain": evaluated["comparisons"][f"{last}_over_{POLICIES[last].over}"]["gain"],
        "accuracy": reward.get("accuracy"),
        "ceiling": reward.get("ceiling"),
    }


def _read_bench(runs: Path) -> Record:
    record = json.loads((runs / "bench" / "done.json").read_text(encoding="utf-8"))
    if record["quick"]:
        raise UserError(f"{runs / 'bench'} is a quick run, whose figures mean nothing; run `make bench`, or remove it")
    pairs = len(next(iter(record["shapes"].values()))["pairs"])
    return _measured(record) | {"figures": {"pairs": pairs, "targets": record["targets"]}}


def _read_rows(runs: Path, name: str) -> Record:
    record = json.loads((runs / name / "done.json").read_text(encoding="utf-8"))
    return _measured(record) | {"figures": record["rows"]}


def _measured(record: Record) -> dict[str, Any]:
    machine = {name: record["machine"][name] for name in ("cpu", "cores", "torch")}
    return {"machine": machine, "commits": [str(record["git_commit"])], "date": record["finished"][: len("2026-11-26")]}


# to Markdown


def demo(record: Record) -> str:
    """A row a recipe."""
    rows = []
    for recipe, found in record["figures"].items():
        *before, last = found["metrics"][found["headline"]].values()
        model = f"{value(found['accuracy'])} ({value(found['ceiling'])})"
        values = [value(one) for one in (*before, last)]
        rows.append([recipe, found["headline"], *values, estimate(found["gain"], signed=True), model])
    some = next(iter(record["figures"].values()))
    heads = ["recipe", "headline", *_titles(some), _over(some), "reward model (ceiling)"]
    return f"{_opening(record, some)}\n\n{table(heads, rows)}"


def card(record: Record) -> str:
    """A row a seed."""
    some = record["figures"]["0"]
    rows = [[seed, *_cells(found, found["headline"])] for seed, found in record["figures"].items()]
    opening = _opening(record, some, f"`{some['headline']}` of ")
    return f"{opening}\n\n{table(['seed', *_heads(some)], rows)}"


def summary(record: Record) -> str:
    """A row a metric of the truth: the headline, and what one's own data are judged by."""
    found = record["figures"]
    rows = [[f"`{metric}`", *_cells(found, metric)] for metric in (found["headline"], "overlap")]
    return f"{_opening(record, found)}\n\n{table(['metric', *_heads(found)], rows)}"


def bench(record: Record) -> str:
    found = record["figures"]
    opening = f"{record['command']} on one core of {_when(record)}; medians of {found['pairs']} pairs and their range."
    return f"{opening}\n\n{targets_table(found['targets'])}"


def plan(record: Record) -> str:
    return f"{record['command']} on {_when(record)}.\n\n{plan_table(record['figures'])}"


def times(record: Record) -> str:
    return f"{record['command']} on {_when(record)}.\n\n{times_table(record['figures'])}"


def _when(record: Record) -> str:
    return f"{where(record['machine'])}, {record['date']}"


def _opening(record: Record, found: Mapping[str, Any], of: str = "") -> str:
    answers = f"{of}greedy answers to {found['examples']} held-out prompts, 95 % intervals"
    return f"{record['command']} on {_when(record)}:\n{answers}."


def _titles(found: Mapping[str, Any]) -> list[str]:
    return [POLICIES[policy].title for policy in found["metrics"][found["headline"]]]


def _over(found: Mapping[str, Any]) -> str:
    last = POLICIES[list(found["metrics"][found["headline"]])[-1]]
    return f"{last.title} over {POLICIES[str(last.over)].title}, paired"


def _heads(found: Mapping[str, Any]) -> list[str]:
    titles = _titles(found)
    return [*titles, _over(found), f"{titles[-1]} at temperature 1", "reward model", "its ceiling"]


def _cells(found: Mapping[str, Any], metric: str) -> list[str]:
    """Of the headline all that `_heads` names, of another metric the policies alone."""
    *before, last = found["metrics"][metric].values()
    policies = [*(value(one) for one in before), estimate(last)]
    if metric != found["headline"]:
        return [*policies, "", "", "", ""]
    sampled = list(found["metrics"][f"{metric}_sampled"].values())[-1]
    model = [estimate(found["accuracy"]), value(found["ceiling"])]
    return [*policies, estimate(found["gain"], signed=True), value(sampled), *model]


if __name__ == "__main__":
    sys.exit(main())
