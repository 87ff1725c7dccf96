"""Whether our arm does what plain TRL does: the same numbers where nothing differs, the same gain where the value head does.

Exact part: `{"trunk": {"objective/kl": 1e-7, "loss/policy_avg": 2e-6, …}, "adapter": {…}}`, largest differences over all
updates. Plain TRL is given a value model of the same make: a head on the policy's own trunk, or an adapter with a head. It
draws its tokens from the same random numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch
from transformers import set_seed

from benchmarks import models, ours, plain
from benchmarks.measure import settle
from benchmarks.work import Work
from rlrecipes.model.sampling import drawn

COMPARED = ("objective/kl", "loss/policy_avg", "loss/value_avg", "val/ratio")


def exact(work: Work, folder: Path) -> dict[str, Any]:
    """Largest difference of each of `COMPARED` between the arms, by value placement."""
    settle()
    works = [dataclasses.replace(work, value=value) for value in ("trunk", "adapter")]
    return {work.value: _differences(work, folder) for work in works}


def gain(work: Work, folder: Path, seeds: int) -> dict[str, Any]:
    """Each seed's gain in reward (mean of the last quarter of the updates less the first update's), in both arms."""
    settle()
    tokenizer = models.tokenizer(work.model)
    gains: dict[str, list[float]] = {"plain": [], "ours": []}
    curves: dict[str, list[list[float]]] = {"plain": [], "ours": []}
    for seed in range(seeds):
        seeded = dataclasses.replace(work, seed=seed)
        for name, build in (("plain", plain.build), ("ours", ours.build)):
            rewards = [row["objective/scores"] for row in _train(build(seeded, tokenizer, folder), seed)]
            gains[name].append(fmean(rewards[-max(1, len(rewards) // 4) :]) - rewards[0])
            curves[name].append(rewards)
    return {"gains": gains, "curves": curves}


def _differences(work: Work, folder: Path) -> dict[str, float]:
    tokenizer = models.tokenizer(work.model)
    trainer = ours.build(work, tokenizer, folder)
    trainer.begins_at_mean = False
    bias = trainer.model.value_model.score.bias is not None
    mine = _train(trainer, work.seed)
    theirs = _train(plain.build_with_value(work, tokenizer, folder, bias), work.seed)
    for row, other in zip(mine, theirs, strict=True):
        # Plain TRL's mean ratio counts the padding behind an answer too, where the ratio is 1.
        other["val/ratio"] = 1 + (other["val/ratio"] - 1) * work.answer / row["answers/length"]
    return {key: max(abs(a[key] - b[key]) for a, b in zip(mine, theirs, strict=True)) for key in COMPARED}


def _train(trainer: Any, seed: int) -> list[dict[str, float]]:
    """What a run logs for each update."""
    set_seed(seed)
    with _drawing_as_ours():
        trainer.train()
    return [row for row in trainer.state.log_history if "objective/kl" in row]


@contextmanager
def _drawing_as_ours() -> Iterator[None]:
    """Inside, `torch.multinomial`, by which `generate` draws, takes one random number a row and comes to the same token."""

    def multinomial(probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        numbers = torch.rand(len(probabilities), dtype=torch.float64, device=probabilities.device)
        return drawn(probabilities, numbers)[:, None]

    with patch.object(torch, "multinomial", multinomial):
        yield
