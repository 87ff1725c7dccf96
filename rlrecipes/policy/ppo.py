"""The arithmetic of PPO: rewards, advantages, and the losses of policy and value function. It needs no model.

The formulas are TRL's (arXiv 1707.06347, 1909.08593); `rollout` explains the shapes.
"""

from __future__ import annotations

import torch

from rlrecipes.policy.kl import estimate_kl
from rlrecipes.policy.measures import ratio_statistics
from rlrecipes.policy.rollout import MicroBatch, Rollout


def token_rewards(
    rollout: Rollout, scores: torch.Tensor, *, kl_coef: float, kl_estimator: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reward of each token `[B, T]` (its KL penalty, and the score `[B]` at the end), and the penalty alone."""
    penalty = -kl_coef * estimate_kl(rollout.logprobs, rollout.reference_logprobs, kl_estimator)
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
    clipped = ((ratio - 1).abs() > clip) & mask
    return losses.masked_fill(~mask, 0) / tokens, ratio_statistics(log_ratio, clipped, mask, tokens)


def value_losses(micro: MicroBatch, values: torch.Tensor, states: torch.Tensor, clip: float) -> torch.Tensor:
    """Each state's share `[b, t]` of half the mini-batch's clipped squared error.

    `values` `[b, t]` are those of the value function in training; `states` is the number of states in the whole mini-batch.
    """
    assert micro.values is not None
    assert micro.returns is not None
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
