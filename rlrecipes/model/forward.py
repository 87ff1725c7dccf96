"""Forward passes of a causal model in parts: hidden states where they are needed, and the logits of these alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn


def device() -> torch.device:
    """CUDA's current GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def causal(model: Any) -> Any:
    """The causal language model itself, which a `PeftModel` wraps."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def trunk(model: Any) -> Any:
    """The transformer without its language-model head."""
    inner = causal(model)
    return (
        getattr(inner, inner.base_model_prefix, None) or inner.get_decoder()
    )  # Llama 4's text model has another prefix


def hidden_states(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states `[B, L, H]` of right-padded `ids` `[B, L]`.

    There is no mask: a causal model never looks to the right, so padding there changes nothing before it.
    """
    states: torch.Tensor = trunk(model)(input_ids=ids, use_cache=False).last_hidden_state
    return states


def states_at(model: Any, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The last hidden states `[b, t, H]` of right-padded `ids` `[b, w]` at `places` `[b, t]`."""
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    needed = torch.zeros_like(ids, dtype=torch.bool)
    needed[rows, places] = True
    with needed_states_only(model, needed):
        states = hidden_states(model, ids)
    return states[rows, places]


@contextmanager
def needed_states_only(model: Any, needed: torch.Tensor) -> Iterator[None]:
    """Inside, the last hidden states are right where `needed` `[b, w]` is true; elsewhere they may be anything.

    The last layer's feed-forward network then runs on those alone, which saves a good part of the work of a shallow model.
    With activation checkpointing it runs on all, since the recomputation would no longer match.
    """
    block = _last_feed_forward(model)
    if block is None or (torch.is_grad_enabled() and trunk(model).is_gradient_checkpointing):
        yield
        return
    whole = block.forward

    def forward(states: torch.Tensor, *others: Any, **options: Any) -> Any:
        if others or options:  # Bloom's adds the residual itself
            return whole(states, *others, **options)
        outputs = whole(states[needed][None])
        if isinstance(outputs, tuple):  # with a router's scores, which nobody reads here
            return (spread(outputs[0], states), *outputs[1:])
        return spread(outputs, states)

    def spread(outputs: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return outputs.new_zeros(states.shape).index_put((needed,), outputs.view(-1, states.shape[-1]))

    with other_forward(block, forward):
        yield


@contextmanager
def other_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The module computes `forward` inside the block, and its own afterwards."""
    own = module.__dict__.get("forward")  # accelerate, too, puts its own there
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _last_feed_forward(model: Any) -> Any:
    """The last layer's `mlp`, as nearly all families call it; None where a family has another name."""
    stacks = [child for child in trunk(model).children() if isinstance(child, nn.ModuleList)]
    return getattr(stacks[-1][-1], "mlp", None) if stacks else None


def next_token_logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    """Logits `[…, vocabulary]`, in float32 at least, of hidden states `[…, H]`; soft-capped where the model does so."""
    inner = causal(model)
    logits: torch.Tensor = inner.get_output_embeddings()(states)
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)  # Gemma 2
    return logits if cap is None else cap * torch.tanh(logits / cap)
