"""String logic shared by rewards and metrics: pure, and far from the GPU."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+(?:['’-][^\W\u3400-\u9fff]+)*")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "。，！？；：、“”‘’（）《》…")


def words(text: str) -> list[str]:
    """Lower-case words; every Chinese character is a word of its own, punctuation is none.

    >>> words("Well-made, isn't it? 真好")
    ['well-made', "isn't", 'it', '真', '好']
    """
    return _TOKEN.findall(text.lower())


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016, section 6.1)."""
    text = unicodedata.normalize("NFKC", text).lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` neighbours, in order; none when there are fewer than `n` items."""
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def overlap_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of two bags of words, from 0 to 1; two empty bags agree."""
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))


def shortened(text: str) -> str:
    """A text in quotes on one line of at most 60 characters, for a sentence about it."""
    line = " ".join(text.split())
    return f"'{line}'" if len(line) <= 60 else f"'{line[:57]}…'"
