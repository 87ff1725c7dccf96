"""Which weights a model has, so that no stage stands on another base than the stages below it were made on.

identity("models/mine") -> "9f86d081884c7d65…"
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from rlrecipes.hub.reach import cached_file, read_object
from rlrecipes.run.folder import read_json

CONFIGS = ("config.json", "generation_config.json")
UNREAD = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")
"""What saving a model again may change in them."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""A checkpoint's one file of weights, in the order in which Transformers looks for it; each may be an index of several."""
WHOLE = 1 << 28
"""Bytes of a file of weights up to which all of it is read; of a larger one `BLOCKS` places."""
BLOCKS, BLOCK = 4096, 4096
"""How many places, and how many bytes at each: other training moves all of a file."""
READING = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.jinja"),
    *("special_tokens_map.json", "added_tokens.json"),
)
"""Files that say which ids a chat has."""


def identity(name: str) -> str | None:
    """A digest of a model's configuration and of samples of its weights; None where they are not whole on this machine.

    Raises:
        UserError: its index of weights is damaged.
    """
    config = cached_file(name, CONFIGS[0])
    weights = _weights(config.parent) if config else []
    if config is None or not weights:
        return None
    digest = hashlib.sha256()
    for file in CONFIGS:
        values = read_json(config.with_name(file))
        digest.update(json.dumps([file, {key: values[key] for key in sorted(values) if key not in UNREAD}]).encode())
    for path in weights:
        digest.update(_content(path))
    return digest.hexdigest()


def _weights(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights; none where one is missing, as before the hub has given them all."""
    for name in WEIGHTS:
        if (whole := folder / name).is_file():
            return [whole]
        if (index := folder / f"{name}.index.json").is_file():
            shards = read_object(index).get("weight_map")
            names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
            paths = [folder / name for name in names]
            return paths if all(path.is_file() for path in paths) else []
    return []


def reading(name: str) -> str:
    """A digest of the files of a model's tokenizer that are on this machine."""
    digest = hashlib.sha256()
    for path in (path for file in READING if (path := cached_file(name, file))):
        digest.update(_content(path))
    return digest.hexdigest()


def is_another(name: str, recorded: str | None) -> bool:
    """Whether a model has another identity than a stage recorded; not where either is unknown."""
    now = identity(name) if recorded else None
    return now is not None and now != recorded


def _content(path: Path) -> bytes:
    """A digest of a file's name and content, which a process reads once: many stages ask for it."""
    found = path.stat()
    return _digest(path, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, *_changed: int) -> bytes:
    digest = hashlib.sha256(f"{path.name} {size}".encode())
    for block in _samples(path, size):
        digest.update(block)
    return digest.digest()


def _samples(path: Path, size: int) -> Iterator[bytes]:
    """All of a file, or blocks of it, evenly spread from its first to its last."""
    last = size - BLOCK
    with path.open("rb") as file:
        if last < WHOLE:
            yield file.read()
            return
        for place in range(BLOCKS):
            file.seek(last * place // (BLOCKS - 1))
            yield file.read(BLOCK)
