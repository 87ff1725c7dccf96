"""Hidden states of several answers to one prompt, which is read once for all of them.

    what do cows drink? | water </s> | milk , as calves </s>      one row for two answers

The answers stand behind each other in a row. Each sees the prompt and itself, at the positions that it would have alone, so
its states are those of a row of its own but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rlrecipes.model.forward import causal, needed_states_only, states_at, trunk
from rlrecipes.run.device import is_devices

MASKED = ("sdpa", "eager")
"""The implementations of attention that take any mask."""
WINDOWS = ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size")
"""What families call the number of tokens that a layer looks back on."""
CLOSE = {torch.float32: 1e-4}
"""The largest difference of states, as a share of the largest; in other types 1e-2, since bfloat16 has three digits."""
PROMPT, NOTHING = -1, -2


@dataclass(frozen=True)
class Packed:
    """Answers to g prompts in rows of W tokens."""

    ids: torch.Tensor
    """`[g, W]`."""
    positions: torch.Tensor
    """`[g, W]`, where each token stands in the row that it comes from."""
    owners: torch.Tensor
    """`[g, W]`, the row that each token comes from; `PROMPT` for those that all see, `NOTHING` behind the end."""
    rows: torch.Tensor
    """`[b]`, where each answer is now."""
    columns: torch.Tensor
    """`[b, w]`, where each of its tokens is now."""


def shared_states_at(
    model: Any, ids: torch.Tensor, places: torch.Tensor, prompt_lengths: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """As `forward.states_at`: the last hidden states `[b, t, H]` of right-padded `ids` `[b, w]` at `places` `[b, t]`.

    Rows that stand next to each other and begin with the same `prompt_lengths` `[b]` tokens read these once, where that is
    less work. States at `ends` `[b]` and behind may be anything.
    """
    packed = pack(ids, prompt_lengths, ends)
    if _work(model, packed.ids) >= _work(model, ids):
        return states_at(model, ids, places)
    rows, columns = packed.rows[:, None], packed.columns.gather(1, places)
    needed = torch.zeros_like(packed.ids, dtype=torch.bool)
    needed[rows, columns] = True
    with needed_states_only(model, needed):
        output = trunk(model)(
            input_ids=packed.ids,
            attention_mask=_mask(packed.owners, causal(model).dtype),
            position_ids=packed.positions,
            use_cache=False,
        )
    states: torch.Tensor = output.last_hidden_state
    return states[rows, columns]


def pack(ids: torch.Tensor, prompt_lengths: torch.Tensor, ends: torch.Tensor) -> Packed:
    """The first `ends` `[b]` tokens of each row of `ids` `[b, w]`, with each prompt once."""
    places = torch.arange(ids.shape[1], device=ids.device)[None].expand_as(ids)
    own, read = places >= prompt_lengths[:, None], places < ends[:, None]
    prompts = ids.masked_fill(own, -1)
    first = torch.ones_like(ends, dtype=torch.bool)
    first[1:] = (prompts[1:] != prompts[:-1]).any(1)
    rows, tokens = first.cumsum(0) - 1, (ends - prompt_lengths).clamp(min=0)
    before = tokens.cumsum(0) - tokens
    before = before - before[first][rows]  # of the answers before it to the same prompt
    width = int((prompt_lengths + before + tokens).max())
    columns = (places + own * before[:, None]).clamp(max=width - 1)
    at = rows[:, None].expand_as(ids)[read], columns[read]
    size = (int(rows[-1]) + 1, width)
    packed, positions, owners = (ids.new_full(size, fill) for fill in (0, 0, NOTHING))
    packed[at], positions[at] = ids[read], places[read]
    numbers = torch.arange(len(ids), device=ids.device)[:, None]
    owners[at] = torch.where(own, numbers, PROMPT)[read]
    return Packed(packed, positions, owners, rows, columns)


def _mask(owners: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores of attention, `[g, 1, W, W]`: nothing where a token sees another."""
    order = torch.arange(owners.shape[1], device=owners.device)
    of_prompt, alike = owners[:, None, :] == PROMPT, owners[:, :, None] == owners[:, None, :]
    seen = (order[:, None] >= order) & (of_prompt | alike)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def _work(model: Any, ids: torch.Tensor) -> int:
    """Multiplications of a layer on `ids` `[b, w]`, but for a factor: its products, some 12 H a token, and w for attention,
    whose two products are with all tokens of a row."""
    hidden: int = causal(model).get_input_embeddings().weight.shape[1]
    return ids.numel() * (6 * hidden + ids.shape[1])


def may_share(config: Any, attention: str) -> bool:
    """Whether a text's `config` and an implementation of attention speak for it that answers may stand in one row."""
    whole = all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    return whole and attention in MASKED and not any(isinstance(getattr(config, name, None), int) for name in WINDOWS)


@torch.no_grad()
def can_share(model: Any) -> bool:
    """Whether a model's answers may stand in one row: no layer keeps a window or a state, positions may be given, and on a
    few tokens the states are those of rows of their own."""
    config = causal(model).config.get_text_config()
    if not may_share(config, config._attn_implementation):
        return False
    was_training = model.training
    try:
        return _alike(model.eval())
    except Exception as error:  # each family fails in a way of its own
        if is_devices(error):
            raise
        return False
    finally:
        model.train(was_training)


def _alike(model: Any) -> bool:
    """Whether three answers of two tokens to a prompt of three have the states that each has alone."""
    ids = 3 + torch.arange(9, device=model.device).view(3, 3) % 5
    ids = torch.cat([ids[:1].expand(3, -1), ids[:, :2] + 1], 1)
    places = torch.arange(2, 5, device=model.device).expand(3, -1)
    lengths = torch.full((3,), 3, device=model.device)
    shared = shared_states_at(model, ids, places, lengths, lengths + 2)
    alone = states_at(model, ids, places)
    close = CLOSE.get(alone.dtype, 1e-2)
    return torch.allclose(shared, alone, rtol=close, atol=close * float(alone.abs().max()))
