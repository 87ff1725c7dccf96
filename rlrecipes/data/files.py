"""Rows from files: JSONL, JSON, CSV, Parquet or Arrow, one file or a folder of them.

    data/train.jsonl, row 1: {"source": "Das Kind liest.", "target": "The child reads."}

A fault of a file is a `UserError` that names the file and, where possible, the row.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlrecipes.data.cells import BOM, Numbered, check_width, refuse_twins, table
from rlrecipes.errors import UserError, check_text
from rlrecipes.recipe import unknown
from rlrecipes.text import shortened

SWOLLEN, TOLERATED = 50, 1 << 26
"""A file that unpacks to so many times its size is refused once it has given so many bytes; text packs 3 to 20 times."""
CHUNK, ROWS_AT_ONCE = 1 << 22, 64
"""Bytes of a gzip file and rows of a Parquet file that are unpacked before their size is looked at."""
GZIP = b"\x1f\x8b"
"""How a gzip file begins."""
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""How Excel's "Unicode text" begins."""

TEST = re.compile(r"(?<![a-z])(((dev|news)?test|eval)(set|s|ing|uations?)?|(held|hold)[ _-]?out)(?![a-z])")
"""Marks the name of a file as held out: `test.csv`, `my-testset.csv`, `eval.csv`, `newstest14.csv`, but not `latest.csv`."""
VALIDATION = re.compile(r"(?<![a-z])(val|valid|validation|dev|development)(set)?(?![a-z])")
"""Marks it as held out where no name matches `TEST`."""


class Row(NamedTuple):
    """One row of a file, with its place for error messages."""

    file: str
    number: int
    """From 1. JSONL counts lines; CSV does not count the header."""
    values: Mapping[str, Any]
    """By column; an empty cell of a CSV is None, like a null."""


def find(source: str) -> list[Path]:
    """The data file that `source` names, or the data files of that folder, sorted by name.

    Raises:
        UserError: there is no such file or folder, or nothing in it is of a kind in `READERS`.
    """
    check_text(source)
    path = Path(os.path.expanduser(source))
    try:
        if path.is_dir():
            return _in_folder(path)
        exists = path.exists()
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror}); check its name and permissions") from error
    if not exists:
        if path.is_symlink():
            raise UserError(f"{path} is a link to no file; name the file itself")
        near = [str(path.with_name(other.name)) for other in path.parent.glob("*")]
        raise UserError(unknown("file or folder", source, near, "name a data file or a folder of data files"))
    if not path.is_file():
        raise UserError(f"{path} is no regular file; write its rows into one, and give that")
    if _kind(path) not in READERS:
        raise UserError(f"{path} is of no kind that can be read; give a file that ends in {_kinds()}")
    return [path]


def find_splits(source: str) -> tuple[list[Path], list[Path], list[str]]:
    """Files of the training split, files of the held-out split, and notes for the console.

    The names of a folder's files tell which are held out (`TEST`, else `VALIDATION`), or the names of the splits that
    `datasets` saved; there may be none.

    Raises:
        UserError: as `find`.
    """
    folder = Path(os.path.expanduser(source))
    saved = (
        [path.parent for path in sorted(folder.glob("*/state.json"))] if _is_file(folder / "dataset_dict.json") else []
    )
    paths = [path for split in saved for path in find(str(split))] or find(source)
    if not folder.is_dir():
        return paths, [], []
    names = {path: (path.parent if saved else path).name.lower() for path in paths}
    tests = [path for path in paths if TEST.search(names[path])]
    validations = [path for path in paths if path not in tests and VALIDATION.search(names[path])]
    train = [path for path in paths if path not in tests and path not in validations]
    notes = [] if saved else _unread_in(folder, paths)
    notes += [f"{path.name} is not used, since the folder has a test split." for path in validations if tests]
    held_out = tests or validations
    if held_out:
        held_out_names = dict.fromkeys((path.parent if saved else path).name for path in held_out)
        notes.append(f"The held-out split is {', '.join(held_out_names)}.")
    return train, held_out, notes


def read(path: Path) -> list[Row]:
    """All rows of one file.

    Raises:
        UserError: the file cannot be read, is empty, or a row is not an object.
    """
    try:
        rows = [_row(path, number, value) for number, value in READERS[_kind(path)](path)]
    except MemoryError:
        raise UserError(f"{path} does not fit into memory; give a part of its rows") from None
    if not rows:
        raise UserError(f"{path} is empty; give a file with one row per example, or take it out of the folder")
    return rows


def rename(rows: list[Row], columns: Mapping[str, str]) -> list[Row]:
    """The rows of one file with its column `columns[name]`, or a field within one (`answer.text`), read as `name`.

    Raises:
        UserError: the file has no such column.
    """
    names = column_names(rows)
    for column in columns.values():
        if column not in names and not any(_value(row.values, column) is not None for row in rows):
            sentence = unknown("column", column, names, f"its columns are {shortened(', '.join(names), 120)}")
            raise UserError(f"{rows[0].file}: {sentence}")
    return [row._replace(values=_rename(row.values, columns)) for row in rows]


def column_names(rows: list[Row]) -> list[str]:
    """The columns that any of the rows has, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def kind_of(value: Any) -> str:
    """A value's type in words for error messages: "text", "a number", "a list"."""
    kinds = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    named = (name for kind, name in kinds.items() if isinstance(value, kind))
    return "null" if value is None else next(named, type(value).__name__)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, or no right to look
        return False


def _in_folder(folder: Path) -> list[Path]:
    if _is_file(folder / "state.json") and (saved := sorted(folder.glob("data-*.arrow"))):  # `Dataset.save_to_disk`
        return saved
    named = [path for path in sorted(folder.iterdir()) if _kind(path) in READERS and not path.name.startswith(".")]
    files = [path for path in named if _is_file(path)]
    if not files:
        raise UserError(f"the folder {folder} holds no data files; put files into it that end in {_kinds()}")
    for path in named:
        check_text(path.name)
        if path not in files and not path.is_dir():
            raise UserError(f"{path} is named as a data file and is none (a broken link, a pipe); take it out")
    return files


def _unread_in(folder: Path, paths: Sequence[Path]) -> list[str]:
    """A sentence on what else the folder holds: another kind of file or a folder of files is easily taken for read."""
    others = [path.name for path in sorted(folder.iterdir()) if path not in paths and not path.name.startswith(".")]
    if not others or paths[0].suffix == ".arrow":  # beside its rows, a saved data set keeps files of its own
        return []
    return [f"The folder's {shortened(', '.join(others), 120)} is not read: of other kinds, or a folder within it."]


def _kind(path: Path) -> str:
    """The suffix that names the reader: `.csv` of `rows.csv.gz`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def is_table(path: Path) -> bool:
    """Whether a file's rows are cells of text."""
    return READERS[_kind(path)] is _csv


def _kinds() -> str:
    return ", ".join(READERS)


def _row(path: Path, number: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{path}, row {number} is {kind_of(value)}; make it an object with a name for each value")
    check_width(path, len(value))
    return Row(str(path), number, value)


def _rename(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    others = {name: value for name, value in values.items() if name not in columns and name not in columns.values()}
    for column in columns.values():
        outer, dot, inner = column.partition(".")
        if dot and column not in values and isinstance(others.get(outer), Mapping):
            others[outer] = {name: value for name, value in others[outer].items() if name != inner}
    found = {name: _value(values, column) for name, column in columns.items()}
    return others | {name: value for name, value in found.items() if value is not None or columns[name] in values}


def _value(values: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a field within one, such as `translation.de`."""
    outer, dot, inner = column.partition(".")
    if column in values or not dot:
        return values.get(column)
    return values[outer].get(inner) if isinstance(values.get(outer), Mapping) else None


def _text(path: Path) -> str:
    try:
        content = _unpacked(path) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); check that the file is whole and yours to read") from error
    if content.startswith(GZIP) and path.suffix.lower() != ".gz":
        raise UserError(f"{path} is packed with gzip; add .gz to its name")
    if b"\0" in content[:2]:
        raise UserError(
            f"{path} begins with a null byte, as UTF-16 without its mark does; save the file as UTF-8 (Excel: CSV UTF-8)"
        )
    encoding = "utf-16" if content.startswith(UTF_16) and not content.startswith(codecs.BOM_UTF32_LE) else "utf-8-sig"
    try:
        return content.decode(encoding).lstrip(BOM)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line} is not UTF-8 text; save the file as UTF-8 (Excel: CSV UTF-8)") from error


def _unpacked(path: Path) -> bytes:
    """The content of a gzip file, which is read no further than what a person would pack."""
    parts, size = [], 0
    with gzip.open(path) as file:
        while part := file.read(CHUNK):
            parts.append(part)
            size += len(part)
            _refuse_swollen(path, size)
    return b"".join(parts)


def _refuse_swollen(path: Path, size: int) -> None:
    """Refuses a packed file that gave `size` bytes so far where no person packs so well."""
    if size > max(TOLERATED, SWOLLEN * path.stat().st_size):
        raise UserError(f"{path} unpacks to more than {SWOLLEN} times its size; unpack it yourself and look at it")


def _jsonl(path: Path) -> Numbered:
    text = _text(path)
    if rows := _list_in(text):
        yield from enumerate(rows, start=1)
        return
    # Not splitlines(): it also splits at characters such as U+2028, which may stand inside a JSON string.
    lines = text.rstrip().split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                yield number, _parsed(line.lstrip(BOM))  # files that were put together keep their marks
        except (ValueError, RecursionError) as error:
            cut_off = number == len(lines) and not text.endswith("\n") and not line.endswith("}")
            what = "(the last line) is cut off" if cut_off else f"is not JSON ({_reason(error)})"
            raise UserError(f"{path}, row {number} {what}; mend the line or delete it") from error


def _list_in(text: str) -> list[Any]:
    """The objects of a JSON list under the name of JSON lines; none of other texts."""
    try:
        return _parsed(text) if re.match(r"\s*\[\s*\{", text) else []
    except (ValueError, RecursionError):
        return []


def _json(path: Path) -> Numbered:
    text = _text(path).strip() or "[]"
    try:
        content = _parsed(text)
    except (ValueError, RecursionError) as error:
        if _of_lines(text):
            yield from _jsonl(path)
            return
        raise UserError(f"{path} is not JSON ({_reason(error)}); mend it") from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list):
        raise UserError(f"{path} is {kind_of(content)}; make it a list of objects, or an object that holds one list")
    yield from enumerate(content, start=1)


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; Python's would keep the last of two values of one name and pass over the other in silence."""
    values = dict(pairs)
    for name, value in pairs if len(values) < len(pairs) else ():
        if values[name] != value:
            raise ValueError(f"an object has '{shortened(name)}' twice")
    return values


def _of_lines(text: str) -> bool:
    """Whether the first line is an object and another one begins behind it: JSON lines under another name."""
    first, _, rest = text.partition("\n")
    try:
        return isinstance(json.loads(first), dict) and rest.lstrip().startswith("{")
    except (ValueError, RecursionError):
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno} column {error.colno}".replace("line 1 ", "")
    return str(error).partition("; use sys.")[0]  # Python's advice on numbers of more than 4,300 digits


def _csv(path: Path) -> Numbered:
    yield from table(path, _text(path))


def _arrow(path: Path) -> Numbered:
    """What `datasets` writes with `save_to_disk`, a stream, or what Polars and pyarrow call a file."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            content = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(source).read_all()
            check_width(path, len(content.column_names))
            refuse_twins(path, content.column_names)
            rows = content.to_pylist()
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read as Arrow ({reason}); save the data set again") from error
    yield from enumerate(rows, start=1)


def _parquet(path: Path) -> Numbered:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_width(path, len(file.schema_arrow.names))
            refuse_twins(path, file.schema_arrow.names)
            rows, size = [], 0
            for batch in file.iter_batches(ROWS_AT_ONCE):
                size += batch.nbytes + sum(map(_unshared, batch.columns))
                _refuse_swollen(path, size)
                rows += batch.to_pylist()
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read as Parquet ({reason}); check that the file is whole") from error
    yield from enumerate(rows, start=1)


def _unshared(column: Any) -> int:
    """The bytes that a column's rows take where each holds its own copy of a text that they share; 0 where none is shared."""
    import pyarrow

    if not isinstance(column, pyarrow.DictionaryArray) or not len(column.dictionary):
        return 0
    return int(len(column) * column.dictionary.nbytes / len(column.dictionary))


READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
"""What reads a file, by its suffix; the text files may also end in `.gz`."""
