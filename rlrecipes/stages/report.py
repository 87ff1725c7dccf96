"""The report: what the finished stages left on disk, as one page that needs nothing but a browser.

    runs/tiny/translation/{sft,reward,ppo,evaluate}/{done.json,log.jsonl,samples.jsonl} → index.html and report.md

The verdict stands first and is never kinder than the interval; failures are shown beside successes. What a stage did not
leave is left out.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlrecipes.errors import UserError
from rlrecipes.run import STAGES, Run

if TYPE_CHECKING:
    from rlrecipes.job import Job
    from rlrecipes.tracking import Tracker

Records = Mapping[str, Mapping[str, Any]]
"""The `done.json` of each finished stage."""
POLICIES = {"base": "base", "sft": "SFT", "ppo": "PPO"}
PROGRESS = (
    ("objective/scores", "Reward", "weighted sum of the terms, clipped, before the KL penalty"),
    ("objective/kl", "KL from the SFT policy", "nats per answer"),
    ("answers/length", "Answer length", "tokens"),
    ("answers/ended", "Answers that end by themselves", "share"),
    ("policy/entropy_avg", "Entropy", "nats per token"),
)
STEPS = (
    ("kl_coef", "KL weight", "per token"),
    ("val/ratio", "Probability ratio", "new to old policy; near 1"),
    ("policy/clipfrac_avg", "Clipped", "share of tokens"),
)
FEWEST = 10
"""Held-out prompts below which a bootstrap interval says nothing that can be relied on."""
SHOWN = 3
"""Samples in each group."""


class Cell(NamedTuple):
    """A table's cell: a value, and what stands beside it in small print (its interval, as a rule)."""

    value: str
    beside: str = ""


@dataclass(frozen=True)
class Plot:
    """A curve, laid out in the `width` times `height` units of an SVG drawing and as a line of block characters."""

    title: str
    note: str
    first: str
    last: str
    words: str
    """The curve, for who cannot see it."""
    width: int
    height: int
    line: str
    """`points` of an SVG polyline."""
    trend: str
    """Likewise, of the moving mean; empty where there are too few points for one."""
    rules: Sequence[tuple[float, str]]
    """Height and label of each horizontal rule."""
    steps: tuple[int, int]
    blocks: str


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Writes `folder/index.html` and `folder/report.md` about the finished stages of `job.run`."""
    _write(folder, f"{job.recipe.name} · run {job.run.name}", [_section(job.run, job.data.notes)])
    return {"metrics": {}, "page": "index.html", "notes": list(job.data.notes)}


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
        rows.append([_cut(recipe.value, 18), _cut(headline.value, 11), *values])
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
            "estimate": _estimate,
            "estimates": lambda found, name: [_estimate(values.get(name)) for values in found],
            "json": lambda value: json.dumps(value, ensure_ascii=False),
            "time": _time,
        }
        template = environment.get_template("report.html.j2")
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
    records = _records(run)
    updates, samples = _lines(run.stage("ppo") / "log.jsonl"), _lines(run.stage("evaluate") / "samples.jsonl")
    verdict, tone = _verdict(records)
    tally, groups = _groups(samples)
    return {
        "recipe": run.recipe,
        "records": records,
        "notes": notes,
        "row": _headline(run),
        "verdict": verdict,
        "tone": tone,
        "warnings": [*_warnings(records, updates), *_hacking(records)],
        "curves": _curves(run, records, updates),
        "tally": tally,
        "samples": groups,
        "training": _training(_lines(run.stage("ppo") / "samples.jsonl")),
    }


def _records(run: Run) -> Records:
    records = {stage: run.done(stage) for stage in STAGES if stage != "report"}
    return {stage: record for stage, record in records.items() if record is not None}


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.strip()]
    except ValueError:
        raise UserError(f"{path} is damaged; delete the folder {path.parent} and make the stage again") from None


def _over(records: Records) -> Mapping[str, Mapping[str, float]]:
    found: Mapping[str, Any] = records.get("evaluate", {}).get("comparisons", {}).get("ppo_over_sft", {})
    return found


# what came out


def _verdict(records: Records) -> tuple[str, str]:
    """One sentence, and its tone: `better`, `worse` or `open`."""
    evaluated, gain = records.get("evaluate", {}), _over(records).get("gain")
    if gain is None or not math.isfinite(gain["value"]):
        return "PPO has not been compared with SFT.", "open"
    if evaluated["examples"] < FEWEST:
        return (
            f"{evaluated['examples']} held-out prompts are too few to compare PPO with SFT; take {FEWEST} at least.",
            "open",
        )
    size, interval = _estimate({key: abs(gain[key]) if key == "value" else gain[key] for key in gain})
    measured = f"{evaluated['headline']} {interval} on {evaluated['examples']} held-out prompts"
    if gain["low"] > 0:
        return f"PPO beats SFT by +{size} {measured}.", "better"
    if gain["high"] < 0:
        return f"PPO is worse than SFT by −{size} {measured}.", "worse"
    size = _estimate(gain, signed=True).value
    return f"No difference between PPO and SFT could be shown: {size} {measured}; the interval contains 0.", "open"


def _warnings(records: Records, updates: Sequence[Mapping[str, float]]) -> list[str]:
    found = []
    kl, ended = _column(updates, "objective/kl"), _column(updates, "answers/ended")
    if stopped := records.get("ppo", {}).get("stopped"):
        found.append(f"PPO was stopped before its end: {stopped}. What follows is about the policy of that moment.")
    if negative := [step for step, value in kl if value < -0.1][3:]:
        found.append(
            f"The KL estimate was negative in {len(negative) + 3} updates: sampled and scored probabilities do not agree."
        )
    if kl and (worst := max(kl, key=lambda point: point[1]))[1] > 30:
        found.append(f"The KL reached {worst[1]:.1f} nats per answer in update {worst[0]}: far from the SFT policy.")
    if ended and (share := fmean(value for _, value in ended[-max(1, len(ended) // 10) :])) < 0.8:
        found.append(f"At the end of PPO only {share:.0%} of the answers ended by themselves; the rest were cut off.")
    accuracy = records.get("reward", {}).get("metrics", {}).get("accuracy")
    if accuracy and accuracy["low"] <= 0.5:
        interval = " ".join(_estimate(accuracy))
        found.append(f"The reward model is not shown to beat guessing: held-out accuracy {interval}.")
    spearman = records.get("reward", {}).get("metrics", {}).get("spearman")
    if spearman and not spearman["low"] > 0:
        interval = " ".join(_estimate(spearman))
        found.append(f"The reward model is not shown to follow the ratings: held-out rank correlation {interval}.")
    base, ppo = (_reached(records, policy) for policy in ("base", "ppo"))
    if base and ppo and ppo["value"] < base["value"]:
        values = f"{' '.join(_estimate(ppo))} against {' '.join(_estimate(base))}"
        found.append(f"For all the training, PPO stays below the untrained base model: {values}.")
    return found


def _reached(records: Records, policy: str) -> Mapping[str, float] | None:
    """A policy's headline metric."""
    evaluated = records.get("evaluate", {})
    found: Mapping[str, float] | None = evaluated.get("metrics", {}).get(policy, {}).get(evaluated.get("headline"))
    return found


def _hacking(records: Records) -> list[str]:
    """The reward went up and the headline did not: down for certain, or not shown to follow."""
    pair = _over(records)
    if not pair or not pair["reward_gain"]["low"] > 0 or not pair["gain"]["low"] <= 0:
        return []
    headline = records["evaluate"]["headline"]
    reward, gain = (" ".join(_estimate(pair[name], signed=True)) for name in ("reward_gain", "gain"))
    if pair["gain"]["high"] < 0:
        return [
            f"Reward hacking: the reward went up ({reward}) while {headline} went down ({gain}). "
            "PPO found answers that the reward likes and that are worse."
        ]
    return [
        f"The reward went up ({reward}) and {headline} did not follow ({gain}): look for reward hacking in the samples."
    ]


def _headline(run: Run) -> list[Cell]:
    """A row for all recipes: recipe, headline, each policy's value, gain, win rate, reward model, time."""
    records = _records(run)
    evaluated, reward = records.get("evaluate", {}), records.get("reward", {}).get("metrics", {})
    name, pair = evaluated.get("headline", ""), _over(records)
    return [
        Cell(run.recipe),
        Cell(name),
        *(_estimate(_reached(records, policy)) for policy in POLICIES),
        _estimate(pair.get("gain"), signed=True),
        _estimate(pair.get("win_rate")),
        _quality(reward),
        Cell(_time(sum(record.get("seconds", 0) for record in records.values()))),
    ]


def _quality(reward: Mapping[str, Any]) -> Cell:
    """The reward model's held-out accuracy or, where only ratings tell, its rank correlation with them."""
    if "accuracy" not in reward and "spearman" in reward:
        return Cell(f"ρ {_estimate(reward['spearman']).value}")
    ceiling = f"[of {reward['ceiling']:.3f}]" if "ceiling" in reward else ""
    return Cell(_estimate(reward.get("accuracy")).value, ceiling)


# curves


def _curves(run: Run, records: Records, updates: Sequence[Mapping[str, float]]) -> list[tuple[str, Sequence[Plot]]]:
    settings = records.get("ppo", {}).get("settings", {})
    terms = sorted({key.partition("/")[2] for row in updates for key in row if key.startswith("terms/")})
    weighted = [(f"terms/{t}", f"Term: {t}", f"before its weight of {settings.get(f'terms.{t}', '?')}") for t in terms]
    sft, reward = (_lines(run.stage(stage) / "log.jsonl") for stage in ("sft", "reward"))
    rated = records.get("reward", {}).get("objective") == "regression"
    unit = "squared error; 1 is guessing the mean" if rated else "nats per comparison"
    groups: dict[str, list[Plot | None]] = {
        "PPO": [_plot(updates, *curve) for curve in (PROGRESS[0], *weighted, *PROGRESS[1:])],
        "PPO’s steps": [_plot(updates, *curve, small=True) for curve in STEPS],
        "Before PPO": [
            _plot(sft, "loss", "SFT loss", "nats per token"),
            _plot(reward, "loss", "Reward model loss", unit),
            _plot(reward, "accuracy", "Reward model accuracy", "on its training batches"),
        ],
    }
    drawn = {title: [plot for plot in plots if plot is not None] for title, plots in groups.items()}
    return [(title, plots) for title, plots in drawn.items() if plots]


def _plot(rows: Sequence[Mapping[str, float]], key: str, title: str, note: str, small: bool = False) -> Plot | None:
    """Lays a column of a log out; None where it has fewer than two finite values."""
    points = _column(rows, key)
    if len(points) < 2:
        return None
    steps, values = [step for step, _ in points], [value for _, value in points]
    width, height = (220, 90) if small else (340, 170)
    low, high = _range(values)

    def place(step: float, value: float) -> tuple[float, float]:
        x = 46 + (width - 54) * (step - steps[0]) / (max(steps) - steps[0] or 1)
        return round(x, 1), round(height - 22 - (height - 32) * (value - low) / (high - low), 1)

    def polyline(heights: Sequence[float]) -> str:
        return " ".join(f"{x},{y}" for x, y in map(place, steps, heights))

    window = len(values) // 20
    first, last = f"{values[0]:.4g}", f"{values[-1]:.4g}"
    return Plot(
        title=title,
        note=note,
        first=first,
        last=last,
        words=f"{title}, {note}: from {first} to {last}, at least {min(values):.4g}, at most {max(values):.4g}",
        width=width,
        height=height,
        line=polyline(values),
        trend=polyline(_moving_mean(values, window)) if window > 1 else "",
        rules=[(place(steps[0], tick)[1], label) for tick, label in _ticks(low, high, 3 if small else 5)],
        steps=(steps[0], steps[-1]),
        blocks=_blocks(values),
    )


def _column(rows: Iterable[Mapping[str, float]], key: str) -> list[tuple[int, float]]:
    """Step and value, where the value is there and finite."""
    return [(int(row["step"]), row[key]) for row in rows if key in row and math.isfinite(row[key])]


def _ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Round values from `low` to `high`, one to `most` of them, with labels that tell them apart."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= rough)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [(number * step, f"{number * step:,.{decimals}f}".replace("-", "−")) for number in numbers]


def _moving_mean(values: Sequence[float], window: int) -> list[float]:
    return [fmean(values[max(0, i - window) : i + window + 1]) for i in range(len(values))]


def _blocks(values: Sequence[float], width: int = 24) -> str:
    """A sparkline: the means of up to `width` equal parts, as block characters."""
    parts = min(width, len(values))
    means = [fmean(values[i * len(values) // parts : (i + 1) * len(values) // parts]) for i in range(parts)]
    low, high = _range(means)
    return "".join("▁▂▃▄▅▆▇█"[round((mean - low) / (high - low) * 7)] for mean in means)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest; a constant, rounding errors aside, gets room above and below."""
    low, high = min(values), max(values)
    room = max(abs(low), abs(high)) or 1.0
    return (low, high) if high - low > 1e-9 * room else (low - room / 2, high + room / 2)


# samples


def _groups(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, Sequence[Mapping[str, Any]]]]]:
    """A tally, and the same samples every time: where PPO gained most over SFT, the middle, and where it lost most."""
    gains = [
        (_gain(row, "headline"), _gain(row, "reward"), row) for row in rows if {"sft", "ppo"} <= {*row["policies"]}
    ]
    if not gains:
        return "", []
    gains.sort(key=lambda gain: gain[:2], reverse=True)
    won, lost = (sum(sign * gain[0] > 0 for gain in gains) for sign in (1, -1))
    even = len(gains) - won - lost
    tally = f"PPO scored higher than SFT on {won} of {len(gains)} prompts, the same on {even}, lower on {lost}."
    ordered = [row for *_, row in gains]
    best, worst = min(SHOWN, won), min(SHOWN, lost)
    rest = ordered[best : len(ordered) - worst]
    start = max(0, len(rest) - SHOWN) // 2
    groups = {
        "Where PPO gained most": ordered[:best],
        "In the middle": rest[start : start + SHOWN],
        "Where PPO lost most": ordered[len(ordered) - worst :][::-1],
    }
    return tally, [(title, shown) for title, shown in groups.items() if shown]


def _gain(row: Mapping[str, Any], score: str) -> float:
    return float(row["policies"]["ppo"][score] - row["policies"]["sft"][score])


def _training(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each sampled prompt with its answers over the updates, answers that stayed the same told once."""
    answers: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for step, table in groupby(rows, key=lambda row: row["step"]):
        for place, row in enumerate(table):
            answers.setdefault((place, row["prompt"]), []).append((step, row["answer"]))
    told = []
    for (_, prompt), given in answers.items():
        same = [(answer, [step for step, _ in part]) for answer, part in groupby(given, key=lambda pair: pair[1])]
        told.append((prompt, [(_span(steps), answer) for answer, steps in same]))
    return told


def _span(steps: Sequence[int]) -> str:
    return f"{steps[0]}–{steps[-1]}" if len(steps) > 1 else str(steps[0])


def _estimate(found: Mapping[str, float] | float | None, signed: bool = False) -> Cell:
    """A value with its interval, all to as many places; a plain number without; a dash for nothing."""
    if found is None:
        return Cell("–")
    if not isinstance(found, Mapping):
        return Cell(str(found) if isinstance(found, int) else _number(found))
    places = 3 if max(abs(found["low"]), abs(found["high"])) < 10 else 1
    interval = f"[{_number(found['low'], places)}, {_number(found['high'], places)}]"
    return Cell(_number(found["value"], places, signed), interval if math.isfinite(found["value"]) else "")


def _number(value: float, places: int = 3, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "–"
    value = round(value, places) + 0.0  # no minus zero
    return f"{value:{'+' if signed else ''},.{places}f}".replace("-", "−")


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.2g} min" if seconds >= 60 else f"{seconds:.0f} s"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
