"""Answers of the policy to a batch of prompts, with all that an update needs of the other roles.

PPO reads values as well. `rollout` explains the shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from rlrecipes.model.adapters import adapter, reference
from rlrecipes.model.dense import dense
from rlrecipes.model.forward import causal, next_token_logits, states_at
from rlrecipes.model.likelihood import token_logprobs
from rlrecipes.model.sampling import Share, is_any, sample
from rlrecipes.model.shared import can_share, shared_states_at
from rlrecipes.model.tokens import decode, ends, pad_left, pad_right
from rlrecipes.policy.rollout import Rollout, join_rows, places_before
from rlrecipes.recipe import Example
from rlrecipes.run.gradients import drawn_on
from rlrecipes.run.processes import gather, interleaved, own, world

ONCE_MORE = "the policy reads its answers once more, since bfloat16 rounds otherwise while it samples them"


class ValueHead(nn.Module):
    """A linear value of hidden states. It is the same of all states until something is learned."""

    base_model_prefix = "trunk"  # PPOTrainer looks here for a critic's transformer; ours is the policy itself

    def __init__(self, trunk: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.score = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    @torch.no_grad()
    def begin(self, value: torch.Tensor) -> None:
        """Makes a number the value of every state."""
        self.score.bias.fill_(value)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Values `[…]` of hidden states `[…, H]`."""
        values: torch.Tensor = self.score(states.to(self.score.weight.dtype)).squeeze(-1)
        return values


class NoValue(nn.Module):
    """Stands where TRL's trainer wants a value function, for algorithms that have none."""

    base_model_prefix = "trunk"

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk


@dataclass(frozen=True)
class Sampler:
    """The roles on one base, and the number of rows that each pass takes."""

    model: PeftModel
    """With the adapters `policy` and `reference`, and those below. `policy` is active between two calls."""
    tokenizer: Any
    response_length: int
    """The most tokens of an answer."""
    temperature: float
    rollout_batch_size: int
    """Prompts that are answered together."""
    micro_batch_size: int
    """Rows whose hidden states are made together: the update takes that memory anyway."""
    scored: Sequence[str]
    """The adapters that read the answers' last tokens: those of the learned reward."""
    value: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Values `[…]` of hidden states `[…, H]`; None without a value function."""
    value_adapter: bool = False
    """Values come from a pass under the adapter `value`, rather than from the policy's own states while it samples."""
    answers_each: int = 1
    """Answers to each prompt, which is then read once for all of them that are drawn together."""
    dense: bool = False
    """Answers are drawn from a dense copy of the policy, which is made anew for each batch of them."""

    @cached_property
    def shares(self) -> bool:
        """Whether passes read a prompt once for several answers to it, as far as that is less work."""
        return self.answers_each > 1 and can_share(self.model)

    @property
    def rounds(self) -> bool:
        """Whether the model computes in less than float32.

        A step that samples one token of each row then rounds otherwise than a pass over whole rows, and the policy would seem
        to differ from itself: its log-probabilities are taken once more, as the update takes them.
        """
        return torch.finfo(causal(self.model).dtype).bits < 32

    @torch.no_grad()
    def roll_out(self, examples: Sequence[Example], prompts: Sequence[Sequence[int]]) -> Rollout:
        """Samples an answer to each prompt. Prompts of like length are answered together, so the rows come by length."""
        order = self._by_length(prompts)
        chunks = [
            order[start : start + self.rollout_batch_size] for start in range(0, len(order), self.rollout_batch_size)
        ]
        parts = self._parts([[prompts[i] for i in chunk] for chunk in chunks])
        pad = self.tokenizer.pad_token_id
        tensors = {
            key: join_rows([part[key] for part in parts], pad if key in ("ids", "response") else 0).to(
                self.model.device
            )
            for key in parts[0]
        }
        ended, lengths = tensors.pop("ended"), tensors.pop("lengths")
        places = torch.arange(tensors["response"].shape[1], device=lengths.device)[None]
        padding, states_padding = places >= lengths[:, None], places > lengths[:, None]
        return Rollout(
            examples=[examples[i] for i in order],
            answers=[decode(self.tokenizer, row) for row in tensors["response"]],
            padding=padding,
            states_padding=states_padding,
            ended=ended,
            **tensors | ({"values": tensors["values"].masked_fill(states_padding, 0)} if self.value else {}),
        )

    def _parts(self, chunks: Sequence[Sequence[Sequence[int]]]) -> list[dict[str, torch.Tensor]]:
        """The tensors of `Rollout` for chunks of prompts, in their order; several processes share the rows of each."""
        if world() == 1:
            return [self._answers(chunk) for chunk in chunks]
        mine = []
        for chunk in chunks:
            share = _share(len(chunk))
            part = self._answers([chunk[i] for i in share.rows], share) if share.rows else {}
            mine.append({key: tensor.cpu().clone() for key, tensor in part.items()})
        return [
            row for parts in zip(*gather(mine), strict=True) for row in interleaved([_rows(part) for part in parts])
        ]

    def greedy(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """The policy's greedy answers, in the prompts' order; they use none of the training's random numbers."""
        return self._plain_answers(prompts, 0.0)

    def at_temperature_1(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """The policy's answers at temperature 1, in the prompts' order, from the same random numbers at each call.

        They leave the training's random numbers where they were.
        """
        device = self.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            return self._plain_answers(prompts, 1.0)

    def _plain_answers(self, prompts: Sequence[Sequence[int]], temperature: float) -> list[str]:
        answers = [""] * len(prompts)
        order = self._by_length(prompts)
        for start in range(0, len(order), self.rollout_batch_size):
            places = order[start : start + self.rollout_batch_size]
            rows = self._plain_rows([prompts[i] for i in places], temperature)
            for i, row in zip(places, rows, strict=True):
                answers[i] = decode(self.tokenizer, row)
        return answers

    def _plain_rows(self, prompts: Sequence[Sequence[int]], temperature: float) -> Sequence[Any]:
        """The tokens of answers to prompts that are answered together, of several processes by each to its share of them."""
        share = _share(len(prompts)) if world() > 1 else None
        mine = [prompts[i] for i in share.rows] if share else prompts
        if not mine:
            return interleaved(gather([]))
        pad, last = self.tokenizer.pad_token_id, ends(self.tokenizer)
        queries = pad_left(mine, pad).to(self.model.device)
        with self._drawn_from():
            sampled = sample(self.model, queries, pad, last, self.response_length, temperature, share=share)
        if share is None:
            return list(sampled.tokens)
        return interleaved(gather(sampled.tokens.tolist()))

    @staticmethod
    def _by_length(prompts: Sequence[Sequence[int]]) -> list[int]:
        """The places of prompts, the shortest first: a batch of like lengths needs less padding."""
        return sorted(range(len(prompts)), key=lambda i: len(prompts[i]))

    def _answers(self, prompts: Sequence[Sequence[int]], share: Share | None = None) -> dict[str, torch.Tensor]:
        """The tensors of `Rollout` for some prompts, and the answers' `lengths` `[b]`."""
        pad, last, device = self.tokenizer.pad_token_id, ends(self.tokenizer), self.model.device
        value = None if self.value_adapter else self.value
        unique, of = _once(prompts) if self.answers_each > 1 else (prompts, None)
        queries = pad_left(unique, pad).to(device)
        with self._drawn_from():
            sampled = sample(
                self.model,
                queries,
                pad,
                last,
                self.response_length,
                self.temperature,
                value,
                share=share,
                of=None if of is None else of.to(device),
            )
        is_end = is_any(sampled.tokens, last)
        ended, steps = is_end.any(1), sampled.tokens.shape[1]
        lengths = torch.where(ended, is_end.int().argmax(1) + 1, steps)
        answers = [row[:length] for row, length in zip(sampled.tokens.tolist(), lengths.tolist(), strict=True)]
        ids = pad_right([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)], pad).to(device)
        prompt_lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        places = places_before(prompt_lengths, steps, ids.shape[1])
        mask, ends_at = torch.arange(steps, device=device)[None] < lengths[:, None], prompt_lengths + lengths

        logprobs, values, rounding = sampled.logprobs, sampled.values, {}
        if self.rounds:
            states = self._states(ids, places, prompt_lengths, ends_at)
            logprobs = self.logprobs(states, sampled.tokens, mask)
            rounding = {"rounding": (logprobs - sampled.logprobs).abs()}
            values = self.value(states) if self.value and not self.value_adapter else values
        with adapter(self.model, reference(self.model)):
            states = self._states(ids, places, prompt_lengths, ends_at)
            reference_logprobs = self.logprobs(states, sampled.tokens, mask)
        if self.value and self.value_adapter:
            with adapter(self.model, "value"):
                values = self.value(self._states(ids, places, prompt_lengths, ends_at))
        last_states = states[:, 0, :0]
        if self.scored:
            places = (prompt_lengths + lengths - 1)[:, None]
            # It was trained to read at EOS, whichever token ended the answer.
            read = torch.where(ended[:, None], ids.scatter(1, places, self.tokenizer.eos_token_id), ids)
            read_by = []
            for role in self.scored:
                with adapter(self.model, role):
                    read_by.append(self._states(read, places, prompt_lengths, ends_at).squeeze(1))
            last_states = torch.cat(read_by, -1)
        return {
            "ids": ids,
            "prompt_lengths": prompt_lengths,
            "response": sampled.tokens,
            "logprobs": logprobs,
            "reference_logprobs": reference_logprobs,
            "entropy": sampled.entropy,
            "last_states": last_states,
            "lengths": lengths,
            "ended": ended,
            **({"values": values} if self.value else {}),
            **rounding,
        }

    def _drawn_from(self) -> AbstractContextManager[None]:
        """Inside, the model is what answers are drawn from."""
        return dense(self.model) if self.dense else nullcontext()

    def _states(self, *rows: torch.Tensor) -> torch.Tensor:
        """As `states`, some rows at a time."""
        parts = zip(*(each.split(self.micro_batch_size) for each in rows), strict=True)
        return torch.cat([self.states(*part) for part in parts])

    def states(
        self, ids: torch.Tensor, places: torch.Tensor, prompt_lengths: torch.Tensor, ends_at: torch.Tensor
    ) -> torch.Tensor:
        """Hidden states `[b, t, H]` at `places` `[b, t]` of right-padded `ids` `[b, w]`, of which the first `ends_at` `[b]`
        tokens are read, prompts of `prompt_lengths` `[b]` among them."""
        if self.shares:
            return shared_states_at(self.model, ids, places, prompt_lengths, ends_at)
        return states_at(self.model, ids, places)

    def logprobs(self, states: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Log-probabilities `[b, t]` of `tokens` after `states` `[b, t, H]` at the sampling temperature; 0 outside `mask`."""
        logprobs = token_logprobs(states[mask], tokens[mask], self._logits)
        return torch.zeros_like(states[..., 0], dtype=logprobs.dtype).masked_scatter(mask, logprobs)

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        logits = next_token_logits(self.model, states)
        return logits if self.temperature == 1 else logits / self.temperature


def _once(prompts: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], torch.Tensor]:
    """Each prompt once, and the places of all prompts among these."""
    places: dict[tuple[int, ...], int] = {}
    of = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
    return [*places], torch.tensor(of)


def _share(count: int) -> Share:
    """This process's share of `count` rows; one without a row meets the others here, since it samples nothing."""
    share = Share(own(range(count)), count, drawn_on)
    if not share.rows:
        drawn_on(0, 0)
    return share


def _rows(part: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The rows of a chunk's tensors, one by one, each still with its first dimension."""
    count = len(next(iter(part.values()))) if part else 0
    return [{key: tensor[i : i + 1] for key, tensor in part.items()} for i in range(count)]
