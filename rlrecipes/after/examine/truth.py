"""Whether the reward model ranks the policies' answers as the recipe's headline does.

{"headline": "chrf", "all": {"value": 0.61, …, "count": 900}, "ppo": {…}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlrecipes.after.examine.subject import Subject
from rlrecipes.metrics import correlation
from rlrecipes.recipe import Message
from rlrecipes.report.records import json_lines


def agreement_with_headline(subject: Subject) -> dict[str, Any]:
    """Spearman's correlation of score and headline over the evaluation's answers, of all policies and of each.

    Nothing before the evaluation. A policy whose answers all have one headline has NaN.

    Raises:
        UserError: the file of answers is damaged.
    """
    finished = subject.request.finished
    if finished is None or "evaluate" not in finished.records:
        return {}
    samples = json_lines(finished.run.stage("evaluate") / "samples.jsonl")
    scores: dict[str, list[float]] = {}
    headlines: dict[str, list[float]] = {}
    for policy in samples[0]["policies"]:
        answers = [row["policies"][policy] for row in samples]
        prompts = [tuple(Message(**turn) for turn in row["prompt"]) for row in samples]
        scores[policy] = subject.raw(
            [(prompt, answer["answer"]) for prompt, answer in zip(prompts, answers, strict=True)]
        )
        headlines[policy] = [answer["headline"] for answer in answers]
    return {
        "headline": finished.records["evaluate"]["headline"],
        "all": _ranked(_joined(scores), _joined(headlines)),
        **{policy: _ranked(scores[policy], headlines[policy]) for policy in scores},
    }


def _joined(values: Mapping[str, list[float]]) -> list[float]:
    return [value for column in values.values() for value in column]


def _ranked(scores: list[float], headlines: list[float]) -> dict[str, float]:
    return correlation(scores, headlines, ranked=True).as_json() | {"count": len(scores)}
