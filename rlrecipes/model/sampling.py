"""Draws answers token by token from a key-value cache, with the log-probability, entropy and value that PPO needs of each.

Transformers' `generate` returns the logits of all steps together, `[T, B, vocabulary]` in float32: 20 GB for 64 answers of
512 tokens in a vocabulary of 152,000. Here the logits of one step exist at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlrecipes.errors import UserError
from rlrecipes.model.forward import causal, needed_states_only, next_token_logits, trunk
from rlrecipes.model.likelihood import softmax_and_logsumexp

READ_AT_ONCE = {"cpu": 1 << 40, "cuda": 1 << 14}
"""Tokens of prompts that are read together: enough to keep a GPU busy; on a CPU all, of which there are few."""
LOOK_EVERY = {"cpu": 1, "cuda": 8}
"""Tokens between two looks whether all answers have ended or one is broken, for each of which a GPU's queue runs empty."""
BLOCK = 256
"""Words of the vocabulary that are summed before one of them is looked for: about as many as there are blocks."""
Value = Callable[[torch.Tensor], torch.Tensor]
"""Values `[…]` of hidden states `[…, H]`."""


@dataclass(frozen=True)
class Sampled:
    """Answers of one batch, right-padded."""

    tokens: torch.Tensor
    """`[B, T]`, with the padding token behind the end."""
    logprobs: torch.Tensor
    """`[B, T]` of the tokens under the distribution that they were drawn from, in nats; 0 on padding."""
    entropy: torch.Tensor
    """`[B, T]` of that distribution, in nats; 0 on padding."""
    values: torch.Tensor
    """`[B, T]` of the states before each token, those on padding included; `[B, 0]` without a value function."""


@dataclass(frozen=True)
class Share:
    """Some of the rows that one process alone would answer together."""

    rows: Sequence[int]
    """Their places in the whole batch."""
    of: int
    """How many rows the whole batch has."""
    meet: Callable[[int, int], int]
    """Called with how often tokens were drawn, and with the tokens of the longest answer; returns those of the longest in the
    whole batch, and takes the random numbers to where all of its answers have ended."""


@torch.no_grad()
def sample(
    model: PeftModel,
    queries: torch.Tensor,
    pad: int,
    ends: Sequence[int],
    length: int,
    temperature: float,
    value: Value | None = None,
    on_tokens: Callable[[torch.Tensor], None] | None = None,
    share: Share | None = None,
    of: torch.Tensor | None = None,
) -> Sampled:
    """Answers of at most `length` tokens to `queries` `[B, longest prompt]`, which are padded on the left with `pad`.

    With `of` `[B]`, the places of the answers' prompts, `queries` holds each prompt once, however many answers it gets: its
    keys and values are made once.

    An answer ends with the first of the tokens `ends`. Temperature 0 is greedy. `on_tokens` gets each step's
    tokens `[B]` as soon as they are drawn. Rows that are a `share` of a batch draw the tokens that they would draw in it.

    Raises:
        UserError: the logits of an answer that goes on are NaN or infinite.
    """
    model.eval()
    real = (queries != pad).cumsum(1) > 0  # a prompt may hold the padding token, where that is also the unknown one
    attention = torch.cat([real.long(), real.new_ones(len(queries), length, dtype=torch.long)], 1)
    mask = None if bool(real.all()) else attention
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    inputs = queries.masked_fill(~real, 0)
    cache = _cache(model, len(queries if of is None else of), attention.shape[1])
    if of is not None and not all(type(layer) in COPIED for layer in cache.layers):
        mask = None if mask is None else mask[of]
        inputs, positions, of = inputs[of], positions[of], None  # a state that cannot be copied is made for each answer
    state, start = _read(model, inputs, mask, positions, cache, of), inputs.shape[1]
    if of is not None:
        positions, mask = positions[of], None if mask is None else mask[of]
    finished = torch.zeros_like(state[:, 0], dtype=torch.bool)
    unusable = torch.zeros_like(finished[0])
    every = LOOK_EVERY[queries.device.type] if on_tokens is None else 1  # who gets tokens waits for each
    columns: list[tuple[torch.Tensor, ...]] = []
    for step in range(1, length + 1):
        token, logprob, entropy, broken = _draw(next_token_logits(model, state), temperature, share)
        unusable = unusable | (broken & ~finished).any()
        columns.append(
            (
                token.masked_fill(finished, pad),
                logprob.masked_fill(finished, 0),
                entropy.masked_fill(finished, 0),
                *([value(state)] if value else []),
            )
        )
        inputs = token.masked_fill(finished, 0)[:, None]
        finished = finished | is_any(token, ends)
        if looked := step == length or step % every == 0:
            all_finished, any_broken = torch.stack([finished.all(), unusable]).tolist()  # one wait for both
            if any_broken:
                raise UserError(
                    f"the model's logits are NaN or infinite by token {step} of an answer, so none can be drawn; "
                    "lower the learning_rate of the stage that trained it last, or choose another model.dtype or model"
                )
        if on_tokens is not None:
            on_tokens(columns[-1][0])
        if step == length or (looked and all_finished):
            break
        state = _states(model, inputs, mask, positions, cache, start)[:, -1]
        start += 1
    tokens, logprobs, entropies, *values = (torch.stack(column, 1) for column in zip(*columns, strict=True))
    taken = _longest(tokens, ends)
    if share is not None and (whole := share.meet(len(columns), taken)) > taken:
        if (
            value and len(columns) == taken
        ):  # where the batch has room for it, the state behind the end has a value, too
            state = _states(model, inputs, mask, positions, cache, start)[:, -1]
            values = [torch.cat([values[0], value(state)[:, None]], 1)]
        tokens, logprobs, entropies, *values = (
            nn.functional.pad(column, (0, max(0, whole - column.shape[1])), value=fill)
            for column, fill in zip((tokens, logprobs, entropies, *values), (pad, 0, 0, 0), strict=False)
        )
        taken = whole
    return Sampled(
        tokens[:, :taken],
        logprobs[:, :taken],
        entropies[:, :taken],
        values[0][:, :taken] if values else logprobs[:, :0],
    )


def _read(
    model: PeftModel,
    inputs: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor,
    cache: DynamicCache,
    of: torch.Tensor | None = None,
) -> torch.Tensor:
    """The states `[B, H]` behind the answers' prompts `[P, longest prompt]`, whose keys and values it puts into the cache.

    It reads some rows at a time: a pass over prompts takes far more memory than a token step. `of` is as in `sample`.
    """
    end = inputs.shape[1]
    layers = [layer for layer in cache.layers if isinstance(layer, _Reserved)]
    parted = layers and len(layers) == len(cache.layers)  # other layers take all rows at once
    at_once = max(1, READ_AT_ONCE[inputs.device.type] // end) if parted else len(inputs)
    states = []
    for first in range(0, len(inputs), at_once):
        rows = slice(first, first + at_once)
        for layer in layers:
            layer.choose(rows, 0, of)
        last = positions[rows, :end] == positions[rows, end - 1 : end]
        with needed_states_only(model, last):
            part = _states(model, inputs[rows], None if mask is None else mask[rows], positions[rows], cache, 0)
        states.append(part[:, -1].clone())  # a view would keep the states of all tokens
    for layer in cache.layers:
        if isinstance(layer, _Reserved):
            layer.choose(slice(None), end)
        elif of is not None:
            layer.batch_select_indices(of)
    return torch.cat(states) if of is None else torch.cat(states)[of]


def _states(
    model: PeftModel,
    inputs: torch.Tensor,
    mask: torch.Tensor | None,
    positions: torch.Tensor,
    cache: DynamicCache,
    start: int,
) -> torch.Tensor:
    """The last hidden states `[b, w, H]` of `inputs` `[b, w]`, which stand at `start` behind what the cache holds."""
    end = start + inputs.shape[1]
    output = trunk(model)(
        input_ids=inputs,
        attention_mask=None if mask is None else mask[:, :end],
        position_ids=positions[:, start:end],
        past_key_values=cache,
        use_cache=True,
    )
    states: torch.Tensor = output.last_hidden_state
    return states


def _longest(tokens: torch.Tensor, ends: Sequence[int]) -> int:
    """The tokens of the longest answer of `[B, T]`, its end included."""
    ended = is_any(tokens, ends).cumsum(1) > 0
    going = int((~ended).any(0).sum())
    return min(going + 1, tokens.shape[1])


def is_any(tokens: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """Whether each token is one of `ids`, in the shape of `tokens`."""
    return torch.stack([tokens == id for id in ids]).any(0)


class _Reserved(DynamicLayer):
    """A layer's keys and values `[B, heads, tokens so far, dimensions]`, with room for all tokens from the start.

    Transformers' own layer grows by concatenation: each token copies the whole cache, and both copies are in memory.
    """

    def __init__(self, rows: int, max_tokens: int) -> None:
        super().__init__()
        self.size, self.max_tokens = rows, max_tokens
        self.rows: slice | torch.Tensor = slice(None)
        self.of: torch.Tensor | None = None

    def choose(self, rows: slice, tokens: int, of: torch.Tensor | None = None) -> None:
        """Turns to some rows, of which `tokens` tokens are known; with `of`, to the answers to these rows of prompts.

        What comes next is then the prompts' alone.
        """
        self.rows, self.of = rows, None
        if of is not None:
            self.rows = ((of >= rows.start) & (of < rows.stop)).nonzero().squeeze(1)
            self.of = of[self.rows] - rows.start
        if self.is_initialized:
            self.keys, self.values = (room[self.rows, :, :tokens] for room in self.room)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.room = [
                states.new_empty(self.size, states.shape[1], self.max_tokens, states.shape[3])
                for states in (key_states, value_states)
            ]
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[self.rows, :, start:end] = states if self.of is None else states[self.of]
        if self.of is not None:
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        self.keys, self.values = (room[self.rows, :, :end] for room in self.room)
        return self.keys, self.values


COPIED = (_Reserved, DynamicSlidingWindowLayer)
"""The kinds of layers whose keys and values are all they keep, so that several answers can go on from one prompt's."""


def _cache(model: PeftModel, rows: int, max_tokens: int) -> DynamicCache:
    """The model's own kind of cache, with room for `max_tokens` tokens in the layers that keep all of them."""
    cache = DynamicCache(config=causal(model).config)
    cache.layers = [_Reserved(rows, max_tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _draw(logits: torch.Tensor, temperature: float, share: Share | None) -> tuple[torch.Tensor, ...]:
    """A token of each row of `[B, vocabulary]` (overwritten), its log-probability, the entropy, and whether the row holds NaN
    or infinity, so that its token is any; `[B]` each."""
    if temperature not in (0, 1):
        logits /= temperature
    probabilities, total = softmax_and_logsumexp(logits)
    if temperature:
        numbers = torch.rand(share.of if share else len(logits), dtype=torch.float64, device=logits.device)
        token = drawn(probabilities, numbers[list(share.rows)] if share else numbers)
    else:
        token = logits.argmax(-1)
    logprob = logits.gather(1, token[:, None]).squeeze(1) - total
    return token, logprob, total - torch.linalg.vecdot(probabilities, logits), ~total.isfinite()


def drawn(probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The token `[B]` of each row of `[B, vocabulary]` at which its running sum passes `numbers` `[B]`, shares of the whole
    from [0, 1). A token of probability 0 is never drawn; of NaN, any is.

    `torch.multinomial` takes a random number for each word of the vocabulary (PyTorch 2.13, ATen `Distributions.cpp`), on a
    CPU for longer than the model takes. This takes one, and sums up blocks of words and then the words of one block, so that
    nothing more of the vocabulary's size is made.
    """
    words = probabilities.shape[1]
    even = words // BLOCK * BLOCK
    blocks = probabilities[:, :even].unflatten(1, (-1, BLOCK)).sum(-1)
    running = _running_sum(torch.cat([blocks, probabilities[:, even:].sum(-1, keepdim=True)], 1))
    number = (numbers[:, None] * running[:, -1:]).long()
    block = _first_above(running, number)
    places = block * BLOCK + torch.arange(BLOCK, device=block.device)
    within = _running_sum(probabilities.gather(1, places.clamp(max=words - 1)).masked_fill(places >= words, 0))
    before = running.gather(1, (block - 1).clamp(min=0)).masked_fill(block == 0, 0)
    rest = torch.minimum(number - before, within[:, -1:] - 1)  # a block's sum was rounded
    return (block * BLOCK + _first_above(within, rest)).clamp(max=words - 1).squeeze(1)


def _running_sum(weights: torch.Tensor) -> torch.Tensor:
    """In whole numbers, which a GPU adds to the same sum in any order; what is above 0 stays so."""
    return (weights.double() * 2.0**48).ceil().long().cumsum(-1)


def _first_above(running: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """The first place `[B, 1]` of a running sum `[B, N]` that is above a number `[B, 1]`."""
    return torch.searchsorted(running, number, right=True).clamp(max=running.shape[1] - 1)
