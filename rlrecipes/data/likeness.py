"""Which names of columns are nearly those that are read: a refusal offers them.

    likeness({"prompt": "Question text", "completion": "Notes"}) -> 1

"question" is another name of a prompt; notes are no name of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlrecipes.recipe import spelled

ALIASES = {
    "context": ("passage", "paragraph", "document", "text"),
    "prompt": ("question", "instruction", "input", "user", "query"),
    "answers": ("answer",),
    "completion": ("answer", "response", "output", "reply", "assistant"),
    "score": ("rating", "grade", "stars"),
    "source": ("src", "input"),
    "target": ("tgt", "trg"),
}
"""How a refusal takes other names to be meant."""


def likeness(columns: Mapping[str, str]) -> int:
    """How many columns are called nearly as what they are to be read as."""
    return sum(
        any(word in spelled(column) for word in (name, *ALIASES.get(name, ()))) and "system" not in spelled(column)
        for name, column in columns.items()
    )
