"""The answers that a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

SHOWN = 3
"""Samples in each group."""


# samples


def gain_groups(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, Sequence[Mapping[str, Any]]]]]:
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
