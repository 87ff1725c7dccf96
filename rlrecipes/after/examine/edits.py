"""Answers changed in ways that should not matter to a score, and in ways that should cost; plain functions of texts.

The child reads two books.  →  It is not true that the child reads two books.   should cost
                            →  the child reads two books.                       should not matter
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from rlrecipes.text import PART, characters, is_spaced, words

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER = re.compile(rf"\d|\b(?:{'|'.join(NUMBERS)})\b")
_AUXILIARY = re.compile(
    r"\b(am|is|are|was|were|has|have|had|can|could|will|would|shall|should|may|might|must|do|does|did)\b"
)

Change = Callable[[str, str], str]
"""A changed answer from an answer and another prompt's; the answer itself where the change does not apply."""


@dataclass(frozen=True)
class Edit:
    """A way to change an answer."""

    name: str
    change: Change
    harmful: bool
    """Whether the score should fall, rather than stay."""


def negated(text: str, other: str) -> str:
    """An English sentence that says the opposite; a text whose letters are not Latin stays."""
    if not text[:1].isascii() or not is_spaced(text) or not words(text):
        return text
    if re.search(r" not\b", text):
        return re.sub(r" not\b", "", text, count=1)
    if _AUXILIARY.search(text):
        return _AUXILIARY.sub(r"\1 not", text, count=1)
    return f"It is not true that {text[0].lower()}{text[1:]}"


def with_another_number(text: str, other: str) -> str:
    """The first digit or English number word replaced by the next one."""

    def following(match: re.Match[str]) -> str:
        if match[0].isdigit():
            return str((int(match[0]) + 1) % 10)
        return NUMBERS[(NUMBERS.index(match[0]) + 1) % len(NUMBERS)]

    return _NUMBER.sub(following, text, count=1)


def with_a_wrong_word(text: str, other: str) -> str:
    """The longest word replaced by the longest of another answer that is not in this one."""
    strange = [word for word in parts(other) if word.lower() not in text.lower()]
    if not strange or not parts(text):
        return text
    return text.replace(max(parts(text), key=len), max(strange, key=len), 1)


def shuffled(text: str, other: str = "") -> str:
    """The words in another order, always the same one; of scripts without spaces, the characters."""
    pieces = text.split() if is_spaced(text) else characters(text)
    mixed = pieces.copy()
    Random(text).shuffle(mixed)
    return (" " if is_spaced(text) else "").join(mixed)


def repeated(text: str, other: str = "") -> str:
    """The first words over and over, up to about twice the answer's length."""
    pieces = text.split() if is_spaced(text) else characters(text)
    start, joint = pieces[:2], " " if is_spaced(text) else ""
    return joint.join(start * max(2, len(pieces)))


def parts(text: str) -> list[str]:
    """The words as they stand in a text; of scripts without spaces, the characters."""
    return PART.findall(text) if is_spaced(text) else characters(text)


def half(text: str) -> str:
    """The first half of the characters, none of which is torn."""
    letters = characters(text)
    return "".join(letters[: len(letters) // 2]).rstrip()


EDITS = (
    Edit("two spaces for each", lambda text, _: text.replace(" ", "  "), harmful=False),
    Edit("a line break behind", lambda text, _: f"{text}\n", harmful=False),
    Edit("lower case", lambda text, _: text.lower(), harmful=False),
    Edit("without its last mark", lambda text, _: text.rstrip(".!?。！？"), harmful=False),
    Edit("“Sure! ” before it", lambda text, _: f"Sure! {text}", harmful=False),
    Edit("said twice", lambda text, _: f"{text} {text}", harmful=False),
    Edit("a negation", negated, harmful=True),
    Edit("another number", with_another_number, harmful=True),
    Edit("a wrong word", with_a_wrong_word, harmful=True),
    Edit("the words shuffled", shuffled, harmful=True),
    Edit("the second half left out", lambda text, _: half(text), harmful=True),
)
