"""Curves of a run, laid out as drawings for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rlrecipes.report.records import Logs, Records, begun_at, column, finished_algorithms, json_lines, kept_update
from rlrecipes.run.folder import Run
from rlrecipes.run.stages import POLICIES

PROGRESS = (
    ("objective/scores", "Reward", "weighted sum of the terms, clipped, before the KL penalty"),
    ("objective/kl", "KL from the reference", "nats per answer"),
    ("answers/length", "Answer length", "tokens"),
    ("answers/ended", "Answers that end by themselves", "share"),
    ("policy/entropy_avg", "Entropy", "nats per token"),
    ("objective/disagreement", "Disagreement", "standard deviation of the reward models' scores"),
)

LOOKS = (
    (
        "slice/headline",
        "Headline while training",
        "answers to training prompts set aside; dot: the policy kept",
    ),
    ("slice/reward", "Reward while training", "of the same answers"),
    ("slice/judge", "Judge while training", "its score of the same answers, which {} does not climb"),
)

GROUPS = (
    ("groups/best", "Best answer to a prompt", "best@k: its reward, mean over the prompts"),
    ("groups/spread", "Spread among answers to a prompt", "standard deviation of their rewards; 0 teaches nothing"),
    ("groups/flat", "Prompts without a difference", "share whose answers all get the same reward"),
    ("groups/draws", "Draws for a batch", "until its prompts can teach, ten at most"),
)
"""Of algorithms that set several answers to a prompt against each other."""

PREFERENCES = (
    ("loss", "Loss", "on what a few steps learned from"),
    ("rewards/accuracies", "Chosen answers preferred", "share, more than by {}"),
    ("rewards/margins", "Margin", "of the implicit rewards: beta times the log-ratio to {}"),
    ("rewards/chosen", "Chosen answers", "implicit reward; below 0, likelier under {}"),
    ("rewards/rejected", "Rejected answers", "implicit reward"),
)
"""Of DPO, which samples nothing; `{}` is the policy that it began at."""

STEPS = (
    ("kl_coef", "KL weight", "per token"),
    ("val/ratio", "Probability ratio", "new to old policy; near 1"),
    ("policy/clipfrac_avg", "Clipped", "share of tokens"),
)


@dataclass(frozen=True)
class Plot:
    """A curve, laid out in the `width` times `height` units of an SVG drawing."""

    title: str
    note: str
    words: str
    """The curve in words, for screen readers."""
    width: int
    height: int
    lines: Sequence[tuple[str, str]]
    """Class and `points` of each SVG polyline: `raw` every value and `trend` their moving mean, or `run<i>` the i-th run."""
    rules: Sequence[tuple[float, str]]
    """Height and label of each horizontal rule."""
    steps: tuple[int, int]
    """The first and the last update or optimizer step."""
    mark: tuple[float, float] | None = None
    """The place of the policy that was kept."""


# curves


def curves(run: Run, records: Records, logs: Logs) -> list[tuple[str, Sequence[Plot]]]:
    """The curves of a run in groups with titles, for each finished algorithm and for what is trained before; those without
    curves are left out."""
    groups = [group for name in finished_algorithms(records) for group in _of_algorithm(name, records, logs[name])]
    found = [(title, [plot for plot in plots if plot is not None]) for title, plots in (*groups, _before(run, records))]
    return [(title, plots) for title, plots in found if plots]


def _of_algorithm(
    name: str, records: Records, updates: Sequence[Mapping[str, float]]
) -> list[tuple[str, list[Plot | None]]]:
    """The curves of an algorithm, and of its steps."""
    title, record = POLICIES[name].title, records[name]
    settings = record.get("settings", {})
    terms = sorted({key.partition("/")[2] for row in updates for key in row if key.startswith("terms/")})
    weighted = [(f"terms/{t}", f"Term: {t}", f"before its weight of {settings.get(f'terms.{t}', '?')}") for t in terms]
    looks = [{"step": row["update"], **row} for row in record.get("watch", {}).get("rows", ())]
    kept = kept_update(records, name)
    watched = [_plot(looks, key, of, note.format(title), mark=kept) for key, of, note in LOOKS if looks]
    preferences = [(key, of, note.format(begun_at(records))) for key, of, note in PREFERENCES]
    curves = (PROGRESS[0], *weighted, *PROGRESS[1:], *GROUPS, *_passing(updates), *preferences)
    trained = [_plot(updates, *curve) for curve in curves]
    steps = [_plot(updates, *curve, small=True) for curve in STEPS]
    return [(title, [*watched, *trained]), (f"{title}’s steps", steps)]


def _passing(updates: Sequence[Mapping[str, float]]) -> list[tuple[str, str, str]]:
    """The curves of what passes by a term of the reward, where it was 0 or 1 in every update."""
    keys = dict.fromkeys(key for row in updates for key in row if key.startswith("pass/"))
    told = [
        (key, *key.removeprefix("pass/").rpartition("@")[::2]) for key in keys if all(key in row for row in updates)
    ]
    return [
        (key, f"pass@{k}: {name}", "share of answers that pass" if k == "1" else f"share of prompts, one of {k} passes")
        for key, name, k in told
    ]


def _before(run: Run, records: Records) -> tuple[str, list[Plot | None]]:
    """The curves of what every algorithm starts from."""
    sft, reward = (json_lines(run.stage(stage) / "log.jsonl") for stage in ("sft", "reward"))
    regression = records.get("reward", {}).get("objective") == "regression"
    unit = "squared error; 1 is guessing the mean" if regression else "nats per comparison"
    plots = [
        _plot(sft, "loss", "SFT loss", "nats per token"),
        _plot(reward, "loss", "Reward model loss", unit),
        _plot(reward, "accuracy", "Reward model accuracy", "on its training batches"),
    ]
    return "Before the policy", plots


def _plot(
    rows: Sequence[Mapping[str, float]],
    key: str,
    title: str,
    note: str,
    small: bool = False,
    mark: int | None = None,
) -> Plot | None:
    """The curve of a column of a log, with its step `mark` marked; None where that has fewer than two finite values."""
    values = [value for _, value in column(rows, key)]
    first, last = (f"{value:.4g}" for value in (values[0], values[-1])) if values else ("", "")
    words = f"from {first} to {last}, at least {min(values):.4g}, at most {max(values):.4g}" if values else ""
    kept = next((value for step, value in column(rows, key) if step == mark), None)
    words += f", {kept:.4g} of the policy kept, update {mark}" if kept is not None else ""
    return _drawn({"": column(rows, key)}, title, note, words, small, mark)


def overlay(logs: Mapping[str, Sequence[Mapping[str, float]]], key: str, title: str, note: str) -> Plot | None:
    """The same column of several runs' logs on the same axes; None where no log has two finite values of it."""
    columns = {name: column(rows, key) for name, rows in logs.items()}
    series = {f"run{i}": points for i, points in enumerate(columns.values()) if len(points) > 1}
    words = "; ".join(f"{name} from {p[0][1]:.4g} to {p[-1][1]:.4g}" for name, p in columns.items() if len(p) > 1)
    return _drawn(series, title, note, words) if series else None


def _drawn(
    series: Mapping[str, Sequence[tuple[int, float]]],
    title: str,
    note: str,
    words: str,
    small: bool = False,
    mark: int | None = None,
) -> Plot | None:
    """Curves of (step, value) by their class, on axes that hold all of them; a class of its own gets no thin line."""
    steps = [step for points in series.values() for step, _ in points]
    if min(map(len, series.values())) < 2:
        return None
    start, end = min(steps), max(steps)
    low, high = _range([value for points in series.values() for _, value in points])
    width, height = (220, 90) if small else (340, 170)

    def place(step: float, value: float) -> tuple[float, float]:
        x = 46 + (width - 54) * (step - start) / (end - start or 1)
        return round(x, 1), round(height - 22 - (height - 32) * (value - low) / (high - low), 1)

    def polyline(points: Sequence[tuple[int, float]]) -> str:
        return " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))

    lines = []
    for name, points in series.items():
        window = len(points) // 20
        means = _moving_mean([value for _, value in points], window)
        smooth = [(step, mean) for (step, _), mean in zip(points, means, strict=True)] if window > 1 else points
        lines += [("raw", polyline(points))] if window > 1 and not name else []
        lines.append((name or "trend", polyline(smooth)))
    return Plot(
        title=title,
        note=note,
        words=f"{title}, {note}: {words}",
        width=width,
        height=height,
        lines=lines,
        rules=[(place(start, tick)[1], label) for tick, label in _ticks(low, high, 3 if small else 5)],
        steps=(start, end),
        mark=next((place(*point) for points in series.values() for point in points if point[0] == mark), None),
    )


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


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest value; a curve that is constant, up to rounding, gets room above and below."""
    low, high = min(values), max(values)
    room = max(abs(low), abs(high)) or 1.0
    return (low, high) if high - low > 1e-9 * room else (low - room / 2, high + room / 2)
