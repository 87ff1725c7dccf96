"""Text generation on public data: film reviews, stories, and summaries of forum posts.

stanfordnlp/imdb: {"text": "A slow start.<br /><br />The last act is lovely, though, and so is the music.", "label": 1}
-> Continue: A slow start. The last | act is lovely, though, and so is the music.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from recipes.text_generation.texts import cut, label_of
from rlrecipes import metrics
from rlrecipes.recipe import Comparison, Example, HubSet, Prompt, user

MOST_WORDS = 60
"""Of a review's continuation, which ends with a sentence; a whole review has some 230."""

Ask = Callable[[str], Prompt]


def review(ask: Ask, row: Mapping[str, Any]) -> Example:
    """{"text": "Go and see it.<br /><br />The cast is …", "label": 1}; 1 is positive, 0 negative."""
    opening, rest = cut(" ".join(row["text"].replace("<br />", " ").split()))
    return Example(ask(opening), (whole_sentences(rest, MOST_WORDS),), label_of(row["label"]))


def whole_sentences(text: str, most: int) -> str:
    """As many sentences from the start of a text as have at most `most` words together.

    Raises:
        ValueError: the first has more.
    """
    kept = ""
    for end in re.finditer(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|$", text):
        if len(text[: end.end()].split()) > most:
            break
        kept = text[: end.end()]
    if not kept:
        raise ValueError(f"the continuation has no end within {most} words")
    return kept


def continuation(ask: Ask, row: Mapping[str, Any]) -> Comparison:
    """{"prompt": "She opened the door.", "chosen": " The garden was in bloom.", "rejected": " It was bare."}"""
    return Comparison(ask(row["prompt"].strip()), row["chosen"].strip(), row["rejected"].strip())


def summary(row: Mapping[str, Any]) -> Example:
    """{"prompt": "SUBREDDIT: r/pets\\n\\nTITLE: …\\n\\nPOST: …\\n\\nTL;DR:", "completion": " The cat sits on my laptop."}"""
    return Example(user(row["prompt"].strip()), (row["completion"].strip(),))


def summaries(row: Mapping[str, Any]) -> Comparison:
    """Two summaries of a post; the validation split holds news articles as well, which are no posts.

    {"prompt": "SUBREDDIT: r/pets\\n\\n…\\n\\nTL;DR:", "chosen": " The cat sits on my laptop.", "rejected": " I have a cat."}
    """
    if not row["prompt"].startswith("SUBREDDIT:"):
        raise ValueError("no forum post but a news article")
    return Comparison(user(row["prompt"].strip()), row["chosen"].strip(), row["rejected"].strip())


def sets(ask: Ask) -> tuple[HubSet, ...]:
    overlap = metrics.mean_of("overlap", metrics.f1)
    return (
        HubSet(
            "stanfordnlp/imdb",
            serves=("demonstrations", "prompts"),
            columns=("text", "label"),
            read=partial(review, ask),
            licence="other",
            config="plain_text",
            test="test",  # each split is sorted by label, so that all of it is read
        ),
        HubSet(
            "trl-lib/lm-human-preferences-sentiment",
            serves=("preferences",),
            columns=("prompt", "chosen", "rejected"),
            read=partial(continuation, ask),
            licence="none stated",
            test="test",
        ),
        HubSet(
            "trl-lib/lm-human-preferences-descriptiveness",
            serves=("preferences",),
            columns=("prompt", "chosen", "rejected"),
            read=partial(continuation, ask),
            licence="none stated",
            test="test",
            default=False,
        ),
        HubSet(
            "trl-lib/tldr",
            serves=("demonstrations", "prompts"),
            columns=("prompt", "completion"),
            read=summary,
            licence="none stated",
            test="test",
            take=20_000,
            default=False,
            metrics=(overlap,),
        ),
        HubSet(
            "trl-lib/tldr-preference",
            serves=("preferences",),
            columns=("prompt", "chosen", "rejected"),
            read=summaries,
            licence="none stated",
            test="validation",
            take=20_000,
            default=False,
        ),
    )
