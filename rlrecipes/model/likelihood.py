"""Log-probabilities of tokens from hidden states, without the logits of a whole batch.

Logits are by far the largest thing in a step: `[B, T, vocabulary]` in float32, and softmax and gradients take as much again
each. Here they exist for some tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Logits `[N, vocabulary]` of hidden states `[N, H]`, by an output layer that is not trained."""
AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits held at a time: 8 MB stay in a CPU's cache; 512 MB keep a GPU busy."""


def token_logprobs(states: torch.Tensor, tokens: torch.Tensor, logits: Logits) -> torch.Tensor:
    """Log-probabilities `[N]` of `tokens` `[N]`, in nats, after `states` `[N, H]`; differentiable in the states.

    A log-probability depends on its own state alone, so its gradient is one row `[H]`. It is computed at once, while the
    logits exist: the backward pass recomputes nothing, and needs these rows alone.
    """
    if not len(states):
        return states.sum(1)
    differentiable = torch.is_grad_enabled() and states.requires_grad
    logprobs: torch.Tensor = _TokenLogprobs.apply(states, tokens, logits, differentiable)
    return logprobs


def softmax_and_logsumexp(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The softmax `[N, vocabulary]` of logits, and their log-sum-exp `[N]`.

    The log-sum-exp is the largest logit less the logarithm of its probability, which is never too small for one. So two
    passes over the logits are enough; a log-softmax and its exponentials take four.
    """
    probabilities = logits.softmax(-1)
    highest, places = logits.max(-1)
    return probabilities, highest - probabilities.gather(1, places[:, None]).squeeze(1).log()


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, tokens: torch.Tensor, logits: Logits, differentiable: bool
    ) -> torch.Tensor:
        size = max(1, AT_ONCE["cuda" if states.is_cuda else "cpu"] // logits(states[:1]).shape[-1])
        logprobs, gradients = [], []
        for part, targets in zip(states.split(size), tokens.split(size), strict=True):
            with torch.set_grad_enabled(differentiable):
                leaf = part.detach().requires_grad_(differentiable)
                part_logits = logits(leaf)
            probabilities, total = softmax_and_logsumexp(part_logits.detach())
            logprobs.append(part_logits.detach().gather(1, targets[:, None]).squeeze(1) - total)
            if differentiable:
                by_logits = probabilities.neg_()  # d log p(token) / d logits: 1 at the token, less the probabilities
                by_logits[torch.arange(len(targets), device=targets.device), targets] += 1
                gradients += torch.autograd.grad(part_logits, leaf, by_logits)
        if differentiable:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * outputs[0][:, None]).to(gradient.dtype), None, None, None
