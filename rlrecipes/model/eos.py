"""An EOS token that the base model can produce.

A base model's tokenizer may name an EOS that pretraining never showed it: its row of the output matrix was only ever pushed
down, as those of all unused tokens were, until they are one and the same. LoRA leaves that matrix frozen, so no fine-tuning
can tell such a token from the other unused ones, and answers never end (known from chat templates on base models; BOS between
documents is the other common case).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlrecipes.hub.reach import fetched_file, read_header

if TYPE_CHECKING:
    import numpy as np


HEADS = ("lm_head.weight", "embed_out.weight")
"""Output matrices of untied models, which come first; otherwise the input embedding serves as one."""


EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


SAME = 0.999
"""Cosine from which two rows are one: trained rows of real models stay far below it."""


Find = Callable[[str, str], Path | None]
"""A model's file by the model's name and its own; None where it cannot be had."""


def use_producible_eos(tokenizer: Any, name: str, find: Find = fetched_file) -> str | None:
    """Replaces an EOS that was never trained by BOS or another special token that was; says so, or None if all is well.

    A model whose weights are not in safetensors, not to be found or damaged is taken as it is.
    """
    matrix = _output_matrix(name, find)
    if matrix is None or _trained(matrix, tokenizer.eos_token_id):
        return None
    never = f"this model was never taught its EOS token '{tokenizer.eos_token}'"
    others = [i for i in (tokenizer.bos_token_id, *tokenizer.all_special_ids) if i is not None]
    taught = [i for i in others if i != tokenizer.pad_token_id and _trained(matrix, i)]
    if not taught:
        return f"{never}, nor another special token, so answers may never end by themselves; choose another model"
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(taught[0])
    return f"{never}; answers end with '{tokenizer.eos_token}' instead"


def _trained(matrix: np.ndarray, token: int) -> bool:
    """Whether a token's row differs from all others; a token beyond the matrix has just been added."""
    import numpy as np

    if token >= len(matrix):
        return False
    row = _unit(matrix[token : token + 1])[0]
    alike = sum(int((_unit(rows) @ row > SAME).sum()) for rows in _slices(matrix))
    return bool(alike == 1 and np.isfinite(row).all())  # itself


def _slices(matrix: np.ndarray) -> Iterator[np.ndarray]:
    """The matrix in parts that are small in float32."""
    return (matrix[start : start + 16384] for start in range(0, len(matrix), 16384))


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1 in float32; bfloat16, which numpy does not know, is the upper half of it."""
    import numpy as np

    if rows.dtype == np.uint16:
        rows = (rows.astype(np.uint32) << 16).view(np.float32)
    rows = rows.astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-8))


def _output_matrix(name: str, find: Find) -> np.ndarray | None:
    """`[vocabulary, hidden]`, mapped from a checkpoint's safetensors; None where there are none."""
    try:
        paths = _files(name, find)
        found = (_mapped(path, suffix) for suffix in (*HEADS, *EMBEDDINGS) for path in paths)
        return next((matrix for matrix in found if matrix is not None), None)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # damaged: who loads the weights is told so
        return None


def _mapped(path: Path, suffix: str) -> np.ndarray | None:
    """The tensor whose name ends so, bfloat16 as uint16; None where the file has none.

    Raises:
        ValueError: the file is damaged.
    """
    import numpy as np

    types = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    tensors, start = read_header(path)
    for key, tensor in tensors.items():
        if key.endswith(suffix) and tensor["dtype"] in types:
            kind, shape = types[tensor["dtype"]], tuple(tensor["shape"])
            first, end = tensor["data_offsets"]
            if end - first != math.prod(shape) * np.dtype(kind).itemsize:
                return None
            return np.memmap(path, dtype=kind, mode="r", offset=start + first, shape=shape)
    return None


def _files(name: str, find: Find) -> list[Path]:
    if index := find(name, "model.safetensors.index.json"):
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    return [path for file in files if (path := find(name, file))]
