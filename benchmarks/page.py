"""The page: every target beside its figure, then the measurements behind it, with plots that need nothing but a browser."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from benchmarks.record import CPU_TARGETS, MEMORY_TARGETS, OTHER_CPU_TARGETS, OTHER_MEMORY_TARGETS

UNITS = {"cpu_s": "CPU seconds", "peak_mb": "peak memory, MB"}
MET = {True: "met", False: "missed", None: "not measured"}
ARMS = {"plain": "plain TRL", "ours": "ours"}
WIDTH = 340


def write_page(path: Path, record: Mapping[str, Any]) -> None:
    """Writes the page about a record of `done.json`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "met": lambda met: MET[met], "number": number}
    page = environment.get_template("page.html.j2").render(record=record, verdict=verdict(record), **_plots(record))
    aside = path.with_name(path.name + ".part")
    aside.write_text(page.strip() + "\n", encoding="utf-8")
    os.replace(aside, path)


def table(record: Mapping[str, Any]) -> str:
    """The targets and their figures, and a model's phases, as Markdown."""
    lines = [verdict(record), "", targets_table(record["targets"])]
    if "large" in record:
        lines += ["", f"| {record['model']} | seconds | share | peak GB |", "|---|---|---|---|"]
        for phase, found in record["large"]["phases"].items():
            cells = (number(found[key]) for key in ("seconds", "share", "peak_gb"))
            lines.append(f"| {phase.replace('_', ' ')} | {' | '.join(cells)} |")
        speeds = (
            f"{name.replace('_', ' ')} {number(value)}" for name, value in record["large"]["tokens_per_s"].items()
        )
        lines += ["", f"Tokens a second: {', '.join(speeds)}; on {record['large']['device']}."]
    machine = record["machine"]
    lines += ["", f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, {record['finished']}."]
    return "\n".join(lines)


def targets_table(targets: Sequence[Mapping[str, Any]]) -> str:
    """Each target beside its figure, as Markdown for `docs/benchmarks.md` too."""
    lines = ["| what | measured | target | |", "|---|---|---|---|"]
    for row in targets:
        lines.append(f"| {row['name']} | {figure(row['found'])} | {limit(row['limit'])} | {MET[row['met']]} |")
    return "\n".join(lines)


def verdict(record: Mapping[str, Any]) -> str:
    """How many targets are met, missed and not measured, in one sentence."""
    outcomes = [row["met"] for row in record["targets"]]
    counts = [f"{outcomes.count(met)} {word}" for met, word in MET.items() if met in outcomes]
    quick = " This was a quick run at a toy's size: its figures mean nothing." if record["quick"] else ""
    return f"Of {len(outcomes)} targets: {', '.join(counts)}.{quick}"


def figure(found: Mapping[str, float] | None) -> str:
    """A value with its range where it has one; a dash for nothing."""
    if found is None:
        return "–"
    rest = f" [{number(found['low'])}, {number(found['high'])}]" if "low" in found else ""
    return number(found["value"]) + rest


def limit(value: float | str) -> str:
    return value if isinstance(value, str) else f"at most {number(value)}"


def number(value: float) -> str:
    """Three digits that count."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3
        return f"{value:,.{digits}f}".replace("-", "−")
    return f"{value:.1e}".replace("-", "−")


# plots


def _plots(record: Mapping[str, Any]) -> dict[str, Any]:
    if "large" in record:
        return {"ratios": [], "other_ratios": [], "times": "", "gains": "", "growths": []}
    shapes = record["shapes"]
    return {
        "ratios": [
            ("CPU time, ours over plain TRL", _ratios(shapes, "cpu_ratio", CPU_TARGETS)),
            ("Peak memory, ours over plain TRL", _ratios(shapes, "memory_ratio", MEMORY_TARGETS)),
        ],
        "other_ratios": [
            (f"{name.upper()}: {title}, ours over plain TRL", _ratios(of_other, ratio, limits))
            for name, of_other in record["others"].items()
            for title, ratio, limits in (
                ("CPU time", "cpu_ratio", OTHER_CPU_TARGETS[name]),
                ("peak memory", "memory_ratio", OTHER_MEMORY_TARGETS),
            )
        ],
        "times": _times(shapes),
        "gains": _gains(record["equality"]["gain"]["curves"]),
        "growths": [
            (f"{row['axis']}, {UNITS[cost]}", _growth(row, cost)) for row in record["growth"] for cost in UNITS
        ],
    }


def _ratios(shapes: Mapping[str, Any], name: str, limits: Mapping[str, float]) -> Markup:
    """A row a shape: a dot a pair, a bar at the median, a line at the target."""
    right = max(1.0, *(shape[name]["high"] for shape in shapes.values())) * 1.05

    def x(value: float) -> float:
        return float(120 + (WIDTH - 130) * value / right)

    marks = [_text(x(tick), 16 + 34 * len(shapes) + 12, f"{tick:g}", "middle") for tick in (0, 0.5, 1)]
    marks += [_line(x(tick), 8, x(tick), 12 + 34 * len(shapes), "rule") for tick in (0, 0.5, 1)]
    words = []
    for place, (shape, row) in enumerate(shapes.items()):
        y = 28 + 34 * place
        marks.append(_text(112, y + 4, shape.replace("_", " "), "end"))
        if shape in limits:
            marks.append(_line(x(limits[shape]), y - 13, x(limits[shape]), y + 13, "target"))
        key = {"cpu_ratio": "cpu_s", "memory_ratio": "peak_mb"}[name]
        for pair in row["pairs"]:
            value = pair["ours"][key] / max(pair["plain"][key], 1e-9)
            marks.append(_dot(x(value), y, "ours", f"{number(pair['ours'][key])} to {number(pair['plain'][key])}"))
        marks.append(_line(x(row[name]["value"]), y - 8, x(row[name]["value"]), y + 8, "ours"))
        words.append(f"{shape} {figure(row[name])}")
    return _svg(marks, 34 * len(shapes) + 36, "; ".join(words))


def _times(shapes: Mapping[str, Any]) -> Markup:
    """A bar a shape: what one of our updates spends its time on."""
    longest = max(row["update_s"] for row in shapes.values()) or 1
    marks, words = [], []
    for place, (shape, row) in enumerate(shapes.items()):
        parts = row["arithmetic_s"] | {"overhead": max(0.0, row["update_s"] - sum(row["arithmetic_s"].values()))}
        y, left = 12 + 34 * place, 120.0
        marks.append(_text(112, y + 14, shape.replace("_", " "), "end"))
        for kind, (part, seconds) in enumerate(parts.items()):
            width = (WIDTH - 180) * seconds / longest
            title = f"{part}: {number(seconds)} s"
            marks.append(
                Markup(
                    '<rect class="part{}" x="{:.1f}" y="{}" width="{:.1f}" height="20"><title>{}</title></rect>'
                ).format(kind, left, y, width, title)
            )
            left += width
            words.append(f"{shape}, {title}")
        marks.append(_text(left + 5, y + 14, f"{number(row['update_s'])} s", "start"))
    return _svg(marks, 34 * len(shapes) + 12, "; ".join(words))


def _gains(curves: Mapping[str, Sequence[Sequence[float]]]) -> Markup:
    """Reward over updates: thin for each seed, thick for their mean."""
    values = [value for runs in curves.values() for run in runs for value in run]
    low, high = min(values), max(values)
    high = high if high > low else low + 1
    count = len(next(iter(curves.values()))[0])

    def line(run: Sequence[float], kind: str) -> Markup:
        points = [
            f"{46 + (WIDTH - 54) * i / max(1, count - 1):.1f},{150 - 138 * (value - low) / (high - low):.1f}"
            for i, value in enumerate(run)
        ]
        return Markup('<polyline class="{}" points="{}"/>').format(kind, " ".join(points))

    marks = [_text(41, 153, number(low), "end"), _text(41, 16, number(high), "end")]
    marks += [_text(46, 168, "1", "start"), _text(WIDTH - 8, 168, f"{count} updates", "end")]
    for arm, runs in curves.items():
        marks += [line(run, f"thin {arm}") for run in runs]
        marks.append(line([fmean(step) for step in zip(*runs, strict=True)], f"thick {arm}"))
    means = {arm: [fmean(step) for step in zip(*runs, strict=True)] for arm, runs in curves.items()}
    words = "; ".join(f"{ARMS[arm]} from {number(mean[0])} to {number(mean[-1])}" for arm, mean in means.items())
    return _svg(marks, 174, words)


def _growth(row: Mapping[str, Any], cost: str) -> Markup:
    """Both arms' cost over an axis, both scales logarithmic, with the fitted power laws."""
    sizes, costs = row["sizes"], [max(value, 1e-6) for arm in ARMS for value in row[arm][cost]]
    low, high = math.log(min(costs)), math.log(max(costs))
    high = high if high > low else low + 1

    def x(size: float) -> float:
        return 52 + (WIDTH - 136) * math.log(size / sizes[0]) / math.log(sizes[-1] / sizes[0])

    def y(value: float) -> float:
        return 150 - 132 * (math.log(max(value, 1e-6)) - low) / (high - low)

    marks = [_text(x(size), 168, f"{size}", "middle") for size in sizes]
    marks += [_text(46, y(value) + 4, number(value), "end") for value in (min(costs), max(costs))]
    words = []
    ends = sorted(((y(row[arm][cost][-1]), arm) for arm in ARMS), reverse=True)
    apart = max(0.0, 12 - (ends[0][0] - ends[1][0])) / 2  # so that the labels do not cover each other
    labels = {ends[0][1]: ends[0][0] + 4 + apart, ends[1][1]: ends[1][0] + 4 - apart}
    for arm in ARMS:
        values, power = row[arm][cost], row[arm][f"{cost}_exponent"]
        middle = math.exp(fmean(math.log(max(value, 1e-6)) for value in values))
        centre = math.exp(fmean(math.log(size) for size in sizes))
        fitted = [y(middle * (size / centre) ** power) for size in (sizes[0], sizes[-1])]
        marks.append(_line(x(sizes[0]), fitted[0], x(sizes[-1]), fitted[1], arm))
        marks += [_dot(x(s), y(v), arm, f"{ARMS[arm]}, {s}: {number(v)}") for s, v in zip(sizes, values, strict=True)]
        marks.append(_text(x(sizes[-1]) + 8, labels[arm], f"{arm} ^{power:.2f}", "start"))
        words.append(f"{ARMS[arm]} {', '.join(map(number, values))}, exponent {power:.2f}")
    return _svg(marks, 176, "; ".join(words))


def _svg(marks: Sequence[Markup], height: int, words: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, height, words)
    return head + Markup("\n").join(marks) + Markup("</svg>")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _dot(x: float, y: float, kind: str, title: str) -> Markup:
    """A round dot for ours, a square for plain TRL, so that colour is not needed to tell them apart."""
    mark = '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}</title></circle>'
    if kind == "plain":
        x, y = x - 3, y - 3
        mark = '<rect class="{}" x="{:.1f}" y="{:.1f}" width="6" height="6"><title>{}</title></rect>'
    return Markup(mark).format(kind, x, y, title)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))
