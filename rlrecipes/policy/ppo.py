"""The arithmetic of PPO: advantages, and the losses of policy and value function. It needs no model.

The formulas are TRL's (arXiv 1707.06347, 1909.08593); `rollout` explains the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from statistics import fmean
from typing import NamedTuple

import torch

from rlrecipes.policy.rollout import MicroBatch, Rollout
from rlrecipes.profile import PPOSettings
from rlrecipes.run.processes import gather, world


class Advantages(NamedTuple):
    """What an update climbs, each `[B, T]`."""

    advantages: torch.Tensor
    """Whitened over the answers' tokens; 0 elsewhere."""
    returns: torch.Tensor
    """The targets of the value function."""
    penalty: torch.Tensor
    """The KL penalty on each token, part of its reward; never above 0 with the estimator k3."""


def token_rewards(
    rollout: Rollout, scores: torch.Tensor, *, kl_coef: float, kl_estimator: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reward of each token `[B, T]` (its KL penalty, and the score `[B]` at the end), and the penalty alone.

    With p of the policy and q of the reference, `kl_estimator` is k1, `log p/q`, or k3, `q/p - 1 + log p/q`
    (joschu.net/blog/kl-approx.html).
    """
    log_ratio = rollout.reference_logprobs - rollout.logprobs
    kl = -log_ratio if kl_estimator == "k1" else log_ratio.exp() - 1 - log_ratio
    penalty = -kl_coef * kl
    rewards = penalty.clone()
    # As in TRL, the state after EOS gets the score where there is one, so that GAE credits EOS itself.
    steps = rewards.shape[1]
    paid_at = torch.where(rollout.lengths < steps, rollout.lengths, rollout.lengths - 1)
    rewards[torch.arange(len(rewards), device=rewards.device), paid_at] += scores
    return rewards, penalty


def generalised_advantages(rewards: torch.Tensor, values: torch.Tensor, gamma: float, lam: float) -> torch.Tensor:
    """Advantages `[B, T]` of rewards and values `[B, T]` (GAE, arXiv 1506.02438)."""
    steps = rewards.shape[1]
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(steps)):
        next_value = values[:, t + 1] if t + 1 < steps else 0.0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = delta + gamma * lam * following
        advantages[:, t] = following
    return advantages


def policy_losses(
    micro: MicroBatch, logprobs: torch.Tensor, tokens: torch.Tensor, clip: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Each token's share `[b, t]` of the mini-batch's clipped loss, and this micro-batch's share of its statistics.

    `logprobs` `[b, t]` are those of the policy in training; `tokens` is the number of tokens in the whole mini-batch.
    """
    mask = micro.mask
    log_ratio = (logprobs - micro.logprobs).masked_fill(~mask, 0)
    ratio = log_ratio.exp()
    losses = torch.max(-micro.advantages * ratio, -micro.advantages * ratio.clamp(1 - clip, 1 + clip))
    with torch.no_grad():
        clipped = ((ratio - 1).abs() > clip) & mask
        statistics = {
            "policy/approxkl_avg": 0.5 * (log_ratio**2).sum() / tokens,
            "policy/clipfrac_avg": clipped.sum() / tokens,
            "val/ratio": (ratio * mask).sum() / tokens,
            "policy/log_ratio_max": log_ratio.abs().max(),
        }
    return losses.masked_fill(~mask, 0) / tokens, statistics


def together(sums: Mapping[str, torch.Tensor], more: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The statistics of some micro-batches with those of one more: their sum, or the larger of what ends in `_max`."""
    joined = {**more}
    for key, value in sums.items():
        joined[key] = torch.maximum(value, more[key]) if key.endswith("_max") else value + more[key]
    return joined


def of_all(sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The statistics of all processes' micro-batches, from those of this one's; a process without any has none."""
    if world() == 1:
        return sums
    parts = [part for part in gather({key: value.cpu() for key, value in sums.items()}) if part]
    found: dict[str, torch.Tensor] = reduce(together, parts)
    return found


FIRST = ("policy/clipfrac_avg", "policy/log_ratio_max", "val/ratio")


def over_steps(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means of the optimizer steps' statistics, the largest of what ends in `_max`, and those of `FIRST` before any step.

    Before the first step the policy is still the one that sampled: a ratio other than 1 there is rounding.
    """
    found = {
        key: max(row[key] for row in steps) if key.endswith("_max") else fmean(row[key] for row in steps)
        for key in steps[0]
    }
    return found | {f"first/{key.partition('/')[2]}": steps[0][key] for key in FIRST}


def value_losses(micro: MicroBatch, values: torch.Tensor, states: torch.Tensor, clip: float) -> torch.Tensor:
    """Each state's share `[b, t]` of half the mini-batch's clipped squared error.

    `values` `[b, t]` are those of the value function in training; `states` is the number of states in the whole mini-batch.
    """
    clipped = torch.clamp(values, micro.values - clip, micro.values + clip)
    losses = torch.max((values - micro.returns) ** 2, (clipped - micro.returns) ** 2)
    return 0.5 * losses.masked_fill(~micro.states_mask, 0) / states


def whiten(values: torch.Tensor, mask: torch.Tensor, keep_mean: bool = False) -> torch.Tensor:
    """Values `[B, T]` with mean 0 (or their own, with `keep_mean`) and variance 1 over `mask`; 0 elsewhere."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean) ** 2 * mask).sum() / (count - 1).clamp(min=1)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return ((whitened + mean) if keep_mean else whitened) * mask


def adapted_kl_coef(kl_coef: float, kl: float, settings: PPOSettings, episodes: int) -> float:
    """The KL weight after a batch of `episodes` answers: proportional control where there is a `kl_target` (arXiv 1909.08593,
    section 2.2)."""
    if not settings.kl_target:
        return kl_coef
    error = min(max(kl / settings.kl_target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / settings.kl_horizon)
