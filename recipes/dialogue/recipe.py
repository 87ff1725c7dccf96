"""Dialogue: the next turn of a conversation, complete, polite and true to the turns before.

user:      I called at noon. I need a table for four.
assistant: On what day, and under what name?
user:      On Friday, the name is Miller.
-> Certainly, your table for four is booked for Friday, Miller. Thank you!
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from recipes.dialogue import hub
from recipes.dialogue.builtin import SLOTS, documents, generate
from rlrecipes import metrics
from rlrecipes.recipe import Columns, Comparison, Evaluation, Example, Message, Prompt, Recipe, Reward, Term
from rlrecipes.text import COURTESY, words

LEADS = {"kind": "your|a", "number": "for", "day": "for|on", "time": "at", "name": ",|for|under"}
"""What stands before a slot's value when it stands in its place."""
IN_PLACE = {slot: re.compile(rf"\b(?:{LEADS[slot]}) ({'|'.join(SLOTS[slot])})\b", re.IGNORECASE) for slot in SLOTS}


def read(row: Mapping[str, Any]) -> Example:
    """A whole dialogue as a list of turns, the user's first and the assistant's last; the last is the answer."""
    turns = row["dialog"]
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ValueError("'dialog' must be a list of texts, none of them empty")
    if not turns or len(turns) % 2:
        raise ValueError("'dialog' must have an even number of turns: the user's first, the assistant's last")
    messages = tuple(Message(("user", "assistant")[i % 2], turn.strip()) for i, turn in enumerate(turns))
    return Example(messages[:-1], (messages[-1].content,))


def slots(answer: str, example: Example) -> float:
    """Share of the slots asked for that the answer fills with their value alone; an invented slot counts as a wrong one."""
    asked: Mapping[str, str] = example.truth["slots"]
    named = {slot: {value.lower() for value in place.findall(answer)} for slot, place in IN_PLACE.items()}
    right = sum(named[slot] == {value.lower()} for slot, value in asked.items())
    return right / (len(asked) + sum(bool(named[slot]) for slot in named if slot not in asked))


def polite(prompt: Prompt, answer: str, example: Example) -> float:
    """1 if the answer has a word of courtesy, else 0."""
    return float(not COURTESY.isdisjoint(words(answer)))


def compare(example: Example, others: Sequence[Example], rng: Random) -> Comparison | None:
    """The reply against the reply to another prompt."""
    known = {tuple(words(answer)) for answer in ("", *example.answers)}
    for other in rng.sample(others, min(len(others), 10)) if example.answers else ():
        if other.prompt != example.prompt and other.answers and tuple(words(other.answers[0])) not in known:
            return Comparison(example.prompt, example.answers[0], other.answers[0])
    return None


RECIPE = Recipe(
    name="dialogue",
    summary="answer the last turn of a dialogue, true to the turns before and politely",
    columns=Columns(required=("dialog",), example=read),
    reward=Reward(terms=(Term("polite", polite, weight=0.2),)),
    evaluation=Evaluation(
        metrics=(
            metrics.mean_of("slots", slots, needs="slots"),
            metrics.mean_of("overlap", metrics.f1),
            metrics.mean_of("polite", lambda answer, example: polite(example.prompt, answer, example)),
            metrics.mean_of("length", metrics.length),
        )
    ),
    builtin=generate,
    documents=documents,
    compare=compare,
    compared="the rejected answer is the reply to another prompt of the same data",
    hub=hub.SETS,
)
