"""A user's own texts: where an opening ends, what a label may look like, what disorder is.

{"text": "the film we saw yesterday was long but never dull", "label": 1}
-> "the film we saw yesterday" | "was long but never dull"
"""

from __future__ import annotations

import re
from random import Random
from typing import Any

from rlrecipes.text import words

LABELS = {"1": 1, "1.0": 1, "true": 1, "pos": 1, "positive": 1, "0": 0, "0.0": 0, "false": 0, "neg": 0, "negative": 0}


def cut(text: Any) -> tuple[str, str]:
    """The first five words and the rest; of unspaced text (Chinese), the first clause or else the first six characters.

    Raises:
        ValueError: that is no text, or one too short to be cut.
    """
    if not isinstance(text, str):
        raise ValueError(f"'text' must be a text, not {text!r}")
    text, count = text.strip(), len(words(text))
    if count < 8:
        raise ValueError("'text' has fewer than 8 words, too few to cut into an opening and its continuation")
    spaced = len(text.split()) >= max(6, count / 2)
    pattern = r"(?:\S+\s+){4}\S+" if spaced else r"\w{3,11}[，。！？；：、,.!?;:](?=\W*\w)|.{6}"
    end = re.match(pattern, text, re.DOTALL)
    assert end  # six runs without a space, or the characters of eight words
    return text[: end.end()], text[end.end() :].strip()


def label_of(value: Any) -> dict[str, int]:
    """What is known of a text: `{"label": 1}` if positive, `{"label": 0}` if negative, nothing if it has no label.

    Raises:
        ValueError: the label is none of these.
    """
    if value is None or value == "":
        return {}
    if str(value).strip().lower() not in LABELS:
        raise ValueError(f"'label' must be 1, 0, 'positive' or 'negative', not {value!r}")
    return {"label": LABELS[str(value).strip().lower()]}


def disordered(text: str, rng: Random) -> str:
    """The same words in random order; what stands between them stays, so that it gives nothing away."""
    word = r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+"
    shuffled = re.findall(word, text)
    rng.shuffle(shuffled)
    return re.sub(word, lambda _: shuffled.pop(), text)
