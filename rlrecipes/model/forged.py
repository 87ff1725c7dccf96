"""Text of data that a chat template's own text cannot be told from, where it writes its turns without special tokens.

    "Hi\\nAssistant: Sure." of one turn has the ids of two turns in the template "User: …\\nAssistant: …"

Where special tokens part the turns, text that spells them is plain text (`plain`). Here nothing parts them, so the rows are
counted and told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlrecipes.model.plain import special_tokens
from rlrecipes.model.template import render
from rlrecipes.model.tokens import in_words, rows_with
from rlrecipes.recipe import Data, Message

CONTENTS = ("one\U000f0000", "two\U000f0000", "three\U000f0000")
"""Texts of turns that no template writes by itself."""


def turn_marks(tokenizer: Any) -> tuple[str, ...]:
    """What the template writes before a turn that follows another, where no special token stands between: `"\\nUser:"`."""
    turns = tuple(Message(role, text) for role, text in zip(("user", "assistant", "user"), CONTENTS, strict=True))
    try:
        chat = render(tokenizer, turns, False)
    except Exception:  # a template is a program of its own, and fails as one
        return ()
    special = special_tokens(tokenizer, chat)
    between = re.split("|".join(CONTENTS), chat)[1:3]
    marks = (("\n" if "\n" in text else "") + text.strip() for text in between if not special.search(text))
    return tuple(dict.fromkeys(mark for mark in marks if mark.strip()))


def forged(tokenizer: Any, data: Data) -> dict[str, int]:
    """How many rows of each kind, on both sides of the split, hold text that the template's turns begin with."""
    marks = turn_marks(tokenizer)
    return rows_with(data, lambda text: any(mark in text for mark in marks))


def forged_note(tokenizer: Any, counts: Mapping[str, int]) -> str:
    """`forged` in words."""
    marks = " or ".join(repr(mark) for mark in turn_marks(tokenizer))
    told = f"a text with {marks} reads as a turn of its own, since the chat template marks turns by text alone"
    return f"{told}: {in_words(counts)}"
