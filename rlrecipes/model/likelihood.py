"""Log-probabilities of tokens from hidden states, without the logits of a whole batch.

Logits are by far the largest thing in a step: `[batch, tokens, vocabulary]` in float32, several times over once softmax and
gradients are counted. Here they are made for some tokens at a time, used up, and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Logits `[N, vocabulary]` of hidden states `[N, hidden]`, by an output layer that is not trained."""
AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits held at a time: 8 MB stay in a CPU's cache; 512 MB keep a GPU busy."""


def token_logprobs(states: torch.Tensor, tokens: torch.Tensor, logits: Logits) -> torch.Tensor:
    """Log-probabilities `[N]` of `tokens` `[N]` after `states` `[N, hidden]`; differentiable in the states.

    A log-probability depends on its own state alone, so its gradient is one row `[hidden]`. It is taken at once, while the
    logits are there: the backward pass recomputes nothing, and these rows are all that is kept for it.
    """
    if not len(states):
        return states.sum(1)
    differentiable = torch.is_grad_enabled() and states.requires_grad
    logprobs: torch.Tensor = _TokenLogprobs.apply(states, tokens, logits, differentiable)
    return logprobs


def normalized(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities `[N, vocabulary]` of logits, and the logarithms `[N]` of what the exponentials were divided by.

    The largest probability is never too small for a logarithm, and two passes over the logits do: a log-softmax whose
    probabilities are needed too takes four.
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
                made = logits(leaf)
            probabilities, total = normalized(made.detach())
            logprobs.append(made.detach().gather(1, targets[:, None]).squeeze(1) - total)
            if differentiable:
                by_logits = probabilities.neg_()  # d log p(token) / d logits: 1 at the token, less the probabilities
                by_logits[torch.arange(len(targets), device=targets.device), targets] += 1
                gradients += torch.autograd.grad(made, leaf, by_logits)
        if differentiable:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * outputs[0][:, None]).to(gradient.dtype), None, None, None
