"""Layouts of data files: the usual columns, and how a row with them is read.

    {"prompt": "Hello!", "chosen": "Hello, what can I do for you?", "rejected": "What?"}

becomes `Comparison(user("Hello!"), "Hello, what can I do for you?", "What?")`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from rlrecipes.data.files import Row, column_names, kind_of, read, rename
from rlrecipes.errors import UserError, first_line
from rlrecipes.hub.fetch import missing_column
from rlrecipes.recipe import Columns, Comparison, Example, HubSet, Message, Prompt, Rating, Recipe, unknown, user

ROLES = ("system", "user", "assistant")

WRONG_KIND = (TypeError, AttributeError, KeyError, IndexError)
"""What a recipe's reader raises on a value that it does not expect."""


class Record(NamedTuple):
    """The content of one row: an example, a comparison (or both), or a rating."""

    prompt: Prompt
    example: Example | None = None
    comparison: Comparison | None = None
    rating: Rating | None = None


Reader = Callable[[Row], Record]
"""Reads one row. Raises `ValueError` with the reason to leave the row out, `UserError` when a value is of the wrong type."""

Records = tuple[list[Record], Counter[str]]
"""The records of rows, and the number of rows left out, by reason."""


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
    usable, reasons = read_rows(_reader(recipe, rows), rows)
    if not usable:
        where = f"{path}, row {rows[0].number}: {next(iter(reasons))}"
        raise UserError(f"{where}, and no other row can be used either; mend the rows, or map columns with --columns")
    return usable, reasons


def read_rows(reader: Reader, rows: Iterable[Row]) -> Records:
    """The records that can be trained on; the reasons of the others stand in order of first appearance."""
    usable: list[Record] = []
    reasons: Counter[str] = Counter()
    for row in rows:
        try:
            record = reader(row)
            _check(record)
            usable.append(record)
        except ValueError as reason:
            reasons[str(reason)] += 1
    return usable, reasons


def check_names(recipe: Recipe, columns: Mapping[str, str]) -> None:
    """Refuses to read a column under a name that no layout knows; it would have no effect.

    Raises:
        UserError: with the nearest name that is known.
    """
    known = [name for names, _ in _layouts(recipe.columns) for name in names] + [*recipe.columns.optional, "margin"]
    for name in columns:
        if name not in known:
            names = ", ".join(dict.fromkeys(known))
            raise UserError(f"--columns {name}={columns[name]}: {unknown('field', name, known, f'known are {names}')}")


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


def _check(record: Record) -> None:
    """Raises `ValueError` with the reason where a record cannot be trained on."""
    prompt, example, comparison, rating = record
    answers = list(example.answers[:1] or [""]) if example else []
    answers += [comparison.chosen, comparison.rejected] if comparison else []
    answers += [rating.answer] if rating else []
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


def _own(own: Columns, row: Row) -> Record:
    values = {name: value for name, value in row.values.items() if value is not None}
    for name in own.required:
        if name not in values:
            raise ValueError(f"no value in '{name}'")
    try:
        example = own.example(values)
    except WRONG_KIND as error:
        raise ValueError(f"the recipe's reader raised {type(error).__name__}: {first_line(error)}") from None
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
