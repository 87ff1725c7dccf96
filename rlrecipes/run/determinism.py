"""Fixed orders of addition on a GPU, so that the same settings give the same bytes there, too.

error: CUBLAS_WORKSPACE_CONFIG=:0:0 lets cuBLAS add in any order; unset it, or set run.deterministic=false
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rlrecipes.errors import UserError, first_line

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED = (":4096:8", ":16:8")
"""The workspaces with which cuBLAS repeats itself where several streams work (cuBLAS' manual, "Results Reproducibility");
PyTorch's strict mode takes no others. The first, 24 MiB, is the faster."""
OFF = "run.deterministic=false"


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Inside, where there is a GPU and it is `wanted`, kernels add in a fixed order or are refused; a CPU's always do.

    This is PyTorch's strict mode (`torch.use_deterministic_algorithms`, whose docstring lists the operations). With it the
    backward passes of attention add in order, too: flash attention's runs its deterministic form, memory-efficient
    attention's splits no keys, and cuDNN's is never chosen (PyTorch 2.13, `attention_backward.cu`: `determinisitic`,
    `num_splits_key = 1`; `sdp_utils.cpp`: `check_cudnn_deterministic`). With `warn_only` the first two would stay as they
    are, so what has no fixed order is an error, which `orders_told` tells. Memory that nothing was
    written to is left alone, since nothing here reads it.

    It comes before the process's first product on the GPU: cuBLAS reads its workspace from the environment once.

    Raises:
        UserError: another workspace is set, or the process has used cuBLAS without one.
    """
    if not wanted or not torch.cuda.is_available():
        yield
        return
    if (chosen := os.environ.setdefault(WORKSPACE, FIXED[0])) not in FIXED:
        raise UserError(f"{WORKSPACE}={chosen} lets cuBLAS add in any order; unset it, or set {OFF}")
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled()
    warned, filled = torch.is_deterministic_algorithms_warn_only_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # a kernel for each new tensor otherwise
    try:
        _check_begun()
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        memory.fill_uninitialized_memory = filled


def _check_begun() -> None:
    """Refuses a process, such as a notebook's, in which cuBLAS began without a workspace: PyTorch asks once."""
    try:
        _multiply()
    except RuntimeError as error:
        if not _is_about_order(error):
            raise
        raise UserError(
            f"this process has used the GPU before {WORKSPACE} was set; set it to {FIXED[0]} before, or set {OFF}"
        ) from None


def _multiply() -> None:
    torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")


@contextmanager
def orders_told() -> Iterator[None]:
    """Inside, what strict mode has against an operation is one sentence.

    Raises:
        UserError: instead of torch's own error.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_about_order(error):
            raise
        reason = first_line(error)[:100]
        raise UserError(
            f"something in this stage adds in no fixed order on this GPU ({reason}); set {OFF} and give the command again"
        ) from None


def _is_about_order(error: RuntimeError) -> bool:
    return torch.are_deterministic_algorithms_enabled() and "deterministic" in str(error)
