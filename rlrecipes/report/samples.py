"""The answers that a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rlrecipes.report.records import Pair

SHOWN = 3
"""Samples in each group."""


def gain_groups(
    rows: Sequence[Mapping[str, Any]], pair: Pair
) -> tuple[str, list[tuple[str, Sequence[Mapping[str, Any]]]]]:
    """A sentence with a tally, and groups of samples: where the policy gained most, the middle, and where it lost most.

    The choice depends on the rows alone, so it is the same every time.
    """
    title, over = pair.policy.title, str(pair.policy.over)
    gains = [
        (gain(row, pair.name, over), gain(row, pair.name, over, "reward"), row)
        for row in rows
        if {pair.name, over} <= {*row["policies"]}
    ]
    if not gains:
        return "", []
    gains.sort(key=lambda each: each[:2], reverse=True)
    wins, losses = (sum(sign * each[0] > 0 for each in gains) for sign in (1, -1))
    even = len(gains) - wins - losses
    counts = f"on {wins} of {len(gains)} prompts, the same on {even}, lower on {losses}"
    tally = f"{title} scored higher than {pair.over.title} {counts}."
    by_gain = [row for *_, row in gains]
    best, worst = min(SHOWN, wins), min(SHOWN, losses)
    rest = by_gain[best : len(by_gain) - worst]
    start = max(0, len(rest) - SHOWN) // 2
    groups = {
        f"Where {title} gained most": by_gain[:best],
        "In the middle": rest[start : start + SHOWN],
        f"Where {title} lost most": by_gain[len(by_gain) - worst :][::-1],
    }
    return tally, [(title, samples) for title, samples in groups.items() if samples]


def gain(row: Mapping[str, Any], policy: str, over: str, score: str = "headline") -> float:
    """The paired difference of two policies' answers to one prompt."""
    return float(row["policies"][policy][score] - row["policies"][over][score])


def training_samples(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each sampled prompt with its answers over the updates; an answer that stays the same appears once, with its updates."""
    answers: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for step, table in groupby(rows, key=lambda row: row["step"]):
        for place, row in enumerate(table):
            answers.setdefault((place, row["prompt"]), []).append((step, row["answer"]))
    histories = []
    for (_, prompt), pairs in answers.items():
        runs = [(answer, [step for step, _ in run]) for answer, run in groupby(pairs, key=lambda pair: pair[1])]
        histories.append((prompt, [(_span(steps), answer) for answer, steps in runs]))
    return histories


def _span(steps: Sequence[int]) -> str:
    return f"{steps[0]}–{steps[-1]}" if len(steps) > 1 else str(steps[0])
