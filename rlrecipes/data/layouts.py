"""Layouts of data files: the usual columns, and how a row with them is read.

    {"prompt": "Hello!", "chosen": "Hello, what can I do for you?", "rejected": "What?"}

becomes `Comparison(user("Hello!"), "Hello, what can I do for you?", "What?")`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from rlrecipes.data.files import Row, column_names, kind_of, read, rename
from rlrecipes.data.reasons import Drop, reason_of
from rlrecipes.errors import UserError
from rlrecipes.hub.fetch import missing_column
from rlrecipes.recipe import (
    Columns,
    Comparison,
    Example,
    HubSet,
    Message,
    Prompt,
    Rating,
    Recipe,
    spelled,
    unknown,
    user,
)
from rlrecipes.text import shortened

ROLES = ("system", "user", "assistant")

WRONG_KIND = (TypeError, AttributeError, KeyError, IndexError)
"""What a public set's reader raises on a value that it does not expect."""


@dataclass(frozen=True)
class Record:
    """The content of one row: an example, a comparison (or both), or a rating."""

    prompt: Prompt
    example: Example | None = None
    comparison: Comparison | None = None
    rating: Rating | None = None
    place: str = field(default="", compare=False)
    """Its row: `train.jsonl, row 51`."""


Reader = Callable[[Row], Record]
"""Reads one row. Raises `ValueError` with the reason to leave the row out, `UserError` when a value is of the wrong type."""

Records = tuple[list[Record], list[Drop]]
"""The records of rows, and the rows left out."""


def _layouts(own: Columns) -> list[tuple[tuple[str, ...], Reader]]:
    """The columns that mark each layout, with its reader. The recipe's own stands first; a file takes the first that fits."""
    return [
        (own.required, partial(_own, own)),
        (("prompt", "chosen", "rejected"), _pair),
        (("chosen", "rejected"), _pair_of_chats),
        (("messages",), _chat),
        (("prompt", "completion", "score"), _rated),
        (("prompt", "completion"), _demonstration),
    ]


def records(recipe: Recipe, path: Path, columns: Mapping[str, str]) -> Records:
    """The records of a file.

    Raises:
        UserError: the file is in no known layout, a value is of the wrong type, or no row can be used.
    """
    rows = rename(read(path), columns)
    reader = _reader(recipe, rows)
    if getattr(reader, "func", None) is _own:
        _check_values(recipe, rows)
    usable, drops = read_rows(
        reader, rows, [*known_names(recipe), *(name for one in recipe.hub for name in said_of(one))]
    )
    if not usable:
        where = f"{path}, row {rows[0].number}: {drops[0].reason}"
        raise UserError(f"{where}, and no other row can be used either; mend the rows, or map columns with --columns")
    return usable, drops


def read_rows(reader: Reader, rows: Iterable[Row], names: Collection[str]) -> Records:
    """The records that can be trained on, and the others with their reasons; `names` may stand in a reason."""
    usable: list[Record] = []
    drops: list[Drop] = []
    for row in rows:
        place = f"{Path(row.file).name}, row {row.number}"
        try:
            record = reader(row)
            _check(record)
            usable.append(dataclasses.replace(record, place=place))
        except (UserError, MemoryError):
            raise
        except Exception as error:  # a recipe's reader may raise anything
            drops.append(Drop(reason_of(error, names), place))
    return usable, drops


def check_names(recipe: Recipe, columns: Mapping[str, str]) -> None:
    """Refuses to read a column under a name that no layout knows; it would have no effect.

    Raises:
        UserError: with the nearest name that is known.
    """
    known = known_names(recipe)
    for name in columns:
        if name not in known:
            names = ", ".join(dict.fromkeys(known))
            raise UserError(f"--columns {name}={columns[name]}: {unknown('field', name, known, f'known are {names}')}")


def known_names(recipe: Recipe) -> list[str]:
    """The columns that any layout of a recipe reads."""
    return [name for names, _ in _layouts(recipe.columns) for name in names] + [*recipe.columns.optional, "margin"]


def _reader(recipe: Recipe, rows: list[Row]) -> Reader:
    header = column_names(rows)
    usual = {name for names, _ in _layouts(recipe.columns) for name in names} | set(recipe.columns.optional)
    for hub_set in recipe.hub:  # first: columns that only a public set has leave no doubt
        if not set(hub_set.columns) <= usual and not missing_column(hub_set, rows[0].values):
            return partial(hub_record, hub_set)
    for columns, reader in _layouts(recipe.columns):
        if set(columns) <= set(header):
            return reader
    lacking = next(name for name in recipe.columns.required if name not in header)
    choices = ", or ".join("+".join(columns) for columns, _ in _layouts(recipe.columns))
    raise UserError(
        f"{rows[0].file} has the columns {', '.join(header)}, but {recipe.name} reads {choices}; "
        f"map names with COLUMNS='{lacking}=<a column>' or --columns {lacking}=<a column>"
    )


def _check_values(recipe: Recipe, rows: list[Row]) -> None:
    """Refuses a file whose column holds anything but what the recipe knows the meaning of."""
    for column, known in recipe.columns.values.items():
        found = {spelled(row.values[column]) for row in rows if row.values.get(column) not in (None, "")}
        if found - set(known):
            held = ", ".join(shortened(value, 12) for value in sorted(found)[:6]) + (", …" if len(found) > 6 else "")
            raise UserError(
                f"{rows[0].file}: '{column}' holds {held}, but {recipe.name} knows {', '.join(known)} alone; write "
                "these in the file, or give the column another name to do without it"
            )


def _check(record: Record) -> None:
    """Raises `ValueError` with the reason where a record cannot be trained on. A blank reference would make silence right."""
    prompt, comparison = record.prompt, record.comparison
    answers = list(record.example.answers or [""]) if record.example else []
    answers += [comparison.chosen, comparison.rejected] if comparison else []
    answers += [record.rating.answer] if record.rating else []
    texts = [*(message.content for message in prompt), *answers]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a value is no text")
    if not prompt or not prompt[-1].content.strip():
        raise ValueError("empty prompt")
    if not all(answer.strip() for answer in answers):
        raise ValueError("empty answer")
    if comparison and comparison.chosen == comparison.rejected:
        raise ValueError("chosen equals rejected")
    if not all(map(_encodable, texts)):
        raise ValueError("broken character")


def _encodable(text: str) -> bool:
    r"""Whether every character is whole: JSON can hold halves, such as "\ud83d", that no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# One reader for each layout.


def hub_record(hub_set: HubSet, row: Row) -> Record:
    """The record of a public set's row; raises `ValueError` with the reason to leave the row out."""
    if other := next((name for name, value in hub_set.where.items() if row.values.get(name) != value), None):
        raise ValueError(f"'{other}' is not {hub_set.where[other]}")
    try:
        item = hub_set.read(row.values)
    except WRONG_KIND:
        raise ValueError("a value is missing or of another type") from None
    if isinstance(item, Example):
        return Record(item.prompt, example=item)
    if isinstance(item, Comparison):
        return Record(item.prompt, comparison=item)
    return Record(item.prompt, rating=item)


def said_of(hub_set: HubSet) -> list[str]:
    """What a reason for leaving out rows of a public set may name."""
    return [*hub_set.columns, *hub_set.where, *hub_set.where.values()]


def _own(own: Columns, row: Row) -> Record:
    values = {name: value for name, value in row.values.items() if value is not None}
    for name in own.required:
        if name not in values:
            raise ValueError(f"no value in '{name}'")
    example = own.example(values)
    if "rejected" not in own.optional or not values.get("rejected"):
        return Record(example.prompt, example)
    rejected = _answer(row, "rejected", example.prompt)
    # A draft that was right already, as post-edited translations often are, is a demonstration and no comparison.
    if not example.answers or not rejected.strip() or rejected in example.answers:
        return Record(example.prompt, example)
    return Record(
        example.prompt, example, Comparison(example.prompt, example.answers[0], rejected, margin=_margin(row))
    )


def _pair(row: Row) -> Record:
    prompt = _prompt(row)
    chosen, rejected = _answer(row, "chosen", prompt), _answer(row, "rejected", prompt)
    return Record(prompt, comparison=Comparison(prompt, chosen, rejected, margin=_margin(row)))


def _pair_of_chats(row: Row) -> Record:
    """Two chats that differ in their last answer; the messages before it are the prompt."""
    chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
    if chosen == rejected:
        raise ValueError("chosen equals rejected")
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    prompt = tuple(message for message, _ in shared)
    rest = chosen[len(prompt) :] + rejected[len(prompt) :]
    if len(chosen) != len(rejected) or [message.role for message in rest] != ["assistant", "assistant"]:
        raise ValueError("chosen and rejected differ in more than the last answer")
    return Record(prompt, comparison=Comparison(prompt, rest[0].content, rest[1].content, margin=_margin(row)))


def _chat(row: Row) -> Record:
    messages = _messages(row, "messages")
    answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise ValueError("no message of the assistant")
    prompt, answer = messages[: answers[-1]], messages[answers[-1]]
    return Record(prompt, Example(prompt, (answer.content,)))


def _rated(row: Row) -> Record:
    prompt = _prompt(row)
    return Record(prompt, rating=Rating(prompt, _answer(row, "completion", prompt), _score(row)))


def _demonstration(row: Row) -> Record:
    prompt = _prompt(row)
    return Record(prompt, Example(prompt, (_answer(row, "completion", prompt),)))


# One reader for each kind of field.


def _prompt(row: Row) -> Prompt:
    value = row.values.get("prompt")
    if value is None:
        raise ValueError("empty prompt")
    return user(value) if isinstance(value, str) else _messages(row, "prompt", "text or a list of messages")


def _answer(row: Row, field: str, prompt: Prompt) -> str:
    """The answer as text; a list may repeat the prompt before it."""
    value = row.values.get(field)
    if value is None:
        raise ValueError("empty answer")
    if isinstance(value, str):
        return value
    expected = "text or a list with one assistant message"
    messages = _messages(row, field, expected)
    messages = messages[len(prompt) :] if messages[: len(prompt)] == prompt else messages
    if [message.role for message in messages] != ["assistant"]:
        raise _wrong(row, field, expected, value)
    return messages[0].content


def _messages(row: Row, field: str, expected: str = "a list of messages") -> Prompt:
    value = row.values.get(field)
    if value is None:
        raise ValueError(f"no value in '{field}'")
    if not isinstance(value, list):
        raise _wrong(row, field, expected, value)
    return tuple(_message(row, field, item) for item in value)


def _message(row: Row, field: str, item: Any) -> Message:
    if not isinstance(item, dict) or item.get("role") not in ROLES or not isinstance(item.get("content"), str):
        shape = f'a list of {{"role": …, "content": text}} with the roles {", ".join(ROLES)}'
        raise _wrong(row, field, shape, item)
    return Message(item["role"], item["content"])


def _score(row: Row) -> float:
    if row.values.get("score") is None:
        raise ValueError("no score")
    return _number(row, "score", -math.inf, "a finite number")


def _margin(row: Row) -> float | None:
    """TRL's name for how much better the chosen answer is; a row may go without."""
    return None if row.values.get("margin") is None else _number(row, "margin", 0, "a finite number, 0 or more")


def _number(row: Row, field: str, least: float, expected: str) -> float:
    value = row.values[field]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= least):
        raise _wrong(row, field, expected, value)
    return number


def _wrong(row: Row, field: str, expected: str, value: Any) -> UserError:
    where = f"{row.file}, row {row.number}: field '{field}'"
    return UserError(f"{where} must be {expected}, but found {kind_of(value)} ({repr(value)[:60]}); mend the row")
