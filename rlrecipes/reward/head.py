"""Score heads: of one reward model, or of several that score together.

    Ensemble((first, second, third), "lcb")(states [B, 3·H]) -> [B], the members' mean less their standard deviation

The members stand on one base and learned from the same rows, each from another seed. Where they disagree, none of them knows:
a policy that climbs the lowest score, or the mean less the spread, has less to gain from one member's faults (Coste et al.
2023, arXiv 2310.02743: worst-case and uncertainty-weighted optimisation). They share the base, so they share its blind spots.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from rlrecipes.hub.reach import ADAPTER_WEIGHTS
from rlrecipes.model.adapters import stage_file
from rlrecipes.model.forward import device
from rlrecipes.recipe import Prompt
from rlrecipes.run.folder import DONE, read_json


@dataclass(frozen=True)
class ScoreHead:
    """The reward model's head and the scale of its scores over the demonstrations."""

    weight: torch.Tensor
    """`[1, H]`"""
    mean: float
    std: float

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Standardised scores `[B]` of the last tokens' hidden states `[B, H]`."""
        return (nn.functional.linear(states.float(), self.weight).squeeze(-1) - self.mean) / self.std

    def roles(self, role: str) -> list[str]:
        """The adapters that make the hidden states, where the first is called `role`."""
        return [role]


@dataclass(frozen=True)
class Ensemble:
    """The heads of several reward models, and how their scores become one."""

    heads: Sequence[ScoreHead]
    combine: str
    """`mean`, `min` or `lcb`."""

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Scores `[B]` of the last tokens' hidden states `[B, N·H]`, those under each of N adapters side by side."""
        return combined(self._each(states), self.combine)

    def disagreement(self, states: torch.Tensor) -> torch.Tensor:
        """The standard deviation of the members' scores, `[B]`."""
        return spread(self._each(states))

    def roles(self, role: str) -> list[str]:
        """The adapters that make the hidden states, where the first is called `role`."""
        return [role, *(f"{role}{number}" for number in range(1, len(self.heads)))]

    def _each(self, states: torch.Tensor) -> torch.Tensor:
        parts = states.chunk(len(self.heads), dim=-1)
        return torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)])


Head = ScoreHead | Ensemble
Scorer = Callable[[Sequence[tuple[Prompt, str]]], list[float]]
"""Standardised scores of prompts with their answers."""


def combined(scores: torch.Tensor, how: str) -> torch.Tensor:
    """One score `[B]` of the members' standardised ones `[N, B]`: `mean`, `min`, or `lcb`, the mean less the deviation."""
    if how == "min":
        return scores.amin(0)
    return scores.mean(0) - (spread(scores) if how == "lcb" else 0)


def spread(scores: torch.Tensor) -> torch.Tensor:
    """The standard deviation `[B]` of the members' scores `[N, B]`."""
    return scores.std(0, correction=0)


def member_folder(stage: Path, number: int) -> Path:
    """Where a member's `adapter/` and scale are: the first's in the stage's folder, as those of a single reward model."""
    return stage / f"member-{number}" if number else stage


def members(stage: Path) -> list[Path]:
    """The folders of a reward stage's members; of a single reward model, the stage's own."""
    return [stage, *takewhile(Path.is_dir, (member_folder(stage, number) for number in count(1)))]


def load_head(stage: Path) -> Head:
    """The head of a reward stage, or those of its members.

    Raises:
        UserError: weights or a scale are damaged.
    """
    heads = [load_score_head(folder) for folder in members(stage)]
    if len(heads) == 1:
        return heads[0]
    return Ensemble(heads, read_json(stage / DONE)["settings"]["reward.combine"])


def load_score_head(folder: Path) -> ScoreHead:
    """The head beside a reward adapter, with its scale.

    Raises:
        UserError: the weights or the scale are damaged.
    """
    weights = folder / "adapter" / ADAPTER_WEIGHTS
    with stage_file(weights, folder):
        (weight,) = (tensor for key, tensor in load_file(weights).items() if key.endswith("score.weight"))
    return ScoreHead(weight.float().to(device()), *load_scale(folder))


def load_scale(folder: Path) -> tuple[float, float]:
    """Mean and standard deviation of a reward model's scores over the demonstrations.

    Raises:
        UserError: the file that holds them is damaged.
    """
    path = folder / "scale.json"
    with stage_file(path, folder):
        scale = json.loads(path.read_text(encoding="utf-8"))
        return float(scale["mean"]), float(scale["std"])
