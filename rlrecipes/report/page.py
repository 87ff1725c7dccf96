"""The report: what the finished stages left on disk, as one page that needs nothing but a browser.

    runs/tiny/translation/{sft,reward,ppo,evaluate}/{done.json,log.jsonl,samples.jsonl} → index.html and report.md

The verdict stands first and is never kinder than the interval; failures are shown beside successes. What a stage did not
leave is left out.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlrecipes.report.numbers import Cell, duration, estimate_cell, shortened_to
from rlrecipes.report.plots import curves
from rlrecipes.report.records import finished_records, headline_value, json_lines, ppo_over_sft
from rlrecipes.report.samples import gain_groups, training_samples
from rlrecipes.report.verdict import hacking, quality, verdict_of, warnings
from rlrecipes.run.folder import Run

POLICIES = {"base": "base", "sft": "SFT", "ppo": "PPO"}


def write_report(run: Run, notes: Sequence[str], folder: Path) -> None:
    """Writes `folder/index.html` and `folder/report.md` about the finished stages of a run."""
    _write(folder, f"{run.recipe} · run {run.name}", [_section(run, notes)])


def combine(runs: Sequence[Run]) -> Path:
    """Writes one page over several recipes of one run's name to `runs/<run>/report/`, and returns its path."""
    folder = runs[0].root / runs[0].name / "report"
    folder.mkdir(parents=True, exist_ok=True)
    sections = [_section(run, (run.done("report") or {}).get("notes", ())) for run in runs]
    _write(folder, f"Run {runs[0].name}", sections)
    return folder / "index.html"


def short_table(runs: Sequence[Run]) -> str:
    """The headline numbers for a terminal, at most 100 columns wide."""
    titles = ["recipe", "headline", *POLICIES.values(), "PPO over SFT, 95 %", "wins", "RM", "time"]
    rows = [titles]
    for run in runs:
        recipe, headline, *policies, gain, wins, accuracy, time = _headline(run)
        values = [*(cell.value for cell in policies), " ".join(gain).strip(), wins.value, accuracy.value, time.value]
        rows.append([shortened_to(recipe.value, 18), shortened_to(headline.value, 11), *values])
    widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
    lines = ["  ".join(f"{text:{'<>'[i > 1]}{widths[i]}}" for i, text in enumerate(row)) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _write(folder: Path, title: str, sections: Sequence[Mapping[str, Any]]) -> None:
    for name, finalize in (("index.html", None), ("report.md", _markdown)):
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            finalize=finalize,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "policy": lambda name: POLICIES.get(name, name),
            "estimate": estimate_cell,
            "estimates": lambda found, name: [estimate_cell(values.get(name)) for values in found],
            "json": lambda value: json.dumps(value, ensure_ascii=False),
            "time": duration,
        }
        template = environment.get_template("page.html.j2")
        page = template.render(html=finalize is None, title=title, sections=sections, policies=POLICIES)
        page = page if finalize is None else re.sub(r"\n{3,}", "\n\n", page)
        (folder / f"{name}.part").write_text(page.strip() + "\n", encoding="utf-8")
        os.replace(folder / f"{name}.part", folder / name)


def _markdown(value: object) -> Markup:
    """Text from models and data as text: no tags, emphasis, code, links or images, and no end of a table's cell."""
    if isinstance(value, Markup):  # a macro's result, whose parts went through here already
        return value
    text = re.sub(r"[\\`*|~]|(?<!\w)_|_(?!\w)|\](?=[(\[:])", r"\\\g<0>", html.escape(str(value), quote=False))
    return Markup(re.sub(r"\s*\n\s*", "<br>", text.strip()))


# what there is


def _section(run: Run, notes: Sequence[str]) -> dict[str, Any]:
    """All that the template tells of a recipe."""
    records = finished_records(run)
    updates, samples = json_lines(run.stage("ppo") / "log.jsonl"), json_lines(run.stage("evaluate") / "samples.jsonl")
    verdict, tone = verdict_of(records)
    tally, groups = gain_groups(samples)
    return {
        "recipe": run.recipe,
        "records": records,
        "notes": notes,
        "row": _headline(run),
        "verdict": verdict,
        "tone": tone,
        "warnings": [*warnings(records, updates), *hacking(records)],
        "curves": curves(run, records, updates),
        "tally": tally,
        "samples": groups,
        "training": training_samples(json_lines(run.stage("ppo") / "samples.jsonl")),
    }


def _headline(run: Run) -> list[Cell]:
    """A row for all recipes: recipe, headline, each policy's value, gain, win rate, reward model, time."""
    records = finished_records(run)
    evaluated, reward = records.get("evaluate", {}), records.get("reward", {}).get("metrics", {})
    name, pair = evaluated.get("headline", ""), ppo_over_sft(records)
    return [
        Cell(run.recipe),
        Cell(name),
        *(estimate_cell(headline_value(records, policy)) for policy in POLICIES),
        estimate_cell(pair.get("gain"), signed=True),
        estimate_cell(pair.get("win_rate")),
        quality(reward),
        Cell(duration(sum(record.get("seconds", 0) for record in records.values()))),
    ]
