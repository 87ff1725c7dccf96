"""What the page says of an evaluation beside its tables of metrics and pairs: the judge, the KL, and how answers look.

judge_sentence({"name": "a second reward model", "accuracy": {"value": 0.73, …}, "held_out": 274}, "PPO")
    "The judge: a second reward model, accuracy 0.730 [0.675, 0.781] on 274 held-out rows. PPO never climbed it."
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rlrecipes.report.figures import frontier
from rlrecipes.report.languages import languages
from rlrecipes.report.numbers import Cell, estimate_cell
from rlrecipes.report.records import Logs, Pair, ended_by_judge, listed
from rlrecipes.run.stages import POLICIES
from rlrecipes.text import interval, number

MEASURES = {
    "gain": "gain in {}",
    "win_rate": "win rate in {}",
    "sampled_gain": "gain in {}_sampled",
    "judge_gain": "gain by the judge",
    "judge_win_rate": "win rate by the judge",
    "reward_gain": "gain in reward",
    "reward_win_rate": "win rate in reward",
    "disagreement_gain": "more disagreement of the reward models",
}
"""What a pair is compared by, with its name in the table; the headline's name goes into the brackets."""

DOTS = 40
"""On the path of the reward against KL; of a longer run each is the mean of several updates."""

STYLES = {
    "words": "words",
    "repetition": "repetition: share of word trigrams had before",
    "ended": "ended: share that ends by itself",
    "copied": "copied: share of words in a run from the prompt",
    "refusals": "refusals: share",
    "distinct_2": "distinct_2: different word pairs among all",
    "perplexity": "perplexity under the bare base",
}


def judge_sentence(judge: Mapping[str, Any], climbers: str) -> str:
    """Who judged and how good that judge is, or why there was none; empty for an evaluation of before there were judges.

    `climbers` are the algorithms of the run, in words.
    """
    if not judge:
        return ""
    if "missing" in judge:
        return f"No judge: {judge['missing']}."
    measure = next((name for name in ("accuracy", "spearman") if name in judge), None)
    quality = (
        f", {measure} {' '.join(interval(judge[measure]))} on {judge['held_out']} held-out rows" if measure else ""
    )
    asked = f", asked at {judge['url']} about {judge['prompts']} prompts" if "url" in judge else ""
    said = ", but it ended {}, so it is not wholly independent of the policy"
    ended = said.format(listed(names)) if (names := ended_by_judge(judge)) else ""
    return f"The judge: {judge['name']}{quality}{asked}. {climbers} never climbed it{ended}."


def pair_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    """A row for each measure that any pair has, with a cell for each pair."""
    pairs = list(evaluation["comparisons"].values())
    return [
        (
            title.format(evaluation["headline"]),
            [estimate_cell(pair.get(name), signed=name.endswith("gain")) for pair in pairs],
        )
        for name, title in MEASURES.items()
        if any(name in pair for pair in pairs)
    ]


def divergences(evaluation: Mapping[str, Any]) -> list[Cell]:
    """Each policy's KL from where it began, the most that it can be for the best of n; none where nothing was measured."""
    found, bounds = evaluation.get("kl", {}), evaluation.get("kl_bound", {})
    if not found and not bounds:
        return []
    return [
        Cell(f"≤ {number(bounds[name])}") if name in bounds else estimate_cell(found.get(name))
        for name in evaluation["metrics"]
    ]


def style_rows(evaluation: Mapping[str, Any], pair: Pair) -> list[tuple[str, list[Cell]]]:
    """A row for each measure of style: each policy's mean, then the paired difference of the last pair."""
    styles = evaluation.get("style", {})
    told = languages(dict.fromkeys(name for style in styles.values() for name in style))
    titles = STYLES | {name: f"in {title}: share of answers whose language is clear" for name, title in told.items()}
    return [
        (
            title,
            [
                *(estimate_cell(style.get(name)) for style in styles.values()),
                estimate_cell(pair.measures.get(f"{name}_gain"), signed=True),
            ],
        )
        for name, title in titles.items()
        if any(name in style for style in styles.values())
    ]


def bought(evaluation: Mapping[str, Any], logs: Logs, begun: str) -> str:
    """Reward against KL over the updates of each algorithm, drawn, the best of n beside it; empty where no log has such a
    path. `begun` is the policy that they began at."""
    paths = {POLICIES[name].title: path for name, rows in logs.items() if len(path := _path(rows)) > 1}
    if not paths:
        return ""
    metrics = evaluation.get("metrics", {})
    points = {
        POLICIES[name].title: (bound, metrics[name]["reward"]["value"])
        for name, bound in evaluation.get("kl_bound", {}).items()
    }
    said = [f"{name} {number(y)} at {number(x)} nats at most" for name, (x, y) in points.items()]
    words = [_way(name, *path[0], *path[-1]) for name, path in paths.items()]
    means = {name: _means(path) for name, path in paths.items()}
    return frontier(means, points, "; ".join([f"Reward against KL: {words[0]}", *words[1:], *said]), begun)


def _path(updates: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
    """KL and reward of an algorithm's updates, those that are finite."""
    names = ("objective/kl", "objective/scores")
    path = [(row[names[0]], row[names[1]]) for row in updates if all(row.get(name) is not None for name in names)]
    return [point for point in path if all(map(math.isfinite, point))]


def _way(name: str, x0: float, y0: float, x1: float, y1: float) -> str:
    return f"{name} from {number(y0)} at {number(x0)} nats to {number(y1)} at {number(x1)} nats"


def _means(path: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `DOTS` points, each the mean of as many."""
    size = math.ceil(len(path) / DOTS)
    return [(fmean(x), fmean(y)) for x, y in (zip(*path[i : i + size], strict=True) for i in range(0, len(path), size))]
