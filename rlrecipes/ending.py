"""An EOS token that the base model can produce.

A base model's tokenizer may name an EOS that pretraining never showed it: its row of the output matrix was only ever pushed
down, as those of all unused tokens were, until they are one and the same. LoRA leaves that matrix frozen, so no fine-tuning
can tell such a token from the other unused ones, and answers never end (known from chat templates on base models; BOS between
documents is the other common case).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.utils import cached_file

HEADS = ("lm_head.weight", "embed_out.weight")
"""Output matrices of untied models, which come first; otherwise the input embedding serves as one."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
SAME = 0.999
"""Cosine from which two rows are one: trained rows of real models stay far below it."""


def use_producible_eos(tokenizer: Any, name: str) -> str | None:
    """Replaces an EOS that was never trained by BOS or another special token that was; says so, or None if all is well.

    A model whose weights are not in safetensors is taken as it is.
    """
    matrix = _output_matrix(name)
    if matrix is None or _trained(matrix, tokenizer.eos_token_id):
        return None
    never = f"this model was never taught its EOS token '{tokenizer.eos_token}'"
    others = [i for i in (tokenizer.bos_token_id, *tokenizer.all_special_ids) if i is not None]
    taught = [i for i in others if i != tokenizer.pad_token_id and _trained(matrix, i)]
    if not taught:
        return f"{never}, nor another special token, so answers may never end by themselves; choose another model"
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(taught[0])
    return f"{never}; answers end with '{tokenizer.eos_token}' instead"


def _trained(matrix: torch.Tensor, token: int) -> bool:
    """Whether a token's row differs from all others; a token beyond the matrix has just been added."""
    if token >= len(matrix):
        return False
    row = matrix[token].float()
    cosines = (nn.functional.cosine_similarity(rows.float(), row, dim=1) for rows in matrix.split(16384))
    return sum(int((cosine > SAME).sum()) for cosine in cosines) == 1  # itself


def _output_matrix(name: str) -> torch.Tensor | None:
    """`[vocabulary, hidden]`, read alone from a checkpoint's safetensors; None where there are none."""
    for suffix in (*HEADS, *EMBEDDINGS):
        for path in _files(name):
            with safe_open(path, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    if key.endswith(suffix):
                        matrix: torch.Tensor = tensors.get_tensor(key)
                        return matrix
    return None


def _files(name: str) -> list[Path]:
    try:
        if index := cached_file(name, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False):
            files = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            files = ["model.safetensors"]
        found = [cached_file(name, file, _raise_exceptions_for_missing_entries=False) for file in files]
    except (OSError, ValueError, KeyError):
        return []
    return [Path(path) for path in found if path]
