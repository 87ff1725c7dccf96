"""An EOS token that the base model can produce.

A base model's tokenizer may name an EOS that pretraining never showed it: its row of the output matrix was only ever pushed
down, as those of all unused tokens were, until they are one and the same. LoRA leaves that matrix frozen, so no fine-tuning
can tell such a token from the other unused ones, and answers never end (known from chat templates on base models; BOS between
documents is the other common case).
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
"""Output matrices of untied models, which come first; otherwise the input embedding serves as one."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
SAME = 0.999
"""Cosine from which two rows are one: trained rows of real models stay far below it."""
ROWS = 16384
"""Of the matrix that are in memory in float32 at a time."""
TYPES = ("F32", "F16", "BF16")
"""Of a matrix that can be judged, as safetensors names them; one that is quantized is taken as it is."""
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


def _trained(matrix: Any, token: int) -> bool:
    """Whether a token's row differs from all others; a token beyond the matrix has just been added."""
    count = matrix.get_shape()[0]
    if token >= count:
        return False
    row = _unit(matrix[token : token + 1])[0]
    slices = (matrix[start : start + ROWS] for start in range(0, count, ROWS))
    alike = sum(int((_unit(rows) @ row > SAME).sum()) for rows in slices)
    return bool(alike == 1 and row.isfinite().all())  # itself


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length 1 in float32."""
    rows = rows.float()
    length: torch.Tensor = rows.norm(dim=1, keepdim=True)
    return rows / length.clamp(min=1e-8)


def _output_matrix(name: str, find: Find) -> Any:
    """`[vocabulary, hidden]`, to be read a slice at a time from a checkpoint's safetensors; None where there are none."""
    from safetensors import SafetensorError

    try:
        paths = _files(name, find)
        found = (_tensor(path, suffix) for suffix in (*HEADS, *EMBEDDINGS) for path in paths)
        return next((matrix for matrix in found if matrix is not None), None)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # damaged: who loads the weights is told so


def _tensor(path: Path, suffix: str) -> Any:
    """The matrix whose name ends so; None where the file has none.

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
