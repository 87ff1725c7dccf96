"""Which weights a model has, so that no stage stands on another base than the stages below it were made on.

identity("models/mine") -> "9f86d081884c7d65…"
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from rlrecipes.hub.reach import cached_file
from rlrecipes.run.folder import read_json

CONFIGS = ("config.json", "generation_config.json")
UNREAD = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")
"""What saving a model again may change in them."""
WEIGHTS = ("*.safetensors", "*.bin")
BLOCKS, BLOCK = 64, 4096
"""How much of each file of weights is read, and how many bytes at a place: other training moves all of them."""


def identity(name: str) -> str | None:
    """A digest of a model's configuration and of samples of its weights; None where they are not on this machine."""
    config = cached_file(name, CONFIGS[0])
    if config is None:
        return None
    digest = hashlib.sha256()
    for file in CONFIGS:
        values = read_json(config.with_name(file))
        digest.update(json.dumps([file, {key: values[key] for key in sorted(values) if key not in UNREAD}]).encode())
    for path in sorted(path for pattern in WEIGHTS for path in config.parent.glob(pattern)):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        for block in _samples(path):
            digest.update(block)
    return digest.hexdigest()


def is_another(name: str, recorded: str | None) -> bool:
    """Whether a model has another identity than a stage recorded; not where either is unknown."""
    now = identity(name) if recorded else None
    return now is not None and now != recorded


def _samples(path: Path) -> Iterator[bytes]:
    """Blocks of a file, evenly spread from its first to its last."""
    last = max(0, path.stat().st_size - BLOCK)
    with path.open("rb") as file:
        for place in range(BLOCKS):
            file.seek(last * place // (BLOCKS - 1))
            yield file.read(BLOCK)
