"""The answers that a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rlrecipes.report.records import Pair

SHOWN = 3
"""Samples in each group."""


# samples


def gain_groups(
    rows: Sequence[Mapping[str, Any]], pair: Pair
) -> tuple[str, list[tuple[str, Sequence[Mapping[str, Any]]]]]:
    """A tally, and the same samples every time: where the policy gained most, the middle, and where it lost most."""
    title, over = pair.policy.title, str(pair.policy.over)
    gains = [
        (_gain(row, pair.name, over, "headline"), _gain(row, pair.name, over, "reward"), row)
        for row in rows
        if {pair.name, over} <= {*row["policies"]}
    ]
    if not gains:
        return "", []
    gains.sort(key=lambda gain: gain[:2], reverse=True)
    won, lost = (sum(sign * gain[0] > 0 for gain in gains) for sign in (1, -1))
    even = len(gains) - won - lost
    counts = f"on {won} of {len(gains)} prompts, the same on {even}, lower on {lost}"
    tally = f"{title} scored higher than {pair.over.title} {counts}."
    ordered = [row for *_, row in gains]
    best, worst = min(SHOWN, won), min(SHOWN, lost)
    rest = ordered[best : len(ordered) - worst]
    start = max(0, len(rest) - SHOWN) // 2
    groups = {
        f"Where {title} gained most": ordered[:best],
        "In the middle": rest[start : start + SHOWN],
        f"Where {title} lost most": ordered[len(ordered) - worst :][::-1],
    }
    return tally, [(title, shown) for title, shown in groups.items() if shown]


def _gain(row: Mapping[str, Any], policy: str, over: str, score: str) -> float:
    return float(row["policies"][policy][score] - row["policies"][over][score])


def training_samples(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
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
