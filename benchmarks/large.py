"""A real model's size: our arm alone, its phases timed and their peak memory taken, on a GPU.

    {"phases": {"roll_out": {"seconds": 41.0, "share": 0.31, "peak_gb": 17.2, …}, …}, "tokens_per_s": {…}}

The weights are random and quantized layer by layer, so nothing is downloaded. On a CPU the same code runs at a toy's size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from benchmarks import models, ours
from benchmarks.measure import peak, reset_peak
from benchmarks.work import Work
from rlrecipes.errors import UserError

PHASES = ("roll_out", "score", "estimate_advantages", "update")


def large(work: Work, folder: Path, on: str) -> dict[str, Any]:
    """Seconds, share of the time and peak memory of each phase over all updates, and tokens a second.

    Raises:
        UserError: no GPU is visible, or it has not enough memory.
    """
    if on == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda needs a GPU that this torch can use, and sees none; leave --device out")
    try:
        return _measured(work, folder, on)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"{work.name} does not fit: {str(error).splitlines()[0]}") from None


def _measured(work: Work, folder: Path, device: str) -> dict[str, Any]:
    tokenizer = models.tokenizer(work.model)
    base = models.causal(work, device)
    trainer = ours.build(work, tokenizer, folder, base)
    built = held(device)
    seen: dict[str, list[dict[str, float]]] = {phase: [] for phase in PHASES}
    for phase in PHASES:
        setattr(trainer, phase, _watched(getattr(trainer, phase), seen[phase], device))
    set_seed(work.seed)
    started = time.perf_counter()
    trainer.train()
    whole = time.perf_counter() - started
    spent = {phase: sum(row["seconds"] for row in rows) for phase, rows in seen.items()}
    phases = {
        phase: {"seconds": spent[phase], "share": spent[phase] / whole, "peak_gb": max(row["peak_gb"] for row in rows)}
        for phase, rows in seen.items()
    }
    rest = whole - sum(spent.values())
    episodes, length = work.batch * work.updates, (work.shortest + work.longest) / 2 + work.answer
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "phases": phases,
        "rest": {"seconds": rest, "share": rest / whole},
        "built_gb": built,
        "peak_gb": max(phase["peak_gb"] for phase in phases.values()),
        "seconds": whole,
        "updates": work.updates,
        "tokens_per_s": {
            "generated": episodes * work.answer / spent["roll_out"],
            "learned_from": episodes * length * work.epochs / spent["update"],
            "whole_run": episodes * length / whole,
        },
    }


def _watched(step: Callable[..., Any], rows: list[dict[str, float]], device: str) -> Callable[..., Any]:
    """The step, with its seconds and its peak memory added to `rows`."""

    def watched(*args: Any) -> Any:
        reset(device)
        started = time.perf_counter()
        result = step(*args)
        peak_gb = highest(device)  # waits for the GPU
        rows.append({"seconds": time.perf_counter() - started, "peak_gb": peak_gb})
        return result

    return watched


def reset(device: str) -> None:
    """Sets the peak back to what is held now."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak()


def highest(device: str) -> float:
    """GB (10^9 bytes) since `reset`: on a GPU what torch has reserved, freed blocks it keeps included."""
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_reserved() / 1e9
    return peak() / 1e3


def held(device: str) -> float:
    """GB that are held now."""
    return torch.cuda.memory_allocated() / 1e9 if device == "cuda" else reset_peak() / 1e3
