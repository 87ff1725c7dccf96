"""What one row of each usual layout holds.

    {"instruction": "Say it in English.", "input": "Das Kind liest.", "output": "The child reads.", "id": 7}

is a demonstration: `user("Say it in English.\\n\\nDas Kind liest.")` and `The child reads.`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any

from rlrecipes.data.files import Row
from rlrecipes.data.preferences import BESIDE_PAIR, CHOSEN, WINNER, Sides, compared, number_of, sides_of
from rlrecipes.data.turns import (
    CHATS,
    IMITATED,
    LEARNED,
    SAID,
    cell,
    is_empty,
    is_silent,
    items,
    messages_of,
    turns_of_text,
    wrong,
)
from rlrecipes.errors import option
from rlrecipes.recipe import UNLEARNED, Comparison, Example, Message, Prompt, Rating, truth_of, user
from rlrecipes.text import written

BESIDE = ("input", "context")
"""Alpaca's and Dolly's names for what an instruction is about."""


@dataclass(frozen=True)
class Record:
    """The content of one row: an example, a comparison (or both), or a rating."""

    prompt: Prompt
    example: Example | None = None
    comparison: Comparison | None = None
    rating: Rating | None = None
    alone: bool = False
    """Whether its example is a prompt alone, which brings no answer."""
    place: str = field(default="", compare=False)
    """Its row: `train.jsonl, row 51`."""
    unread: tuple[str, ...] = field(default=(), compare=False)
    """What of its row nobody reads: `'id'`, `'messages[].name'`."""
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """All columns of its row, where the recipe keeps them."""
    marks: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """The columns that call its answer good or bad, with what they say: `(("label", "positive"),)`."""


Reader = Callable[[Row], Record]
"""Reads one row. Raises `ValueError` with the reason to leave the row out, `UserError` when a value is of the wrong type."""


@dataclass(frozen=True)
class Layout:
    """A usual way to write rows."""

    needs: tuple[str, ...]
    """The columns that mark it."""
    read: Reader
    reads: tuple[str, ...] = ("system",)
    """What it reads of others."""
    grades: tuple[str, ...] = ()
    """The columns of which the first that a file has makes its demonstrations graded answers."""


# One reader for each layout.


def pair(column: str, row: Row, sides: Sides = CHOSEN) -> Record:
    """A prompt, which is an instruction or stands in that column, and two answers, which may be whole chats."""
    prompt = _instructed(row) if column == "instruction" else prompt_of(row, column)
    better, worse = sides_of(row, sides)
    (prompt, chosen), (other, rejected) = answer_of(row, better, prompt), answer_of(row, worse, prompt)
    if prompt != other:
        raise ValueError("chosen and rejected differ in more than the last answer")
    return Record(prompt, comparison=compared(row, prompt, chosen, rejected))


def _pair_of_chats(row: Row, sides: Sides = CHOSEN) -> Record:
    """Two chats that differ in their last answer; the messages before it are the prompt."""
    chosen, rejected = (messages_of(row, side) for side in sides_of(row, sides))
    if chosen == rejected:
        raise ValueError("chosen equals rejected")
    shared = takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    prompt = tuple(message for message, _ in shared)
    rest = chosen[len(prompt) :] + rejected[len(prompt) :]
    if len(chosen) != len(rejected) or [message.role for message in rest] != ["assistant", "assistant"]:
        raise ValueError("chosen and rejected differ in more than the last answer")
    prompt = with_system(row, prompt)
    return Record(prompt, comparison=compared(row, prompt, rest[0].content, rest[1].content))


def _chat(column: str, row: Row) -> Record:
    messages, turns = messages_of(row, column), items(cell(row, column))
    answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise ValueError("no message of the assistant")
    learned = [place for place in answers if isinstance(turns, str) or _is_learned(row, column, turns[place])]
    if not learned:
        raise ValueError("every answer has weight 0")
    last = learned[-1]
    prompt, answer = with_system(row, messages[:last]), messages[last]
    before = len(prompt) - last  # the system column's turn
    left_out = [place + before for place in answers if place < last and place not in learned]
    return Record(prompt, Example(prompt, (answer.content,), {UNLEARNED: left_out} if left_out else {}))


def _is_learned(row: Row, column: str, turn: Mapping[str, Any]) -> bool:
    """Whether a turn may be imitated, as its keys in `LEARNED` say."""
    said = [turn[key] for key in LEARNED if turn.get(key) is not None]
    for value in said:
        if truth_of(value) is None:
            expected = "a list of turns whose 'weight' is 0 or 1 and whose 'train' and 'loss' are true or false"
            raise wrong(row, column, expected, value)
    return all(map(truth_of, said))


def _demonstration(column: str, row: Row) -> Record:
    prompt, answer = answer_of(row, column, prompt_of(row))
    return Record(prompt, Example(prompt, (answer,)))


def _alone(row: Row) -> Record:
    prompt = prompt_of(row)
    return Record(prompt, Example(prompt), alone=True)


def _instruction(column: str, row: Row) -> Record:
    prompt, answer = answer_of(row, column, _instructed(row))
    return Record(prompt, Example(prompt, (answer,)))


def _instructed(row: Row) -> Prompt:
    """An instruction, what it is about, and the turns before; all but the first may be missing."""
    texts = {name: row.values.get(name) for name in ("instruction", *BESIDE)}
    for name, text in texts.items():
        if not isinstance(text, str | None):
            raise wrong(row, name, "text", text)
    said = "\n\n".join(text.strip() for text in texts.values() if text and text.strip())
    return with_system(row, (*_history(row), Message("user", said)))


def _history(row: Row) -> Iterator[Message]:
    rounds = row.values.get("history") or []
    if isinstance(rounds, str) and rounds.lstrip().startswith("["):  # a CSV's cell
        rounds = written(rounds)
    for said in rounds if isinstance(rounds, list) else [rounds]:
        if not isinstance(said, list) or len(said) != 2 or not all(isinstance(text, str) for text in said):
            raise wrong(row, "history", "a list of [instruction, output]", said)
        yield Message("user", said[0])
        yield Message("assistant", said[1])


def _graded(demonstration: Reader, grade: Callable[[Row], float], row: Row) -> Record:
    """An answer with its grade, where one stands beside what would be a demonstration without it."""
    record, score = demonstration(row), grade(row)
    assert record.example
    return Record(record.prompt, rating=Rating(record.prompt, record.example.answers[0], score))


def _score(row: Row) -> float:
    if row.values.get("score") is None:
        raise ValueError("no score")
    return number_of(row, "score", -math.inf, "a finite number")


def _good(column: str, row: Row) -> float:
    """An answer that is only called good or bad: TRL's unpaired preference, LLaMA-Factory's KTO."""
    label = row.values.get(column)
    if label is None:
        raise ValueError(f"no {column}")
    if truth_of(label) is None:
        raise wrong(row, column, "true or false", label, _other_grade(column))
    return float(truth_of(label) or 0)


def _other_grade(column: str) -> str:
    return f"mend the row, read it as a score with {option('columns', f'score={column}')}, or rename the column"


GRADES: dict[str, Callable[[Row], float]] = {
    "score": _score,
    "label": partial(_good, "label"),
    "kto_tag": partial(_good, "kto_tag"),
}
"""What reads a grade, by its column."""


def graded(layout: Layout, header: Collection[str]) -> Layout:
    """The layout as a file with these columns is read: with the grades that stand beside its answers."""
    column = next((name for name in layout.grades if name in header), None)
    if column is None:
        return layout
    return replace(layout, reads=(*layout.reads, column), read=partial(_graded, layout.read, GRADES[column]))


_demonstrations = partial(Layout, grades=tuple(GRADES))

LAYOUTS = (
    Layout(("prompt", *CHOSEN), partial(pair, "prompt"), (*BESIDE_PAIR, "system")),
    *(Layout((name, *CHOSEN), partial(pair, name), (*BESIDE_PAIR, "system")) for name in CHATS),
    Layout(("instruction", *CHOSEN), partial(pair, "instruction"), (*BESIDE, "system", "history", *BESIDE_PAIR)),
    Layout(CHOSEN, _pair_of_chats, (*BESIDE_PAIR, "system")),
    *(
        Layout(("prompt", *sides, WINNER), partial(pair, "prompt", sides=sides), (*BESIDE_PAIR, "system"))
        for sides in (("response_a", "response_b"), ("answer_a", "answer_b"))
    ),
    Layout(
        ("conversation_a", "conversation_b", WINNER),
        partial(_pair_of_chats, sides=("conversation_a", "conversation_b")),
        (*BESIDE_PAIR, "system"),
    ),
    *(_demonstrations((name,), partial(_chat, name)) for name in CHATS),
    _demonstrations(("prompt", "completion"), partial(_demonstration, "completion")),
    _demonstrations(("prompt", "response"), partial(_demonstration, "response")),
    *(
        _demonstrations(("instruction", answer), partial(_instruction, answer), (*BESIDE, "system", "history"))
        for answer in ("output", "response")
    ),
)
"""The usual layouts; a file takes the first that fits."""

PROMPTS = Layout(("prompt",), _alone)
"""Prompts without answers, for training that imitates nothing."""


# One reader for each kind of field.


def prompt_of(row: Row, column: str = "prompt") -> Prompt:
    """The prompt: a text, a chat, or a chat as text; behind the text of the column 'system', if there is one."""
    value = cell(row, column)
    if value is None:
        raise ValueError("empty prompt")
    chat = turns_of_text(value) if isinstance(value, str) else messages_of(row, column, "text or a list of messages")
    if chat and chat[-1] == Message("assistant", ""):  # where the answer starts
        chat = chat[:-1]
    return with_system(row, user(value) if chat is None else chat)


def answer_of(row: Row, column: str, prompt: Prompt) -> tuple[Prompt, str]:
    """The answer as text, and its prompt, which is longer than `prompt` where the column holds a whole chat."""
    value = cell(row, column)
    if value is None:
        raise ValueError("empty answer")
    expected = "text or a list with one assistant message"
    turns = turns_of_text(value) if isinstance(value, str) else messages_of(row, column, expected)
    if turns is None:
        if SAID.search(value) and isinstance(asked := row.values.get("prompt"), str) and turns_of_text(asked):
            raise ValueError("an answer that goes on with other turns")
        return prompt, value
    if not turns or turns[-1].role != "assistant":
        raise wrong(row, column, expected, value)
    if column in IMITATED and not isinstance(value, str) and is_silent(items(value)[-1]):
        raise ValueError(f"the answer in '{column}' has weight 0")
    before = turns[:-1]
    if before in ((), prompt):
        return prompt, turns[-1].content
    whole = with_system(row, before)
    asked = prompt[1:] if prompt and prompt[0].role == "system" and not is_empty(row.values.get("system")) else prompt
    if not any(whole[start : start + len(asked)] == asked for start in range(len(whole))):
        raise ValueError(f"the prompt is no part of the chat in '{column}'")
    return whole, turns[-1].content


def with_system(row: Row, prompt: Prompt) -> Prompt:
    """A prompt behind the text of the column 'system', if there is one.

    Raises:
        ValueError: the prompt begins with another system turn.
        UserError: the value is of another type.
    """
    text = row.values.get("system")
    if is_empty(text) or not str(text).strip():
        return prompt
    if not isinstance(text, str):
        raise wrong(row, "system", "text", text)
    first = Message("system", text)
    if prompt and prompt[0].role == "system":
        if prompt[0] != first:
            raise ValueError("the chat has another system turn than 'system'")
        return prompt
    return (first, *prompt)
