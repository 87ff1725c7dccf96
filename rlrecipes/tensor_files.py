"""What a safetensors file says of itself, read without its numbers and without torch.

A file is the length of its header (8 bytes), the header (JSON), the numbers
(https://github.com/huggingface/safetensors, "Format").

    {"score.weight": {"dtype": "F32", "shape": [1, 160], "data_offsets": [0, 640]}}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The tensors by name, and at which byte of the file their numbers, which `data_offsets` count from, begin.

    Raises:
        ValueError: the header is none, or the file does not end where its last tensor does (cut short; a git-lfs pointer).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise ValueError("its header does not end in it")
        try:
            header = json.loads(file.read(start - 8))
            tensors = {key: tensor for key, tensor in header.items() if key != "__metadata__"}
            end = start + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise ValueError("its header is no table of tensors") from None
    if end != size:
        raise ValueError("its length is not what it says itself")
    return tensors, start
