"""A trial of a base model on a few tokens: what is computed in parts here has to be what the model computes whole.

SFT, PPO and evaluation take hidden states and logits apart (`forward`) and sample from a cache (`sampling`). A model that
does something between the parts, keeps a state that is no cache, or looks to the right would be trained on wrong numbers
in silence.
"""

from __future__ import annotations

from typing import Any

import torch

from rlrecipes.errors import UserError, first_line
from rlrecipes.model.forward import next_token_logits, states_at
from rlrecipes.model.sampling import sample
from rlrecipes.run.device import is_devices

IDS = 5
"""Tokens of the trial's longer prompt; the other has two less, and padding before it."""
DRAWN = 3
"""Tokens that are sampled; the first from the prompts, the others from the cache."""
WINDOWS = ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size")
"""What families call the number of tokens that a layer looks back on."""
CLOSE = 1e-2
"""The largest difference of logits, as a share of the largest logit: bfloat16 has three digits."""


@torch.no_grad()
def check_parts(model: Any, name: str, most: int = 0) -> None:
    """Refuses a model whose passes in parts do not give what its whole pass gives.

    Where its layers look back on fewer tokens than `most`, the longest text of a run, it is also tried beyond these.

    Raises:
        UserError: its logits are not finite, come from elsewhere than the output layer, or differ where tokens are
            sampled from a cache; it reads texts of `most` tokens by other positions; or it cannot run so at all.
    """
    about = f"'{name}' ({model.config.model_type})"
    try:
        reason = _difference(model.eval(), most)
    except Exception as error:  # each family fails in a way of its own
        if is_devices(error):
            raise
        reason = f"cannot be run in parts here ({type(error).__name__}: {first_line(error)})"
    if reason:
        raise UserError(f"{about} {reason}; choose another model")


def _difference(model: Any, most: int) -> str | None:
    """What is wrong with a model's weights, or its passes in parts; None where nothing is."""
    floats = ((name, weight) for name, weight in model.named_parameters() if weight.is_floating_point())
    if damaged := next((name for name, weight in floats if not weight.isfinite().all()), None):
        return f"holds weights that are no numbers, in {damaged}"  # a fused attention may hide them from the logits
    ids = _ids(model, IDS)
    whole = _logits(model, ids)
    if not whole.isfinite().all():
        return "gives logits that are no numbers: its weights are damaged, or overflow in this type"
    parts = next_token_logits(model, states_at(model, ids, ids.new_tensor(range(1, IDS)).expand(2, -1)))
    if not _close(parts, whole[:, 1:]):
        return "makes its logits in a way that PPO here does not know"
    if (alike := _read_alike(model)) and alike < most:
        return (
            f"reads all of a text otherwise once it has more than {alike} tokens (longrope), and so would answers that grow "
            f"beyond them, and texts beside longer ones; set model.max_length={alike}"
        )
    if not _samples_as_whole(model, ids):
        return "samples other tokens from its cache than a whole pass gives: it keeps a state that is not in the cache"
    window = max((size for size in _windows(model) if size < most), default=0)
    if window > IDS and not _samples_as_whole(model, _ids(model, min(window + 1, most - DRAWN))):
        return (
            f"samples other tokens than a whole pass gives beyond the {window} tokens that its layers look back on; "
            f"set model.max_length={window}"
        )
    return None


def _windows(model: Any) -> list[int]:
    config = model.config.get_text_config()
    sizes = [getattr(config, name, None) for name in WINDOWS]
    return [size for size in sizes if isinstance(size, int)]


def _read_alike(model: Any) -> int | None:
    """Up to how many tokens LongRoPE turns positions by its short factors; it chooses by a batch's longest text, for all."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # one for each kind of layer
    sizes = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(sizes, default=None)


def _ids(model: Any, length: int) -> torch.Tensor:
    """Two rows `[2, length]` of different tokens."""
    ids = torch.arange(length, device=model.device)[None].expand(2, -1).clone()
    ids[1] += IDS
    words: int = model.get_input_embeddings().num_embeddings
    return 3 + ids % (words - 3)


def _samples_as_whole(model: Any, ids: torch.Tensor) -> bool:
    """Whether tokens sampled behind two rows, the second behind padding, have the probabilities of a whole pass."""
    pad, short = 0, ids[1, 2:]
    queries = torch.stack([ids[0], torch.nn.functional.pad(short, (2, 0), value=pad)])
    drawn = sample(model, queries, pad, [-1], DRAWN, temperature=0)
    for prompt, tokens, logprobs in zip((ids[0], short), drawn.tokens, drawn.logprobs, strict=True):
        places = torch.arange(len(prompt) - 1, len(prompt) + DRAWN - 1, device=ids.device)[None]
        # The logits of a whole row would be far more memory than a run ever takes.
        logits = next_token_logits(model, states_at(model, torch.cat([prompt, tokens])[None], places))[0]
        expected = logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
        if not _close(logprobs, expected, scale=logits.abs().max()):
            return False
    return True


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids).logits.float()
    return logits


def _close(one: torch.Tensor, other: torch.Tensor, scale: torch.Tensor | None = None) -> bool:
    most = (other if scale is None else scale).abs().max().item()
    return torch.allclose(one, other, rtol=CLOSE, atol=CLOSE * most)
