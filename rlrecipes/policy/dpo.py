"""DPO's losses, and the log-probabilities that they are made of.

    sigmoid: -log σ(β·Δ), Δ = log π(chosen)/π_ref(chosen) - log π(rejected)/π_ref(rejected)

A batch has the chosen answers of b comparisons first and then the rejected ones, 2b rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from rlrecipes.model.forward import hidden_states, needed_states_only, next_token_logits
from rlrecipes.model.likelihood import token_logprobs


def answer_logprobs(model: Any, ids: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """The log-probability `[B]` of each row's answer, in nats: the sum over its tokens.

    `ids` `[B, L]` are prompts with their answers, right-padded; `answers` `[B, L]` is 1 on the answers. Logits exist for some
    tokens at a time.
    """
    targets, taught = ids[:, 1:], answers[:, 1:].bool()
    with needed_states_only(model, taught):
        states = hidden_states(model, ids[:, :-1])
    flat = token_logprobs(states[taught], targets[taught], partial(next_token_logits, model))
    return flat.new_zeros(taught.shape).index_put((taught,), flat).sum(1)


def dpo_loss(
    losses: Mapping[str, float],
    policy: torch.Tensor,
    reference: torch.Tensor,
    tokens: torch.Tensor,
    beta: float,
    label_smoothing: float,
) -> torch.Tensor:
    """The weighted sum of losses, each a mean over the comparisons; `sft` is one over the chosen answers' tokens.

    Log-probabilities `policy` and `reference` and the number of `tokens` are each answer's, `[2b]`.
    """
    terms = [
        weight * _loss(name, policy, policy - reference, tokens, beta, label_smoothing)
        for name, weight in losses.items()
    ]
    return torch.stack(terms).sum()


def _loss(
    name: str, policy: torch.Tensor, ratios: torch.Tensor, tokens: torch.Tensor, beta: float, label_smoothing: float
) -> torch.Tensor:
    """One loss, by its name; the settings allow no other."""
    if name == "sft":
        return -policy.chunk(2)[0].sum() / tokens.chunk(2)[0].sum()
    chosen, rejected = ratios.chunk(2)
    margins = beta * (chosen - rejected)
    if name == "sigmoid":
        return -logsigmoid(margins).mean()
    if name == "hinge":
        return torch.relu(1 - margins).mean()
    if name == "robust":  # right on average where that share of the comparisons is the wrong way round
        right, wrong = -logsigmoid(margins), -logsigmoid(-margins)
        return (((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)).mean()
    assert name == "ipo"
    chosen, rejected = (ratios / tokens).chunk(2)
    return ((chosen - rejected - 1 / (2 * beta)) ** 2).mean()
