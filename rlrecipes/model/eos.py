"""An EOS token that the base model can produce.

A base model's tokenizer may name an EOS that never occurred in pretraining. Training only ever pushed its row of the output
matrix down, like the rows of all unused tokens, until these rows are the same. LoRA leaves that matrix frozen, so fine-tuning
cannot tell such a token from other unused ones, and answers never end. It happens where a base model carries the EOS of a
chat template, or where its pretraining put BOS between documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlrecipes.hub.reach import fetched_file

if TYPE_CHECKING:
    import torch


HEADS = ("lm_head.weight", "embed_out.weight")
"""Ends of the names of output matrices, in models that have one of their own."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
"""Ends of the names of input embeddings, which serve as the output matrix in the other models."""
SAME = 0.999
"""Two rows whose cosine is above this are the same: trained rows of real models stay far below it."""
ROWS = 16384
"""Rows of the matrix that are in memory in float32 at a time."""
TYPES = ("F32", "F16", "BF16")
"""Types of a matrix that can be judged, in safetensors' names; nobody judges a quantized one."""
Find = Callable[[str, str], Path | None]
"""The path of a model's file, from the names of both; None where it cannot be had."""


def use_producible_eos(tokenizer: Any, name: str, find: Find = fetched_file) -> str | None:
    """Replaces an EOS that was never trained by BOS or another special token that was.

    Returns a sentence about it for the console; None where the EOS stays. It stays, too, where the weights are missing,
    damaged or not in safetensors.
    """
    matrix = _output_matrix(name, find)
    if matrix is None or _is_trained(matrix, tokenizer.eos_token_id):
        return None
    fault = f"this model was never taught its EOS token '{tokenizer.eos_token}'"
    others = [i for i in (tokenizer.bos_token_id, *tokenizer.all_special_ids) if i is not None]
    candidates = [i for i in others if i != tokenizer.pad_token_id and _is_trained(matrix, i)]
    if not candidates:
        return f"{fault}, nor another special token, so answers may never end by themselves; choose another model"
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(candidates[0])
    return f"{fault}; answers end with '{tokenizer.eos_token}' instead"


def _is_trained(matrix: Any, token: int) -> bool:
    """Whether a token's row of `matrix` `[vocabulary, H]` differs from all others; an added token has none yet."""
    count = matrix.get_shape()[0]
    if token >= count:
        return False
    row = _unit(matrix[token : token + 1])[0]
    slices = (matrix[start : start + ROWS] for start in range(0, count, ROWS))
    same = sum(int((_unit(rows) @ row > SAME).sum()) for rows in slices)
    return bool(same == 1 and row.isfinite().all())  # the row itself


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length 1 in float32."""
    rows = rows.float()
    length: torch.Tensor = rows.norm(dim=1, keepdim=True)
    return rows / length.clamp(min=1e-8)


def _output_matrix(name: str, find: Find) -> Any:
    """`[vocabulary, H]`, a slice of which is read from a checkpoint's safetensors when it is needed; None without these."""
    from safetensors import SafetensorError

    try:
        paths = _files(name, find)
        matrices = (_tensor(path, suffix) for suffix in (*HEADS, *EMBEDDINGS) for path in paths)
        return next((matrix for matrix in matrices if matrix is not None), None)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # damaged: loading the weights reports it


def _tensor(path: Path, suffix: str) -> Any:
    """The matrix whose name ends with `suffix`; None where the file has none.

    Raises:
        safetensors.SafetensorError: the file is damaged.
    """
    from safetensors import safe_open

    file = safe_open(path, framework="pt")
    matrices = (file.get_slice(key) for key in file.keys() if key.endswith(suffix))  # noqa: SIM118
    return next((matrix for matrix in matrices if matrix.get_dtype() in TYPES), None)


def _files(name: str, find: Find) -> list[Path]:
    if index := find(name, "model.safetensors.index.json"):
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    return [path for file in files if (path := find(name, file))]
