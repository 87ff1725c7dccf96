"""The arithmetic of RLOO and GRPO: several answers to a prompt are judged by each other. It needs no model.

The formulas are those of TRL 1.12's `RLOOTrainer` and `GRPOTrainer`; `rollout` explains the shapes. A group is k answers to
one prompt, which stand next to each other: `scores.view(-1, k)`.
"""

from __future__ import annotations

import torch

from rlrecipes.policy.kl import estimate_kl
from rlrecipes.policy.measures import ratio_statistics
from rlrecipes.policy.rollout import MicroBatch
from rlrecipes.profile import GroupSettings, GRPOSettings

TINY = 1e-4
"""Added to standard deviations that something is divided by, as in TRL."""


def left_out(scores: torch.Tensor, each: int) -> torch.Tensor:
    """Scores `[B]` less the mean of the other answers to the same prompt (arXiv 2402.14740, equation 8)."""
    groups = scores.view(-1, each)
    others = (groups.sum(1, keepdim=True) - groups) / (each - 1)
    return (groups - others).view(-1)


def normalised(advantages: torch.Tensor) -> torch.Tensor:
    """Advantages `[B]` with mean 0 and standard deviation 1."""
    return (advantages - advantages.mean()) / (advantages.std() + TINY)


def within_groups(scores: torch.Tensor, each: int, scale: str) -> torch.Tensor:
    """Scores `[B]` less the mean of all answers to the same prompt, over a standard deviation: their `group`'s, that of the
    `batch`, or `none` (arXiv 2402.03300, section 4.1.2; 2508.08221; 2503.20783)."""
    groups = scores.view(-1, each)
    centred = groups - groups.mean(1, keepdim=True)
    if scale == "group":
        centred = centred / (groups.std(1, keepdim=True) + TINY)
    elif scale == "batch":
        centred = centred / (scores.std() + TINY)
    return centred.view(-1)


def learned_tokens(mask: torch.Tensor, ended: torch.Tensor, settings: GroupSettings) -> torch.Tensor:
    """The tokens `[b, t]` that are learned from: those of `mask`, or of the answers that ended alone."""
    return mask & ended[:, None] if settings.mask_truncated_completions else mask


def rloo_losses(
    micro: MicroBatch, logprobs: torch.Tensor, answers: int, tokens: torch.Tensor, settings: GroupSettings
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Each answer's share `[b, 1]` of the mini-batch's clipped loss, and this micro-batch's share of its statistics.

    An answer has one ratio, the product of its tokens'. `logprobs` `[b, t]` are those of the policy in training; the whole
    mini-batch has so many `answers`, and `tokens` that are learned from.
    """
    mask = learned_tokens(micro.mask, micro.ended, settings)
    log_ratio = (logprobs - micro.logprobs).masked_fill(~mask, 0)
    ratio = log_ratio.sum(1).exp()
    losses, clipped = _clipped(ratio, micro.advantages[:, 0], settings)
    return losses[:, None] / answers, ratio_statistics(log_ratio, clipped[:, None] & mask, mask, tokens)


def grpo_losses(
    micro: MicroBatch,
    logprobs: torch.Tensor,
    weights: torch.Tensor,
    tokens: torch.Tensor,
    settings: GRPOSettings,
    beta: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Each token's share `[b, t]` of the mini-batch's loss, and this micro-batch's share of its statistics.

    `logprobs` `[b, t]` are those of the policy in training; `weights` `[b]` are what a token of each answer weighs
    (`token_weights`), `beta` what its KL divergence from the reference does; the whole mini-batch has so many `tokens` that
    are learned from.
    """
    mask = learned_tokens(micro.mask, micro.ended, settings)
    log_ratio = (logprobs - micro.logprobs).masked_fill(~mask, 0)
    of_whole = settings.importance_sampling_level == "sequence"
    log_weight = (log_ratio.sum(1) / mask.sum(1).clamp(min=1))[:, None] if of_whole else log_ratio
    losses, clipped = _clipped(log_weight.exp(), micro.advantages, settings)
    if beta:
        losses = losses + beta * estimate_kl(logprobs, micro.reference_logprobs, "k3")
    statistics = ratio_statistics(log_ratio, clipped & mask, mask, tokens)
    return (losses * weights[:, None]).masked_fill(~mask, 0), statistics


def token_weights(
    lengths: torch.Tensor, of_batch: torch.Tensor, mini_batches: int, longest: int, loss_type: str
) -> torch.Tensor:
    """What each token of answers weighs in a mini-batch, `[n]`, by the number of their tokens that are learned from.

    `of_batch` is the sum of the lengths of a whole batch, which has so many mini-batches; `longest` is the most tokens that
    an answer may have. `GRPOSettings.loss_type` explains the kinds.
    """
    count = len(lengths)
    if loss_type == "grpo":
        return 1 / (count * lengths.clamp(min=1))
    whole = {
        "bnpo": lengths.sum().clamp(min=1),
        "dapo": of_batch.clamp(min=1) / mini_batches,
        "dr_grpo": torch.tensor(float(count * longest), device=lengths.device),
    }[loss_type]
    return (1 / whole).expand(count)


def _clipped(
    ratio: torch.Tensor, advantages: torch.Tensor, settings: GroupSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped losses of ratios, and whether clipping holds each back."""
    high = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
    losses = -torch.min(ratio * advantages, ratio.clamp(1 - settings.epsilon, 1 + high) * advantages)
    low_held, high_held = ratio < 1 - settings.epsilon, ratio > 1 + high
    return losses, (low_held & (advantages < 0)) | (high_held & (advantages > 0))
