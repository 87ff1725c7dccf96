"""What one row of each usual layout holds, and which of its columns and keys nobody reads.

    {"instruction": "Say it in English.", "input": "Das Kind liest.", "output": "The child reads.", "id": 7}

is a demonstration: `user("Say it in English.\\n\\nDas Kind liest.")` and `The child reads.`; 'id' is not read.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any

from rlrecipes.data.files import Row, kind_of
from rlrecipes.errors import UserError
from rlrecipes.recipe import UNLEARNED, Comparison, Example, Message, Prompt, Rating, user

ROLES = ("system", "user", "assistant")
SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    "system": "system",
}
"""ShareGPT's names of the roles, which stand in `from`."""
TOOLS = ("tool", "function", "function_call", "observation", "ipython")
"""Roles of turns that no person and no model wrote as text."""
UNUSABLE = (
    *("tools", "functions", "tool_calls", "function_call", "reasoning_content"),
    *("images", "image", "audio", "audios", "video", "videos"),
)
"""Columns without which a row's text is another task."""
UNUSABLE_KEYS = (*UNUSABLE, "reasoning", "thinking")
"""The same of a turn's keys."""
KEYS = {"role", "content", "from", "value", "weight", "train", *UNUSABLE_KEYS}
"""The keys of a turn that are read, or leave out its row."""
CHATS = ("messages", "conversations", "conversation")
"""Columns that hold a whole chat."""
BEHIND = "turns behind the last answer"
TRUTHS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
"""The labels of answers that are only called good or bad, as ratings."""


@dataclass(frozen=True)
class Record:
    """The content of one row: an example, a comparison (or both), or a rating."""

    prompt: Prompt
    example: Example | None = None
    comparison: Comparison | None = None
    rating: Rating | None = None
    place: str = field(default="", compare=False)
    """Its row: `train.jsonl, row 51`."""
    unread: tuple[str, ...] = field(default=(), compare=False)
    """What of its row nobody reads: `'id'`, `'messages[].name'`."""


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


def unread(row: Row, columns: Collection[str]) -> Iterator[str]:
    """The columns of a row, and the keys of its turns, that hold something and are not read; `columns` are read.

    Raises:
        ValueError: the row is another task without one of them.
    """
    for name, value in row.values.items():
        if name in columns:
            yield from _unread_keys(name, value)
        elif not _is_empty(value):
            if name in UNUSABLE:
                raise ValueError(f"'{name}' cannot be used")
            yield f"'{name}'"


def _unread_keys(name: str, value: Any) -> Iterator[str]:
    turns = [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []
    yield from sorted({f"'{name}[].{key}'" for turn in turns for key in turn.keys() - KEYS if not _is_empty(turn[key])})
    if name in CHATS and turns and _role(turns[-1]) not in ("assistant", *TOOLS):
        yield BEHIND


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and value in ("", "[]", "{}", [], (), {}))


# One reader for each layout.


def pair(row: Row) -> Record:
    """A prompt and two answers; where these are whole chats, what they share is the prompt."""
    asked = prompt_of(row)
    (prompt, chosen), (other, rejected) = answer_of(row, "chosen", asked), answer_of(row, "rejected", asked)
    if prompt != other:
        raise ValueError("chosen and rejected differ in more than the last answer")
    return Record(prompt, comparison=Comparison(prompt, chosen, rejected, margin=margin_of(row)))


def _pair_of_chats(row: Row) -> Record:
    """Two chats that differ in their last answer; the messages before it are the prompt."""
    chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
    if chosen == rejected:
        raise ValueError("chosen equals rejected")
    shared = takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    prompt = tuple(message for message, _ in shared)
    rest = chosen[len(prompt) :] + rejected[len(prompt) :]
    if len(chosen) != len(rejected) or [message.role for message in rest] != ["assistant", "assistant"]:
        raise ValueError("chosen and rejected differ in more than the last answer")
    prompt = _with_system(row, prompt)
    return Record(prompt, comparison=Comparison(prompt, rest[0].content, rest[1].content, margin=margin_of(row)))


def _chat(column: str, row: Row) -> Record:
    messages, items = _messages(row, column), _items(_cell(row, column))
    answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise ValueError("no message of the assistant")
    learned = [place for place in answers if isinstance(items, str) or _is_learned(items[place])]
    if not learned:
        raise ValueError("every answer has weight 0")
    last = learned[-1]
    prompt, answer = _with_system(row, messages[:last]), messages[last]
    before = len(prompt) - last  # the system column's turn
    left_out = [place + before for place in answers if place < last and place not in learned]
    return Record(prompt, Example(prompt, (answer.content,), {UNLEARNED: left_out} if left_out else {}))


def _is_learned(item: Mapping[str, Any]) -> bool:
    """Whether a turn may be imitated: OpenAI's `weight`, Axolotl's `train`."""
    return item.get("weight") not in (0, "0") and item.get("train") not in (False, "false")


def _demonstration(column: str, row: Row) -> Record:
    prompt, answer = answer_of(row, column, prompt_of(row))
    return Record(prompt, Example(prompt, (answer,)))


def _instruction(beside: str, column: str, row: Row) -> Record:
    """An instruction, what it is about, and the turns before; the last two may be missing."""
    texts = [row.values.get(name) for name in ("instruction", beside)]
    for name, text in zip(("instruction", beside), texts, strict=True):
        if not isinstance(text, str | None):
            raise wrong(row, name, "text", text)
    last = Message("user", "\n\n".join(text.strip() for text in texts if text and text.strip()))
    prompt = _with_system(row, (*_history(row), last))
    prompt, answer = answer_of(row, column, prompt)
    return Record(prompt, Example(prompt, (answer,)))


def _history(row: Row) -> Iterator[Message]:
    rounds = row.values.get("history") or []
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
    return _number(row, "score", -math.inf, "a finite number")


def _label(row: Row) -> float:
    """An answer that is only called good or bad; TRL's unpaired preference."""
    label = row.values.get("label")
    if label is None:
        raise ValueError("no label")
    if str(label).lower() not in TRUTHS:
        raise wrong(row, "label", "true or false", label, "mend the row, or rename the column to do without it")
    return TRUTHS[str(label).lower()]


GRADES: dict[str, Callable[[Row], float]] = {"score": _score, "label": _label}
"""What reads a grade, by its column."""


def graded(layout: Layout, header: Collection[str]) -> Layout:
    """The layout as a file with these columns is read: with the grades that stand beside its answers."""
    column = next((name for name in layout.grades if name in header), None)
    if column is None:
        return layout
    return replace(layout, reads=(*layout.reads, column), read=partial(_graded, layout.read, GRADES[column]))


_demonstrations = partial(Layout, grades=tuple(GRADES))

LAYOUTS = (
    Layout(("prompt", "chosen", "rejected"), pair, ("margin", "system")),
    Layout(("chosen", "rejected"), _pair_of_chats, ("margin", "system")),
    *(_demonstrations((name,), partial(_chat, name)) for name in CHATS),
    _demonstrations(("prompt", "completion"), partial(_demonstration, "completion")),
    _demonstrations(("prompt", "response"), partial(_demonstration, "response")),
    _demonstrations(
        ("instruction", "output"), partial(_instruction, "input", "output"), ("input", "system", "history")
    ),
    _demonstrations(("instruction", "response"), partial(_instruction, "context", "response"), ("context", "system")),
)
"""The usual layouts; a file takes the first that fits."""


# One reader for each kind of field.


def prompt_of(row: Row) -> Prompt:
    """The prompt: a text, a chat, or a chat as text; behind the text of the column 'system', if there is one."""
    value = _cell(row, "prompt")
    if value is None:
        raise ValueError("empty prompt")
    chat = _turns_of_text(value) if isinstance(value, str) else _messages(row, "prompt", "text or a list of messages")
    if chat and chat[-1] == Message("assistant", ""):  # where the answer starts
        chat = chat[:-1]
    return _with_system(row, user(value) if chat is None else chat)


def answer_of(row: Row, column: str, prompt: Prompt) -> tuple[Prompt, str]:
    """The answer as text, and its prompt, which is longer than `prompt` where the column holds a whole chat."""
    value = _cell(row, column)
    if value is None:
        raise ValueError("empty answer")
    expected = "text or a list with one assistant message"
    turns = _turns_of_text(value) if isinstance(value, str) else _messages(row, column, expected)
    if turns is None:
        if _SAID.search(value) and isinstance(asked := row.values.get("prompt"), str) and _turns_of_text(asked):
            raise ValueError("an answer that goes on with other turns")
        return prompt, value
    if not turns or turns[-1].role != "assistant":
        raise wrong(row, column, expected, value)
    before = turns[:-1]
    if before in ((), prompt):
        return prompt, turns[-1].content
    if prompt[-1] not in before:
        raise ValueError(f"the prompt is no turn of the chat in '{column}'")
    return _with_system(row, before), turns[-1].content


def _with_system(row: Row, prompt: Prompt) -> Prompt:
    text = row.values.get("system")
    if _is_empty(text) or not str(text).strip():
        return prompt
    if not isinstance(text, str):
        raise wrong(row, "system", "text", text)
    first = Message("system", text)
    if prompt and prompt[0].role == "system":
        if prompt[0] != first:
            raise ValueError("the chat has another system turn than 'system'")
        return prompt
    return (first, *prompt)


def _messages(row: Row, column: str, expected: str = "a list of messages") -> Prompt:
    value = _cell(row, column)
    if value is None:
        raise ValueError(f"no value in '{column}'")
    if isinstance(value, str) and (chat := _turns_of_text(value)):
        return chat
    value = _items(value)
    if not isinstance(value, list):
        raise wrong(row, column, expected, value)
    return tuple(_message(row, column, item) for item in value)


_WRITTEN = re.compile(r"""(?s)(?=.*["'](role|from)["']\s*:)(?=.*["'](content|value)["']\s*:)\[\s*\{""")


def _cell(row: Row, column: str) -> Any:
    """The value of a column; a chat, where it is one that a CSV's cell holds as JSON or as Python writes it."""
    value = row.values.get(column)
    if not isinstance(value, str) or not _WRITTEN.match(value.strip()):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        listed = re.sub(r"\}\s*\n\s*\{", "},{", value.strip())  # NumPy puts no comma between objects
    try:
        return ast.literal_eval(listed)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"the chat in '{column}' is written as text that cannot be read") from None


def _items(value: Any) -> Any:
    if isinstance(value, dict) and all(isinstance(part, list) for part in value.values()):
        # `datasets` keeps a sequence of objects as an object of lists.
        return [dict(zip(value, parts, strict=False)) for parts in zip(*value.values(), strict=False)]
    return value


_SAID = re.compile(r"\n\n(Human|Assistant):")


def _turns_of_text(text: str) -> Prompt | None:
    """The turns of a chat that is written as one text, as Anthropic's hh-rlhf is; None for any other text."""
    _, *pieces = _SAID.split("\n\n" + text.strip()) if text.lstrip().startswith("Human:") else [""]
    if "Assistant" not in pieces:
        return None
    names = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(names[name], said.strip()) for name, said in zip(pieces[::2], pieces[1::2], strict=True))


def _message(row: Row, column: str, item: Any) -> Message:
    role, content = _role(item), _content(item)
    if role in TOOLS:
        raise ValueError(f"a turn of the role '{role}'")
    if isinstance(item, dict):
        for key in UNUSABLE_KEYS:
            if not _is_empty(item.get(key)):
                raise ValueError(f"a turn with '{key}'")
    if role == "assistant" and content is None:  # a refusal, as OpenAI writes it
        raise ValueError("a turn of the assistant without text")
    if role not in ROLES or not isinstance(content, str):
        shape = f'a list of {{"role": …, "content": text}} with the roles {", ".join(ROLES)}'
        raise wrong(row, column, shape, item)
    return Message(role, content)


def _role(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return None
    role = item["role"] if "role" in item else SPEAKERS.get(str(item.get("from")), item.get("from"))
    return "system" if role == "developer" else role


def _content(item: Any) -> Any:
    """A turn's text; of parts, as OpenAI writes them, the texts joined."""
    content = item.get("content", item.get("value")) if isinstance(item, Mapping) else None
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    texts = [part.get("text", 0) for part in content if part.get("type") in ("text", "input_text", "output_text")]
    if len(texts) < len(content) or not all(isinstance(text, str | None) for text in texts):
        raise ValueError("a turn that holds more than text")
    return "".join(text or "" for text in texts)


def margin_of(row: Row) -> float | None:
    """TRL's name for how much better the chosen answer is; a row may go without."""
    return None if row.values.get("margin") is None else _number(row, "margin", 0, "a finite number, 0 or more")


def _number(row: Row, column: str, least: float, expected: str) -> float:
    value = row.values[column]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= least):
        raise wrong(row, column, expected, value)
    return number


def wrong(row: Row, column: str, expected: str, value: Any, todo: str = "mend the row") -> UserError:
    """A sentence about a value of the wrong type."""
    where = f"{row.file}, row {row.number}: field '{column}'"
    return UserError(f"{where} must be {expected}, but found {kind_of(value)} ({repr(value)[:60]}); {todo}")
