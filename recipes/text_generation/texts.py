"""A user's own texts: where an opening ends, what a label may look like, what disorder is, and what a Chinese poem's form.

{"text": "the film we saw yesterday was long but never dull", "label": 1}
-> "the film we saw yesterday" | "was long but never dull"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any

import regex

from rlrecipes.recipe import spelled
from rlrecipes.text import CHARACTER, PART, words

LABELS = {"1": 1, "1.0": 1, "true": 1, "pos": 1, "positive": 1, "0": 0, "0.0": 0, "false": 0, "neg": 0, "negative": 0}

FORMS = (5, 7)
"""Characters in a verse of regulated Chinese poetry."""
_CHARACTER = "[\u3400-\u9fff\U00020000-\U0003ffff]"


def cut(text: Any) -> tuple[str, str]:
    """The first five words and the rest; of unspaced text (Chinese, Thai, …), a clause or six characters.

    Raises:
        ValueError: that is no text, or one too short to be cut.
    """
    if not isinstance(text, str):
        raise ValueError("'text' must be a text")
    text, count = text.strip(), len(words(text))
    if count < 8:
        raise ValueError("'text' has fewer than 8 words, too few to cut into an opening and its continuation")
    spaced = len(text.split()) >= max(6, count / 2)
    clause = rf"(?:\w\p{{M}}*){{3,11}}\p{{Terminal_Punctuation}}(?=\W*\w)|(?:{CHARACTER}){{6}}"
    pattern = r"(?:\S+\s+){4}\S+" if spaced else clause
    end = regex.match(pattern, text, regex.DOTALL)
    assert end  # six runs without a space, or the characters of eight words
    return text[: end.end()], text[end.end() :].strip()


def label_of(value: Any) -> dict[str, int]:
    """What is known of a text: `{"label": 1}` if positive, `{"label": 0}` if negative, nothing if it has no label.

    Raises:
        ValueError: the label is none of these.
    """
    if value is None or value == "":
        return {}
    if spelled(value) not in LABELS:
        raise ValueError("'label' must be 1, 0, 'positive' or 'negative'")
    return {"label": LABELS[spelled(value)]}


def form_of(text: str) -> dict[str, int]:
    """`{"form": 7}` of a Chinese poem whose verses all have 7 characters, or 5: a quatrain at least; nothing of other texts.

    A verse is what stands between two punctuation marks, line ends or spaces; two make a couplet.
    """
    first, *others = verses(text) or [""]
    return {"form": len(first)} if len(first) in FORMS and in_form(others, len(first)) == 1 else {}


def verses(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def in_form(following: Sequence[str], count: int) -> float:
    """The share of the verses after a poem's first that have `count` Chinese characters.

    Verses that are missing to whole couplets, or to a quatrain, count as such that have not.
    """
    good = sum(re.fullmatch(rf"{_CHARACTER}{{{count}}}", verse) is not None for verse in following)
    return good / max(3, len(following) | 1)  # with the first verse, an odd number makes couplets


def disordered(text: str, rng: Random) -> str:
    """The same words in random order; what stands between them stays, so that it gives nothing away."""
    shuffled = PART.findall(text)
    rng.shuffle(shuffled)
    mixed: str = PART.sub(lambda _: shuffled.pop(), text)
    return mixed
