"""Layouts of data files: what a row says, whichever of the usual columns it says it in.

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
from rlrecipes.recipe import Columns, Comparison, Example, HubSet, Message, Prompt, Rating, Recipe, unknown, user

ROLES = ("system", "user", "assistant")

WRONG_KIND = (TypeError, AttributeError, KeyError, IndexError)
"""What a recipe's reader raises on a value that it does not expect."""


class Record(NamedTuple):
    """What one row says: an example, a comparison (or both), or a rating."""

    prompt: Prompt
    example: Example | None = None
    comparison: Comparison | None = None
    rating: Rating | None = None


Reader = Callable[[Row], Record]
"""Raises `ValueError` with the reason when a row is to be left out, `UserError` when a value is of the wrong type."""

Readable = tuple[list[Record], Counter[str]]
"""What rows say, and how many were left out, by reason."""


def _formats(own: Columns) -> list[tuple[tuple[str, ...], Reader]]:
    """The layouts by the columns that mark them, the recipe's own first; the first that fits a file is taken."""
    return [
        (own.required, partial(_own, own)),
        (("prompt", "chosen", "rejected"), _pair),
        (("chosen", "rejected"), _pair_of_chats),
        (("messages",), _chat),
        (("prompt", "completion", "score"), _rated),
        (("prompt", "completion"), _demonstration),
    ]


def records(recipe: Recipe, path: Path, columns: Mapping[str, str]) -> Readable:
    """What the rows of a file say.

    Raises:
        UserError: the file is in no known layout, a value is of the wrong type, or no row can be used.
    """
    rows = rename(read(path), columns)
    kept, reasons = readable(_reader(recipe, rows), rows)
    if not kept:
        where = f"{path}, row {rows[0].number}: {next(iter(reasons))}"
        raise UserError(f"{where}, and no other row can be used either; mend the rows, or map columns with --columns")
    return kept, reasons


def readable(reader: Reader, rows: Iterable[Row]) -> Readable:
    """What the rows say that can be trained on; the reasons of the others stand in the order in which they turn up."""
    kept: list[Record] = []
    reasons: Counter[str] = Counter()
    for row in rows:
        try:
            kept.append(_checked(reader(row)))
        except ValueError as reason:
            reasons[str(reason)] += 1
    return kept, reasons


def check_names(recipe: Recipe, columns: Mapping[str, str]) -> None:
    """Refuses to read a column under a name that no layout knows, which would go unnoticed.

    Raises:
        UserError: with the nearest name that is known.
    """
    known = [name for names, _ in _formats(recipe.columns) for name in names] + [*recipe.columns.optional, "margin"]
    for name in columns:
        if name not in known:
            names = ", ".join(dict.fromkeys(known))
            raise UserError(f"--columns {name}={columns[name]}: {unknown('field', name, known, f'known are {names}')}")


def _reader(recipe: Recipe, rows: list[Row]) -> Reader:
    found = column_names(rows)
    usual = {name for names, _ in _formats(recipe.columns) for name in names} | set(recipe.columns.optional)
    for hub_set in recipe.hub:  # first: what has columns of its own is no other layout, whatever else it has
        if not set(hub_set.columns) <= usual and not missing_column(hub_set, rows[0].values):
            return partial(hub_record, hub_set)
    for columns, reader in _formats(recipe.columns):
        if set(columns) <= set(found):
            return reader
    lacking = next(name for name in recipe.columns.required if name not in found)
    layouts = ", or ".join("+".join(columns) for columns, _ in _formats(recipe.columns))
    raise UserError(
        f"{rows[0].file} has the columns {', '.join(found)}, but {recipe.name} reads {layouts}; "
        f"map names with COLUMNS='{lacking}=<a column>' or --columns {lacking}=<a column>"
    )


def _checked(record: Record) -> Record:
    """The record itself; raises `ValueError` with the reason where it cannot be trained on."""
    prompt, example, comparison, rating = record
    answers = list(example.answers[:1] or [""]) if example else []
    answers += [comparison.chosen, comparison.rejected] if comparison else []
    answers += [rating.answer] if rating else []
    if not all(isinstance(text, str) for text in [*(message.content for message in prompt), *answers]):
        raise ValueError("a value is no text")
    if not prompt or not prompt[-1].content.strip():
        raise ValueError("empty prompt")
    if not all(answer.strip() for answer in answers):
        raise ValueError("empty answer")
    if comparison and comparison.chosen == comparison.rejected:
        raise ValueError("chosen equals rejected")
    if not all(map(_encodable, [*(message.content for message in prompt), *answers])):
        raise ValueError("broken character")
    return record


def _encodable(text: str) -> bool:
    r"""Whether every character is whole: JSON can hold halves, such as "\ud83d", that no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# One reader for each layout.


def missing_column(hub_set: HubSet, values: Mapping[str, Any]) -> str | None:
    """The first column of a data set that a row of it does not have; None if it has all."""
    return next((name for name in hub_set.columns if not _has(values, name)), None)


def _has(values: Any, name: str) -> bool:
    outer, dot, inner = name.partition(".")
    return isinstance(values, Mapping) and outer in values and (not dot or _has(values[outer], inner))


def hub_record(hub_set: HubSet, row: Row) -> Record:
    """What a row of a data set of the hub says; raises `ValueError` with the reason when it is to be left out."""
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
    """Two chats that differ in their last answer: what they share is the prompt."""
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
    found = f"found {kind_of(value)} ({repr(value)[:60]})"
    return UserError(f"{row.file}, row {row.number}: field '{field}' must be {expected}, but {found}; mend the row")
