"""Checksums of what lies on the disk: which file is no longer what was written.

    {"files": {"adapter/adapter_model.safetensors": {"bytes": 8211, "sha256": "9f86…"}, …}, …, "sha256": "e3b0…"}

The last is the record's own, over all its other keys. A record without one is from before there were checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError

MANIFEST = "manifest.json"
"""The record of a folder that has no other."""
MISSING, CHANGED = "is missing", "has been changed: its checksum is another"


def sealed(record: Mapping[str, Any], folder: Path = Path(), files: Iterable[Path] = ()) -> dict[str, Any]:
    """The record with the checksums of files below `folder`, and with its own."""
    # Without any, too: a record that has lost its own checksum then still shows that it had one.
    whole = {**record, "files": {path.relative_to(folder).as_posix(): describe(path) for path in sorted(files)}}
    return whole | {"sha256": _digest(whole)}


def files_in(folder: Path) -> list[Path]:
    """All files below a folder; links are files, whatever they lead to."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def describe(path: Path, length: int | None = None) -> dict[str, Any]:
    """The size of a file and its checksum, or those of its first `length` bytes."""
    status = os.stat(path)
    size = status.st_size if length is None else min(length, status.st_size)
    return {"bytes": size, "sha256": _hash(path, size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)}


@lru_cache(1024)  # a big file is read once a process, unless somebody writes to it
def _hash(path: Path, size: int, *version: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()


def damage(record: Mapping[str, Any], folder: Path, name: str) -> tuple[Path, str] | None:
    """The first damaged file of a folder, and what is wrong with it; `name` is the record's own. None: all are whole."""
    if not is_whole(record):
        return folder / name, CHANGED
    for file, expected in record.get("files", {}).items():
        if wrong := difference(folder / file, expected):
            return folder / file, wrong
    return None


def check(record: Mapping[str, Any], folder: Path, name: str, again: str) -> None:
    """Refuses a folder of which a file is damaged or missing; `again` says what to do then.

    Raises:
        UserError: with the file and what is wrong with it.
    """
    if found := damage(record, folder, name):
        path, wrong = found
        raise UserError(f"{path} {wrong if wrong == MISSING else f'is damaged (it {wrong})'}; {again}")


def difference(path: Path, expected: Mapping[str, Any], length: int | None = None) -> str | None:
    """How a file, or its first `length` bytes, differ from what `describe` said."""
    if not path.is_file():
        return MISSING
    actual = describe(path, length)
    if actual["bytes"] != expected["bytes"]:
        return f"has {actual['bytes']} bytes instead of {expected['bytes']}"
    return CHANGED if actual != expected else None


def is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a record is as it was written, by its own checksum; the files that it lists may have changed."""
    if "sha256" not in record:
        return "files" not in record
    return bool(record["sha256"] == _digest({key: value for key, value in record.items() if key != "sha256"}))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
