"""A chat as a column holds it: turns of the usual names, also where a cell holds them as text.

    [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]

is `(Message("user", "Hello"), Message("assistant", "Hi"))`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rlrecipes.data.files import Row, kind_of
from rlrecipes.errors import UserError
from rlrecipes.recipe import Message, Prompt, spelled, truth_of
from rlrecipes.text import shortened, words, written

ROLES = {
    "system": "system",
    "developer": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "ai", "bot", "model"), "assistant"),
}
"""The names of the roles, in lower case: ours, ShareGPT's, OpenAssistant's, LangChain's, Gemma's."""
TOOLS = (
    *("tool", "tool_call", "tool_response", "tool_result", "function", "function_call", "function_response"),
    *("observation", "ipython"),
)
"""Roles of turns that no person and no model wrote as text."""
UNUSABLE = (
    *("tools", "functions", "tool_calls", "function_call", "reasoning_content"),
    *("images", "image", "audio", "audios", "video", "videos"),
)
"""Columns without which a row's text is another task."""
UNUSABLE_KEYS = (*UNUSABLE, "reasoning", "thinking")
"""The same of a turn's keys."""
CHATS = ("messages", "conversations", "conversation")
"""Columns that hold a whole chat."""
IMITATED = ("chosen", "completion", "response", "output")
"""Columns of an answer that is imitated, which may be a chat."""
LEARNED = ("weight", "train", "loss")
"""The keys by which a turn says whether it is to be imitated: OpenAI's, Axolotl's, ms-swift's."""
TEXT_PARTS = ("text", "input_text", "output_text")
"""The types of a turn's parts that are its text, as OpenAI names them."""


def messages_of(row: Row, column: str, expected: str = "a list of messages") -> Prompt:
    """The turns of a chat, of one turn, or of a chat that is written as one text.

    Raises:
        ValueError: there is none, or it holds more than text.
        UserError: the value is of another type.
    """
    value = cell(row, column)
    if value is None:
        raise ValueError(f"no value in '{column}'")
    if isinstance(value, str) and (chat := turns_of_text(value)):
        return chat
    value = items(value)
    if not isinstance(value, list):
        raise wrong(row, column, expected, value)
    return tuple(_message(row, column, item) for item in value)


_WRITTEN = re.compile(r"""(?s)(?=.*["'](role|from)["']\s*:)(?=.*["'](content|value)["']\s*:)(\[\s*)?\{\s*["']""")


def cell(row: Row, column: str) -> Any:
    """The value of a column; a chat or a turn, where it is one that a CSV's cell holds as JSON or as Python writes it."""
    value = row.values.get(column)
    if not isinstance(value, str) or not _WRITTEN.match(value.strip()):
        return value
    try:
        chat = written(value)
    except ValueError:
        if value.strip().startswith("{"):
            return value
        raise ValueError(f"the chat in '{column}' is written as text that cannot be read") from None
    return chat if isinstance(chat, list) or _is_turn(chat) or isinstance(items(chat), list) else value


def items(value: Any) -> Any:
    """A chat as a list of turns: of an object of lists, as `datasets` keeps a sequence of objects, or of one turn."""
    if _is_turn(value):
        return [value]
    columns: list[Any] = list(value.values()) if isinstance(value, dict) else [None]
    if all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return [dict(zip(value, parts, strict=True)) for parts in zip(*columns, strict=True)]
    return value


def turns_in(value: Any) -> list[dict[str, Any]]:
    """The turns of a chat; none of any other value."""
    found = items(value)
    return (
        [turn for turn in found if isinstance(turn, dict) and turn.keys() & {"role", "from"}]
        if isinstance(found, list)
        else []
    )


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and spelled(value.get("role", value.get("from"))) in (*ROLES, *TOOLS)


SAID = re.compile(r"\r?\n\r?\n(Human|Assistant):")


def turns_of_text(text: str) -> Prompt | None:
    """The turns of a chat that is written as one text, as Anthropic's hh-rlhf is; None for any other text."""
    _, *pieces = SAID.split("\n\n" + text.strip()) if text.lstrip().startswith("Human:") else [""]
    if "Assistant" not in pieces:
        return None
    names = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(names[name], said.strip()) for name, said in zip(pieces[::2], pieces[1::2], strict=True))


def _message(row: Row, column: str, item: Any) -> Message:
    named = (item.get("role") or item.get("from")) if isinstance(item, Mapping) else None
    role, content = ROLES.get(spelled(named), spelled(named)), _content(item)
    if role in TOOLS:
        raise ValueError(f"a turn of the role '{role}'")
    if isinstance(item, dict):
        for key in UNUSABLE_KEYS:
            if not is_empty(item.get(key)):
                raise ValueError(f"a turn with '{key}'")
    if role == "assistant" and content is None:  # a refusal, as OpenAI writes it
        raise ValueError("a turn of the assistant without text")
    if role not in ROLES.values() or not isinstance(content, str):
        shape = 'a list of {"role": …, "content": text} with the roles system, user, assistant'
        raise wrong(row, column, shape, named if isinstance(named, str) and role not in ROLES.values() else item)
    return Message(role, content)


def _content(item: Any) -> Any:
    """A turn's text; of parts, as OpenAI writes them, the texts with nothing between them.

    So join the chat templates that take parts: those of GLM, Idefics, LFM2, Qwen2.5-VL and Qwen3.5. Servers of models that
    take texts alone, such as vLLM, put line ends between.
    """
    content = item.get(_content_key(item)) if isinstance(item, Mapping) else None
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    texts = [part.get("text", 0) for part in content if part.get("type") in TEXT_PARTS]
    if len(texts) < len(content) or not all(isinstance(text, str | None) for text in texts):
        raise ValueError("a turn that holds more than text")
    return "".join(text or "" for text in texts)


def _content_key(turn: Mapping[str, Any]) -> str:
    """Where a turn's text stands; Parquet gives every turn the keys that any turn has, and null where it has none."""
    return "value" if turn.get("content") is None and "value" in turn else "content"


# What of a chat nobody reads.

BEHIND = "turns behind the last answer"
JOINED = "turns of several text parts"
"""Not unread, but told with its count as well."""


def unread_of_chat(name: str, value: Any, demonstrates: bool) -> Iterator[str]:
    """The keys of a chat's turns, and of their parts, that hold something and are not read.

    Args:
        demonstrates: its last answer is a demonstration, if it is a whole chat; otherwise the chat is a prompt.
    """
    demonstrates = demonstrates and name in CHATS
    turns = turns_in(value)
    for turn in turns:
        for key in turn.keys() - _read_keys(turn, demonstrates or name in IMITATED):
            if not is_empty(turn[key]):
                yield f"'{name}[].{key}'"
        parts = [part for part in _parts(turn) if not is_empty(part.get("text"))]
        yield from (
            f"'{name}[].content[].{key}'"
            for part in parts
            for key in part.keys() - {"type", "text"}
            if not is_empty(part[key])
        )
        if len(parts) > 1:
            yield JOINED
    if demonstrates and turns and not _is_answer(next((turn for turn in reversed(turns) if not is_silent(turn)), {})):
        yield BEHIND


def _is_answer(turn: Mapping[str, Any]) -> bool:
    return ROLES.get(spelled(turn.get("role") or turn.get("from"))) == "assistant"


def is_silent(turn: Any) -> bool:
    """Whether a turn is an answer that nobody is to imitate."""
    return isinstance(turn, Mapping) and _is_answer(turn) and any(truth_of(turn.get(key)) is False for key in LEARNED)


def _parts(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = turn.get(_content_key(turn))
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _read_keys(turn: Mapping[str, Any], demonstrates: bool) -> set[str]:
    """The keys of a turn that are read, or leave out its row."""
    names = {"role" if turn.get("role") else "from", _content_key(turn)}
    return {*names, *UNUSABLE_KEYS, *(LEARNED if demonstrates else ())}


def is_empty(value: Any) -> bool:
    return (
        value is None
        or value != value  # NaN, pandas' empty cell
        or (isinstance(value, str | list | tuple | dict) and value in ("", "[]", "{}", [], (), {}))
    )


LONGEST_SHOWN, MOST_WORDS = 24, 4
"""Characters and words (characters of a script without spaces) of a value that an error shows: a label, never a sentence."""


def wrong(row: Row, column: str, expected: str, value: Any, todo: str = "mend the row") -> UserError:
    """A sentence about a value of the wrong type."""
    where = f"{row.file}, row {row.number}: field '{column}'"
    return UserError(f"{where} must be {expected}, but found {kind_of(value)}{_excerpt(value)}; {todo}")


def _excerpt(value: Any) -> str:
    """What a sentence may show of a value: a number or a word, an object's keys, and nothing of what people wrote."""
    if isinstance(value, dict):
        return f" of {shortened(', '.join(map(repr, value)), 60)}" if value else ""
    shown = repr(value)
    if isinstance(value, str):  # some scripts write sentences without a space, and their labels in a few characters
        several = " " in value.strip() or len(words(value)) > MOST_WORDS
    else:
        several = isinstance(value, list | tuple | bytes)
    return "" if several or len(shown) > LONGEST_SHOWN else f" ({shown})"
