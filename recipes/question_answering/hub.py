"""Question answering on public data: spans of passages, answers with sources, and answers in forums.

rajpurkar/squad: {"context": "The tower was built in 1901 by Ada Holm.", "question": "Who built the tower?",
                  "answers": {"text": ["Ada Holm"], "answer_start": [31]}}
-> The tower was built in 1901 by Ada Holm.\nQuestion: Who built the tower? | Ada Holm
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rlrecipes.recipe import Comparison, Example, HubSet, Prompt, user

LEAST_RATIO = 2.0
"""Of the votes of two forum answers; below it the order says more of when they were written than of what they say."""
CITATION = re.compile(r"\s*\[\d+(?:\s*,\s*\d+)*\]")


def sourced(ask: Callable[[str, str], Prompt], row: Mapping[str, Any]) -> Comparison:
    """Two answers from quoted pages; the passage is what either quotes, the marks that point into quotes are removed.

    {"question": {"full_text": "Why is the sea salty?", …}, "quotes_0": {"title": […], "extract": ["Rivers carry …"]},
     "answer_0": "Rivers bring minerals [1].", "score_0": 0.5, "quotes_1": …, "answer_1": "…", "score_1": -0.5}

    The margin is the difference of the scores, which go from -1 to 1.
    """
    if row["score_0"] == row["score_1"]:
        raise ValueError("neither answer was preferred")
    better, worse = (0, 1) if row["score_0"] > row["score_1"] else (1, 0)
    extracts = list(dict.fromkeys(extract.strip() for i in (0, 1) for extract in quoted(row[f"quotes_{i}"])))
    question = row["question"]["full_text"].strip()
    prompt = ask("\n".join(extracts), question) if extracts else user(f"Question: {question}")
    chosen, rejected = (CITATION.sub("", row[f"answer_{i}"]).strip() for i in (better, worse))
    return Comparison(prompt, chosen, rejected, margin=abs(row["score_0"] - row["score_1"]))


def quoted(quotes: Any) -> list[str]:
    """The extracts, of a dict of lists as `datasets` makes it or of a list of objects."""
    return quotes["extract"] if isinstance(quotes, Mapping) else [quote["extract"] for quote in quotes or ()]


def voted(row: Mapping[str, Any]) -> Comparison:
    """Two answers to a forum post, one with at least twice the votes of the other.

    {"history": "Why is my bread flat?", "human_ref_A": "Your yeast may be old.", "human_ref_B": "Bad luck.",
     "labels": 1, "score_A": 40, "score_B": 10, "score_ratio": 4.0}; `labels` is 1 where A is preferred
    """
    if row["score_ratio"] < LEAST_RATIO:
        raise ValueError(f"fewer than {LEAST_RATIO:g} times the other answer's votes")
    if row["labels"] not in (0, 1):
        raise ValueError("'labels' must be 1 or 0")
    a, b = row["human_ref_A"].strip(), row["human_ref_B"].strip()
    return Comparison(user(row["history"].strip()), *((a, b) if row["labels"] == 1 else (b, a)))


def sets(ask: Callable[[str, str], Prompt], read: Callable[[Mapping[str, Any]], Example]) -> tuple[HubSet, ...]:
    return (
        HubSet(
            "rajpurkar/squad",
            serves=("demonstrations", "prompts"),
            columns=("context", "question", "answers"),
            read=read,
            licence="CC-BY-SA-4.0",
            config="plain_text",
            test="validation",
        ),
        HubSet(
            "openai/webgpt_comparisons",
            serves=("demonstrations", "prompts", "preferences"),
            columns=("question.full_text", *(f"{name}_{i}" for name in ("quotes", "answer", "score") for i in (0, 1))),
            read=partial(sourced, ask),
            licence="none stated",
            revision="refs/convert/parquet",  # the main branch is a script, which `datasets` no longer runs
            default=False,
        ),
        HubSet(
            "stanfordnlp/SHP",
            serves=("demonstrations", "prompts", "preferences"),
            columns=("history", "human_ref_A", "human_ref_B", "labels", "score_ratio"),
            read=voted,
            licence="none stated; Reddit's API terms",
            test="validation",
            take=20_000,
            default=False,
        ),
    )
