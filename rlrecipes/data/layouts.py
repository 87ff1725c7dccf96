"""Layouts of data files: the usual columns, and how a row with them is read.

    {"prompt": "Hello!", "chosen": "Hello, what can I do for you?", "rejected": "What?"}

becomes `Comparison(user("Hello!"), "Hello, what can I do for you?", "What?")`.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from rlrecipes.data.cells import swallowed
from rlrecipes.data.files import Row, column_names, is_table, read, rename
from rlrecipes.data.likeness import ALIASES, likeness
from rlrecipes.data.preferences import BESIDE_PAIR, CHOSEN, compared, lone_scores, sides_of
from rlrecipes.data.readers import BESIDE, LAYOUTS, PROMPTS, Layout, Reader, Record, answer_of, graded, with_system
from rlrecipes.data.reasons import Drop, reason_of
from rlrecipes.data.repeats import without_prompts
from rlrecipes.data.turns import CHATS, TOOLS, UNUSABLE, UNUSABLE_KEYS, is_empty, wrong
from rlrecipes.data.unread import Looked, check_usable, unread, unread_in
from rlrecipes.errors import OwnCodeError, UserError, has_make, option, own_code, setting
from rlrecipes.hub.fetch import missing_column
from rlrecipes.recipe import Columns, Comparison, Example, HubSet, Recipe, spelled, truth_of, unknown
from rlrecipes.text import shortened

WRONG_KIND = (TypeError, AttributeError, KeyError, IndexError)
"""What a public set's reader raises on a value that it does not expect."""

Records = tuple[list[Record], list[Drop]]
"""The records of rows, and the rows left out."""


def _layouts(own: Columns) -> tuple[Layout, ...]:
    """The layouts of a recipe; its own stands first, and a file takes the first that fits."""
    beside = (*own.optional, "system", *(BESIDE_PAIR if "rejected" in own.optional else ()))
    return (Layout(own.required, partial(_own, own), beside), *LAYOUTS, *((PROMPTS,) if own.alone else ()))


def rows_of(recipe: Recipe, path: Path, columns: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """The rows of a file under the names of the layouts, and sentences on what was changed to make them so.

    Raises:
        UserError: the file cannot be read, or has none of the columns that `columns` maps.
    """
    rows = read(path)
    cells = swallowed((row.number, row.values) for row in rows) if is_table(path) else []
    hidden = _hidden(rows, columns)
    rows, system = _with_system(_with_siblings(rename(rows, columns), columns))
    rows, pair = _with_language_pair(recipe.columns, rows)
    rows, blank = _without_placeholders(_layout(recipe, rows), rows)
    rows, repeated = without_prompts(rows)
    return rows, [*cells, *hidden, *system, *pair, *blank, *repeated]


def _hidden(rows: list[Row], columns: Mapping[str, str]) -> list[str]:
    """A sentence on the file's own columns whose name stands for another one, and on what is left of them."""
    read_as = set(columns.values())
    own = [
        {name: value for name, value in row.values.items() if name in columns and name not in read_as} for row in rows
    ]
    counts = unread_in([row._replace(values=values) for row, values in zip(rows, own, strict=True)], ())
    named = [f"{name} ({count:,} rows)" for name, count in counts.items() if name[1:-1] not in read_as]
    return [f"Not read, since another column is read under that name: {', '.join(named)}."] if named else []


def _with_siblings(rows: list[Row], columns: Mapping[str, str]) -> list[Row]:
    """The rows with what stands beside a field that is read, and makes it another task, as a column: `tools` of `input`."""
    outer = {column.partition(".")[0] for column in columns.values() if "." in column}
    beside = [
        {key: held.get(key) for name in outer if isinstance(held := row.values.get(name), dict) for key in UNUSABLE}
        for row in rows
    ]
    return (
        [row._replace(values={**found, **row.values}) for row, found in zip(rows, beside, strict=True)]
        if outer
        else rows
    )


def _with_system(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """OpenOrca's and OpenHermes's name for the column 'system', read as such where there is none."""
    if "system_prompt" not in (names := column_names(rows)) or "system" in names:
        return rows, []
    return rename(rows, {"system": "system_prompt"}), ["'system_prompt' is read as 'system': it is the first turn."]


def _with_language_pair(own: Columns, rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Two texts in one column, as `{"translation": {"de": "Ja", "en": "Yes"}}`, as source and target in their order."""
    found = [row.values.get("translation") for row in rows]
    pairs = [tuple(pair) for pair in found if isinstance(pair, dict) and len(pair) == 2]
    if not pairs or own.required != ("source", "target") or set(own.required) & set(column_names(rows)):
        return rows, []
    (usual, _), *_ = Counter(map(frozenset, pairs)).most_common(1)
    one, other = next(pair for pair in pairs if usual == set(pair))
    turned = f"source=translation.{other} target=translation.{one}"
    note = f"'translation' is read from {one} to {other}; {option('columns', repr(turned))} turns it."
    return rename(rows, {"source": f"translation.{one}", "target": f"translation.{other}"}), [note]


PANDAS = ("nan", "<na>")
"""How pandas writes an empty cell as text."""
PLACEHOLDERS = (*PANDAS, "<noinput>", "none", "null", "n/a")
"""What stands for nothing in a column that a row may go without; `<noinput>` is Alpaca's."""


def _without_placeholders(layout: Layout, rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows without what only says that a cell is empty, and sentences on it; an answer such as "None" stays."""
    notes: list[str] = []
    for column in dict.fromkeys((*layout.reads, *UNUSABLE, "split", *layout.needs)):
        known = PANDAS if column == "rejected" else PLACEHOLDERS
        blank = {
            row.number: str(row.values[column]) for row in rows if _stands_for_nothing(row.values.get(column), known)
        }
        found = f"'{column}' is {', '.join(sorted(set(blank.values())))} in {len(blank):,} rows"
        if blank and column in layout.needs:
            notes.append(f"{found}, and stays so.")
        elif blank:
            notes.append(f"{found}, which is read as no value.")
            rows = [_with(row, column, None) if row.number in blank else row for row in rows]
    return rows, notes


def _stands_for_nothing(value: Any, known: Collection[str]) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, str) and len(value) < 20 and spelled(value) in known


def _with(row: Row, column: str, value: Any) -> Row:
    return row._replace(values={**row.values, column: value})


def records(recipe: Recipe, rows: list[Row]) -> Records:
    """The records of the rows of one file; each knows what of its row nobody reads.

    Raises:
        UserError: the rows are in no known layout, a value is of the wrong type, or no row can be used.
    """
    layout = _layout(recipe, rows)
    if layout.needs == recipe.columns.required:
        _check_values(recipe, rows)
    names = [*known_names(recipe), *TOOLS, *UNUSABLE, *UNUSABLE_KEYS, *(n for one in recipe.hub for n in said_of(one))]
    usable, drops = read_rows(partial(_watched, recipe, layout), rows, names)
    if not usable:
        where = f"{rows[0].file}, row {rows[0].number}: {drops[0].reason}"
        counts = unread_in(rows, {*layout.needs, *layout.reads})
        named = ", ".join(name for name in counts if name.startswith("'"))
        others = named and shortened(f"; not read: {named}", 120)
        raise UserError(
            f"{where}, and no other row can be used either{others}; mend the rows, or map columns with --columns"
        )
    return usable, drops


def _watched(recipe: Recipe, layout: Layout, row: Row) -> Record:
    """A row's record, with what it does not read and what calls its answer good or bad."""
    columns, whole = {*layout.needs, *layout.reads}, row.values
    check_usable(row, columns)
    row = row._replace(values={n: Looked.of(v) if n in columns else v for n, v in row.values.items()})
    record = layout.read(row)
    if recipe.columns.keep:
        columns, record = columns | whole.keys(), dataclasses.replace(record, columns=whole)
    marking = {*layout.grades, *recipe.columns.values} & columns
    marks = tuple((name, spelled(row.values[name])) for name in marking if not is_empty(row.values.get(name)))
    return dataclasses.replace(record, unread=tuple(unread(row, columns - lone_scores(row))), marks=marks)


def read_rows(reader: Reader, rows: Iterable[Row], names: Collection[str]) -> Records:
    """The records that can be trained on, and the others with their reasons; `names` may stand in a reason."""
    usable: list[Record] = []
    drops: list[Drop] = []
    known = frozenset(names)
    for row in rows:
        place = f"{Path(row.file).name}, row {row.number}"
        try:
            with own_code():
                record = reader(row)
                check(record)
            usable.append(dataclasses.replace(record, place=place))
        except OwnCodeError as error:
            if isinstance(error.raised, UserError | MemoryError):
                raise error.raised from None
            drops.append(Drop(reason_of(error.raised, known), place))
    return usable, drops


def check_names(recipe: Recipe, columns: Mapping[str, str]) -> None:
    """Refuses to read a column under a name that no layout knows; it would have no effect.

    Raises:
        UserError: with the nearest name that is known.
    """
    known = [*known_names(recipe), "split"]
    for name in columns:
        if name not in known:
            meant = [field for field, words in ALIASES.items() if field in known and spelled(name) in words]
            names = shortened(", ".join(dict.fromkeys(known)), 150)
            told = unknown("field", shortened(name), known, f"known are {names}")
            told = f"there is no field '{name}'; did you mean '{meant[0]}'?" if meant else told
            raise UserError(f"--columns {shortened(f'{name}={columns[name]}')}: {told}")


def known_names(recipe: Recipe) -> list[str]:
    """The columns that any layout of a recipe reads."""
    return [name for layout in _layouts(recipe.columns) for name in (*layout.needs, *layout.reads, *layout.grades)]


def _layout(recipe: Recipe, rows: list[Row]) -> Layout:
    header = column_names(rows)
    for hub_set in recipe.hub:  # first: columns that only a public set has leave no doubt
        its_own = not set(hub_set.columns) <= set(known_names(recipe)) and not missing_column(hub_set, rows[0].values)
        if its_own and any(not _elsewhere(hub_set, row) for row in rows):
            return Layout(_outer(hub_set.columns), partial(hub_record, hub_set), _outer(hub_set.where))
    for layout in _layouts(recipe.columns):
        if set(layout.needs) <= set(header) and not (layout.needs == CHOSEN and _are_answers(rows[:TRIED])):
            return graded(layout, header)
    choices = ", or ".join("+".join(layout.needs) for layout in _offered(recipe))
    mapping = _mapping(recipe, rows)
    todo = f"map names, such as {mapping}" if mapping else "docs/own-data.md has what each of them holds"
    if "prompt" in header and not mapping:
        todo = f"prompts alone are enough at {setting('start', 'base')} with a reward.function"
    known = f"but {recipe.name} reads {choices}, …; {todo}"
    held = shortened(", ".join(header), max(60, 270 - len(known)))
    raise UserError(f"{rows[0].file} has the columns {held}, {known}")


def _are_answers(rows: list[Row]) -> bool:
    """Whether the chosen answers are texts without the chat before them: the prompt stands elsewhere."""
    texts = [row.values.get("chosen") for row in rows]
    return all(isinstance(text, str) and not text.lstrip().startswith(("[", "{", "Human:")) for text in texts)


def _offered(recipe: Recipe) -> list[Layout]:
    """The layouts that a refusal names."""
    names = (("prompt", "chosen", "rejected"), ("chosen", "rejected"), *((name,) for name in CHATS[:2]))
    known = {layout.needs: layout for layout in _layouts(recipe.columns)}
    return [known[needs] for needs in (recipe.columns.required, *names, ("prompt", "completion"))]


TRIED, TRIED_COLUMNS = 10, 6
"""Rows that a mapping has to read, and columns that are tried, before a refusal names it."""


def _mapping(recipe: Recipe, rows: list[Row]) -> str | None:
    """A mapping under which most of the first rows can be read; None where there is none, or others would do as well."""
    header = column_names(rows)
    begun = {name for layout in _layouts(recipe.columns) for name in layout.needs} & set(header)
    known = {*known_names(recipe)} - ({*BESIDE} - begun)  # what an instruction is about may be the prompt without one
    spare = [name for name, _ in _fields(rows[0].values) if name not in known and len(name) <= 40][:TRIED_COLUMNS]
    either = [layout for layout in LAYOUTS if layout.needs == ("prompt", "response")]
    for layout in (*_offered(recipe), *either):
        lacking = [name for name in layout.needs if name not in header]
        if not lacking or "rejected" in lacking:  # nobody would name them otherwise
            continue
        if begun and begun.isdisjoint(layout.needs):
            continue
        ways = [dict(zip(lacking, columns, strict=True)) for columns in permutations(spare, len(lacking))]
        alike = max(map(likeness, ways), default=0) + len(layout.needs) - len(lacking)
        if len(layout.needs) > 2 and 0 < alike < len(layout.needs):  # the last would be any, such as a ticket's number
            continue
        if layout.needs[0] == "prompt":  # any two texts would do, also wrong ones
            named = [way for way in ways if likeness(way) == len(lacking)]
            others = [] if {"role", "from"} & set(header) or len(lacking) < len(header) else ways
            ways = named if len(named) == 1 else others
        read = [way for way in ways if _reads(layout, rows[:TRIED], way)]
        likeliest = [way for way in read if likeness(way) == max(map(likeness, read))]
        if len({frozenset(way.values()) for way in likeliest}) == 1:
            pairs = [f"{name}={column}" for name, column in likeliest[0].items()]
            plainly = has_make() and not any(" " in pair for pair in pairs)
            return f"COLUMNS={' '.join(pairs)!r}" if plainly else f"--columns {shlex.join(pairs)}"
    return None


def _reads(layout: Layout, rows: list[Row], columns: Mapping[str, str]) -> bool:
    try:
        usable, _ = read_rows(layout.read, rename(rows, columns), ())
    except UserError:  # a value of the wrong type, or a field that none of these rows has
        return False
    return 2 * len(usable) > len(rows)


def _fields(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The columns of a row and the fields within them, as COLUMNS names them."""
    for name, value in values.items():
        yield from ((f"{name}.{inner}", field) for inner, field in value.items()) if isinstance(value, dict) else ()
        yield name, value


def _outer(names: Iterable[str]) -> tuple[str, ...]:
    """Columns without the fields within them: `translation` of `translation.de`."""
    return tuple(name.partition(".")[0] for name in names)


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


def check(record: Record) -> None:
    """Raises `ValueError` with the reason where a record cannot be trained on. A blank reference would make silence right."""
    prompt, comparison = record.prompt, record.comparison
    answers = list(record.example.answers or ([] if record.alone else [""])) if record.example else []
    answers += [comparison.chosen, comparison.rejected] if comparison else []
    answers += [record.rating.answer] if record.rating else []
    texts = [*(message.content for message in prompt), *answers]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a value is no text")
    if not prompt or not prompt[-1].content.strip():
        raise ValueError("empty prompt")
    if not all(answer.strip() for answer in answers):
        raise ValueError("empty answer")
    if comparison and comparison.chosen.strip() == comparison.rejected.strip():
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


# Readers of a recipe's own columns and of public sets.


def hub_record(hub_set: HubSet, row: Row) -> Record:
    """The record of a public set's row; raises `ValueError` with the reason to leave the row out."""
    if other := _elsewhere(hub_set, row):
        raise ValueError(f"'{other}' is not {hub_set.where[other]}")
    values = dict(row.values)
    for name in hub_set.truths:
        if (said := truth_of(values.get(name))) is None:
            raise wrong(row, name, "true or false", values.get(name))
        values[name] = said
    try:
        item = hub_set.read(values)
    except WRONG_KIND:
        raise ValueError("a value is missing or of another type") from None
    if isinstance(item, Example):
        return Record(item.prompt, example=item)
    if isinstance(item, Comparison):
        return Record(item.prompt, comparison=item)
    return Record(item.prompt, rating=item)


def _elsewhere(hub_set: HubSet, row: Row) -> str | None:
    """The column that keeps a row from being one of those that a public set is read for."""
    return next((name for name, value in hub_set.where.items() if row.values.get(name) != value), None)


def said_of(hub_set: HubSet) -> list[str]:
    """What a reason for leaving out rows of a public set may name."""
    return [*hub_set.columns, *hub_set.where, *hub_set.where.values()]


def _own(own: Columns, row: Row) -> Record:
    values = {name: value for name, value in row.values.items() if value is not None}
    for name in own.required:
        if name not in values:
            raise ValueError(f"no value in '{name}'")
    example = own.example(values)
    if "system" not in (*own.required, *own.optional):
        example = dataclasses.replace(example, prompt=with_system(row, example.prompt))
    if "rejected" not in own.optional or not values.get("rejected"):
        return Record(example.prompt, example)
    _, rejected = answer_of(row, "rejected", example.prompt)
    # A draft that was right already, as post-edited translations often are, is a demonstration and no comparison.
    if not example.answers or rejected.strip() in ("", *(answer.strip() for answer in example.answers)):
        return Record(example.prompt, example)
    sides_of(row, CHOSEN)
    return Record(example.prompt, example, compared(row, example.prompt, example.answers[0], rejected))
