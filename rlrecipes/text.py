"""String logic shared by rewards, metrics and sentences: pure, and far from the GPU."""

from __future__ import annotations

import ast
import json
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import regex

LETTER = r"[\w\p{N}\p{M}\p{Join_Control}]"
"""What words are made of. Marks and joiners belong to the letter before them: a word without its vowel signs is another."""
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ーｰ\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}\p{Tai_Tham}]"
"""Scripts that put no spaces between words."""
CHARACTER = r"\X[\p{M}\p{Join_Control}]*"
"""A character as people see it: a grapheme cluster (UAX 29) with its marks, of which some of Myanmar's stand outside."""
_EMOJI = "[[\\p{Extended_Pictographic}\\p{RI}]--[©®™‼⁉]]"
_ONE = rf"(?=[{UNSPACED}&&[\w\p{{N}}]--\p{{M}}]|{_EMOJI}){CHARACTER}"
_RUN = rf"(?![\p{{M}}\p{{Join_Control}}])[{LETTER}--{UNSPACED}]+"
PART = regex.compile(f"{_ONE}|{_RUN}", regex.V1)
"""A character of an unspaced script with its marks, an emoji, or a run of other letters."""
_WORD = regex.compile(f"{_ONE}|{_RUN}(?:['’-]{_RUN})*", regex.V1)
_SPLIT = regex.compile(f"{_ONE}|(?:(?!{_ONE}).)+", regex.V1)
_PUNCTUATION = regex.compile(
    rf"[[{re.escape(string.punctuation)}“”‘’…][\p{{P}}--[\u0080-\u00ff\u2000-\u206f]]]\p{{M}}*", regex.V1
)
"""All but the dashes and quotes of Latin-1 and the block after it, which SQuAD's normalisation leaves; with its marks, which
would else stand on the letter before."""
_SELECTORS = str.maketrans("", "", "\ufe0e\ufe0f")
"""They say whether a sign is shown as text or as an emoji, and people type it with and without."""
COURTESY = frozenset(
    ("please", "thank", "thanks", "certainly", "gladly", "pleasure", "welcome", "glad", "happy", "sorry", "kindly")
)
"""English words of courtesy."""


def folded(text: str, form: Literal["NFC", "NFKC"] = "NFC") -> str:
    """A text in lower case and a normal form. The Turkish İ is an i with a dot that its lower case has anyway.

    >>> folded("İzmir ❤️") == "izmir ❤"
    True
    """
    lower = unicodedata.normalize(form, text).lower().replace("i\u0307", "i")
    return unicodedata.normalize(form, lower).translate(_SELECTORS)


def words(text: str) -> list[str]:
    """Lower-case words in NFC, without punctuation; an emoji is a word, and each character of a script without spaces.

    >>> words("Well-made, isn't it? 真好")
    ['well-made', "isn't", 'it', '真', '好']
    """
    found: list[str] = _WORD.findall(folded(text))
    return found


def characters(text: str) -> list[str]:
    """The characters as people see them, each with its marks."""
    found: list[str] = regex.findall(CHARACTER, text)
    return found


def parted(text: str) -> str:
    """A text with spaces around each emoji and each character of a script without spaces.

    >>> parted("ไป go")
    ' ไ  ป  go'
    """
    return str(regex.sub(_ONE, r" \g<0> ", text, flags=regex.V1))


def is_spaced(text: str) -> bool:
    """Whether spaces stand between most of a text's words."""
    return 2 * len(text.split()) >= len(words(text))


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016, section 6.1)."""
    text = _PUNCTUATION.sub("", folded(text, "NFKC"))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def normal_words(text: str) -> list[str]:
    """The words of a normalised answer; of scripts without spaces, and of emoji, the characters."""
    return [part for word in normalize_answer(text).split() for part in _SPLIT.findall(word)]


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` neighbours, in order; none when there are fewer than `n` items."""
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def repeated(said: Sequence[str]) -> float:
    """The share of word trigrams that repeat an earlier one, from 0 to 1; 0 of fewer than three words."""
    grams = ngrams(said, 3)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def overlap_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of two bags of words, from 0 to 1; two empty bags agree."""
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))


_STRING = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_NUMPY = re.compile(
    rf"(?s)(?P<string>{_STRING})|array\((?P<open>\[)|\](?P<close>(?:,\s*dtype=\w+)?\))|\}}(?P<next>\s*\n\s*)\{{"
)
"""What NumPy writes otherwise than Python: `array([…], dtype=object)`, and no comma between objects."""


def written(text: str) -> Any:
    """The value that a text writes as JSON, as Python or as NumPy does; the texts within it stay as they are.

    >>> written("{'text': array(['Ada Holm'], dtype=object)}")
    {'text': ['Ada Holm']}

    Raises:
        ValueError: it writes none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        plain = _NUMPY.sub(_as_python, text.strip())
    try:
        return ast.literal_eval(plain)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError("a text that cannot be read") from None


def _as_python(match: re.Match[str]) -> str:
    return match["string"] or ("[" if match["open"] else "]" if match["close"] else "},{")


def shortened(text: str, length: int = 60) -> str:
    """A text on one line of at most `length` characters; an ellipsis replaces the rest.

    >>> shortened("The child reads\\na book.", 12)
    'The child r…'
    """
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def quoted(text: str, length: int = 60) -> str:
    """A text in quotes, shortened, for a sentence about it."""
    return f"'{shortened(text, length)}'"


SYMPTOMS = "docs/when-it-does-not-learn.md"
Symptom = Literal[
    "The policy did not move",
    "The reward stays flat",
    "The reward model is at chance",
    "The loss ends where it began",
    "The KL explodes",
    "The answers never end",
    "The length drifts",
    "The answers repeat themselves",
    "Every prompt gets the same answer",
    "The answers to a prompt do not differ",
    "One word is in every answer",
    "The reward goes up and the task goes down",
    "The policy stays below the base",
    "The policy stays below the best of 4",
]
"""The headings of that page."""


def see(symptom: Symptom, sentence: str) -> str:
    """A warning that ends in where the page of symptoms tells what to turn.

    >>> see("The KL explodes", "The KL reached 31 nats.")
    'The KL reached 31 nats (see "The KL explodes" in docs/when-it-does-not-learn.md).'
    """
    stop = "." if sentence.endswith(".") else ""
    return f'{sentence.removesuffix(stop)} (see "{symptom}" in {SYMPTOMS}){stop}'


def aligned(rows: Sequence[Sequence[str]], words: Collection[int] | None = None) -> list[str]:
    """The lines of a table under its heads, the first row: columns in `words` (all of them, for None) to the left, numbers
    to the right. Short rows are filled up."""
    count = len(rows[0])
    full = [[*row, *[""] * (count - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    left = [words is None or i in words for i in range(count)]
    cells = [[c.ljust(w) if to else c.rjust(w) for c, w, to in zip(row, widths, left, strict=True)] for row in full]
    return ["  ".join(row).rstrip() for row in cells]


MOST = 3.4028234663852886e38
"""The largest number of float32, in which rewards are added up."""


def is_number(value: Any) -> bool:
    """Whether a value is one number that float32 holds; texts and arrays of one number are none."""
    if isinstance(value, str | bytes | bytearray) or getattr(value, "ndim", 0) != 0:
        return False
    try:
        return abs(float(value)) <= MOST
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def plain_number(value: Any) -> float:
    """A number as JSON holds it, which NumPy's and decimals are not."""
    return value if isinstance(value, int | float) else float(value)


def number(value: float, places: int = 3, signed: bool = False) -> str:
    """A number as a person reads it, with a real minus sign; a dash for NaN and infinity.

    >>> number(-1234.5, 1)
    '−1,234.5'
    """
    if not math.isfinite(value):
        return "–"
    value = round(value, places) + 0.0  # no minus zero
    return f"{value:{'+' if signed else ''},.{places}f}".replace("-", "−")


def interval(estimate: Mapping[str, float], signed: bool = False) -> tuple[str, str]:
    """The value of an estimate `{"value": …, "low": …, "high": …}` and its interval, as texts; NaN has an empty interval.

    >>> interval({"value": 0.8431, "low": 0.82, "high": 0.86})
    ('0.843', '[0.820, 0.860]')
    """
    places = 3 if max(abs(estimate["low"]), abs(estimate["high"])) < 10 else 1
    bounds = f"[{number(estimate['low'], places)}, {number(estimate['high'], places)}]"
    return number(estimate["value"], places, signed), bounds if math.isfinite(estimate["value"]) else ""
