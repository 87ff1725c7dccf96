"""Text of data that does not come back from a model's tokens: its tokenizer has no bytes and lacks the characters.

    "第1个孩子在读书。" -> <unk>, "1", <unk>, … -> "1"

Such text is lost, or becomes the unknown token, without a word. Upper case, compatible forms (NFKC), spaces and characters
that nobody sees do not count: normalisers change them on purpose.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlrecipes.errors import UserError, option
from rlrecipes.model.tokens import encode_prompt, read_row, texts_of
from rlrecipes.recipe import Data
from rlrecipes.text import quoted

SAMPLED = 256
"""Rows of each kind that are read, at even distances."""
MUCH = 0.1
"""A row that loses more than this share of its characters says something else than it did."""


@dataclass(frozen=True)
class Unwritten:
    """What a tokenizer loses of rows."""

    rows: Mapping[str, int]
    """How many of each kind lose a character."""
    read: Mapping[str, int]
    """How many of each kind were read."""
    much: int
    """How many of all lose more than `MUCH`."""
    characters: str
    """The three that are lost most often."""


def unwritten(tokenizer: Any, data: Data) -> Unwritten:
    """What a tokenizer loses of at most `SAMPLED` rows of each kind, on both sides of the split.

    Raises:
        UserError: the chat template refuses a row's prompt, or leaves out a turn of it.
    """
    rows: Counter[str] = Counter()
    read: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    much = 0
    for kind, all_rows in texts_of(data).items():
        for prompt, answers in all_rows[:: -(-len(all_rows) // SAMPLED) or 1]:
            encode_prompt(tokenizer, prompt)
            given, lost = _lost(tokenizer, [*(turn.content for turn in prompt), *answers])
            rows[kind] += bool(lost)
            read[kind] += 1
            characters += lost
            much += lost.total() > MUCH * given
    most = "".join(character for character, _ in characters.most_common(3))
    return Unwritten({kind: count for kind, count in rows.items() if count}, dict(read), much, most)


def _lost(tokenizer: Any, texts: list[str]) -> tuple[int, Counter[str]]:
    """How many characters a row's texts have, and those that do not come back from their tokens."""
    reading = read_row(tokenizer, (), *texts)
    given: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for text in texts:
        ids = reading.ids(reading.hide(text))
        back = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        given += Counter(_plain(text))
        lost += Counter(_plain(text)) - Counter(_plain(back))
    return given.total(), lost


def _plain(text: str) -> str:
    """A text as normalisers leave it at least."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c for c in folded if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf"))


def unwritten_note(found: Unwritten) -> str:
    """What is lost, in words."""
    rows = ", ".join(f"{count:,} of {found.read[kind]:,} {kind}" for kind, count in found.rows.items())
    return f"the tokenizer cannot write characters such as {quoted(found.characters)}, and they are lost in {rows}"


def check_written(found: Unwritten) -> None:
    """Refuses data of which more than half of the rows lose much of their text.

    Raises:
        UserError: with the numbers.
    """
    read = sum(found.read.values())
    if 2 * found.much > read:
        raise UserError(
            f"the tokenizer cannot write characters such as {quoted(found.characters)}: {found.much:,} of {read:,} rows lose "
            f"more than {MUCH:.0%} of their text; name a model that reads this language and script with {option('model')}"
        )
