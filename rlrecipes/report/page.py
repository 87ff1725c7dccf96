"""The report: the records of the finished stages as one page that needs nothing but a browser.

    runs/tiny/translation/{sft,reward,ppo,rloo,grpo,evaluate}/{done.json,log.jsonl,samples.jsonl} → index.html

The verdict stands first and is never kinder than the interval. Failures stand beside successes. A part without records is
left out.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlrecipes.errors import UserError, option
from rlrecipes.profile import BASE, SFT
from rlrecipes.report.answers import all_answers, gains, script
from rlrecipes.report.evaluation import bought, divergences, judge_sentence, pair_rows, style_rows
from rlrecipes.report.examination import Found, examination, read_examination
from rlrecipes.report.figures import spread
from rlrecipes.report.hacking import hacking
from rlrecipes.report.numbers import Cell, duration, estimate_cell
from rlrecipes.report.plots import curves
from rlrecipes.report.records import (
    Columns,
    Pair,
    Records,
    begun_at,
    climbed,
    columns,
    finished_algorithms,
    finished_records,
    headline_value,
    json_lines,
    last_pair,
    listed,
    measures_of,
    start_of,
)
from rlrecipes.report.samples import gain_groups, training_samples
from rlrecipes.report.terminal import fitted
from rlrecipes.report.verdict import quality, verdict_of
from rlrecipes.report.warnings import warnings
from rlrecipes.run.folder import Run, make
from rlrecipes.run.settings import NAME, read_settings
from rlrecipes.run.stages import POLICIES
from rlrecipes.text import shortened


def write_report(run: Run, notes: Sequence[str], folder: Path) -> None:
    """Writes `folder/index.html` about the finished stages of a run."""
    _write(folder, f"{run.recipe} · run {run.name}", [_section(run, notes)])


def write_examination(found: Found, folder: Path) -> None:
    """Writes `folder/index.html` about the examination of a reward model."""
    values = examination(found)
    lists = dict.fromkeys(("notes", "warnings", "curves", "samples", "all", "training"), ())
    empty: dict[str, Any] = {"records": {}, "facts": {}, **lists}
    section = {**empty, "verdict": values["verdict"], "examination": values}
    _write(folder, f"The reward model of {found['recipe']} · run {found['run']}", [section])


def combine(runs: Sequence[Run]) -> Path:
    """Writes one page over several recipes of one run's name to `runs/<run>/report/`, and returns its path."""
    folder = runs[0].root / runs[0].name / "report"
    shown = columns(map(finished_records, runs))
    sections = [_section(run, (run.done("report") or {}).get("notes", ()), len(runs), shown) for run in runs]
    _write(folder, f"Run {runs[0].name}", sections)
    return folder / "index.html"


def short_table(runs: Sequence[Run]) -> str:
    """The headline numbers for a terminal; with many algorithms, some columns stand on the page alone."""
    shown = columns(map(finished_records, runs))
    titles = ["recipe", "headline", *shown.heads[:-1], f"{shown.heads[-1]}, 95 %", "wins", "RM", "time"]
    rows = [titles]
    for run in runs:
        recipe, headline, *policies, gain, wins, accuracy, time = _headline(run, shown)
        values = [*(cell.value for cell in policies), " ".join(gain).strip(), wins.value, accuracy.value, time.value]
        rows.append([shortened(recipe.value, 18), shortened(headline.value, 11), *values])
    lines = fitted(rows, ("wins", "RM", "time"), words={0, 1})
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _write(folder: Path, title: str, sections: Sequence[Mapping[str, Any]]) -> None:
    ours = script() if any(section["all"] for section in sections) else {}
    write_page(folder, "page.html.j2", title=title, sections=sections, **ours)


def write_page(folder: Path, template: str, **values: Any) -> None:
    """Writes `folder/index.html` from a template of this folder: aside, then renamed."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "policy": lambda name: POLICIES[name].title if name in POLICIES else name,
        "estimate": estimate_cell,
        "json": lambda value: json.dumps(value, ensure_ascii=False),
        "estimates": lambda policies, name: [estimate_cell(values.get(name)) for values in policies],
        "time": duration,
    }
    page = environment.get_template(template).render(**values)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html.part").write_text(page.strip() + "\n", encoding="utf-8")
    os.replace(folder / "index.html.part", folder / "index.html")


# the parts of the page


def _section(run: Run, notes: Sequence[str], sections: int = 1, shown: Columns | None = None) -> dict[str, Any]:
    """The template's values for one recipe, on a page that has `sections` of them; a table over all has `shown` columns."""
    records = finished_records(run)
    shown = shown or columns([records])
    logs = {name: json_lines(run.stage(name) / "log.jsonl") for name in finished_algorithms(records)}
    samples = json_lines(run.stage("evaluate") / "samples.jsonl")
    pair, evaluation = last_pair(records), records.get("evaluate", {})
    tally, groups = gain_groups(samples, pair)
    return {
        "recipe": run.recipe,
        "records": records,
        "notes": notes,
        "row": _headline(run, shown),
        "heads": shown.heads,
        "facts": _facts(run, records),
        "judge": judge_sentence(evaluation.get("judge", {}), listed(finished_algorithms(records) or ["ppo"])),
        "climbed": climbed(records),
        "pairs": pair_rows(evaluation) if evaluation.get("comparisons") else [],
        "kl": divergences(evaluation) if evaluation else [],
        "style": style_rows(evaluation, pair),
        "bought": bought(evaluation, logs, begun_at(records)),
        "begun": begun_at(records),
        "pair": pair.title,
        "verdict": verdict_of(records),
        "warnings": [*warnings(records, logs), *hacking(records, logs, samples)],
        "curves": curves(run, records, logs),
        "tally": tally,
        "spread": _spread(samples, pair, evaluation, tally),
        "samples": groups,
        "all": all_answers(samples, pair, sections),
        "training": _training(run, records),
        "examination": examination(found) if (found := read_examination(run, records.get("reward", {}))) else None,
    }


def _training(run: Run, records: Records) -> list[tuple[str, Any]]:
    """The title of each finished algorithm that sampled while it trained, and its samples."""
    found = {name: json_lines(run.stage(name) / "samples.jsonl") for name in finished_algorithms(records)}
    return [(POLICIES[name].title, training_samples(rows)) for name, rows in found.items() if rows]


def _spread(samples: Sequence[Mapping[str, Any]], pair: Pair, evaluation: Mapping[str, Any], tally: str) -> str:
    """The drawing of all paired gains; empty without any."""
    found = gains(samples, pair)
    label = f"gain in {evaluation.get('headline')}, {pair.title}, prompt by prompt"
    return spread(found, label, f"How many prompts have which {label}: {tally}") if found else ""


def _facts(run: Run, records: Records) -> dict[str, str]:
    """What the run is, and the command that makes it again; empty without records."""
    if not records:
        return {}
    last = [*records.values()][-1]
    facts = {"model": last["settings"].get("model.name"), "data": last["data"]["source"]}
    again = make(run.recipe, run)
    with contextlib.suppress(
        UserError
    ):  # an older run has no settings.toml, and one that was changed is no longer its own
        facts["profile"] = read_settings(run.folder / NAME).profile
        again = f"{make(run.recipe, Run('again', run.recipe))} {option('settings', str(run.folder / NAME))}"
    if (start := start_of(records)) != SFT:
        facts["start"] = start if start == BASE else f"{start}, in the place of SFT"
    facts |= {"seed": str(last["seed"]), "finished": last["finished"], "again": again}
    return {name: str(fact) for name, fact in facts.items() if fact}


def _headline(run: Run, shown: Columns) -> list[Cell]:
    """A row for all recipes: recipe, headline, each policy's value, gain, win rate, reward model, time."""
    records = finished_records(run)
    evaluation, reward = records.get("evaluate", {}), records.get("reward", {}).get("metrics", {})
    name, pair = evaluation.get("headline", ""), measures_of(records, shown.pair.name)
    return [
        Cell(run.recipe),
        Cell(name),
        *(estimate_cell(headline_value(records, policy)) for policy in shown.policies),
        estimate_cell(pair.get("gain"), signed=True),
        estimate_cell(pair.get("win_rate")),
        quality(reward),
        Cell(duration(sum(record.get("seconds", 0) for record in records.values()))),
    ]
