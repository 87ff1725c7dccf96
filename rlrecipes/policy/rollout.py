"""A batch of answers and the tensors that an update needs of it, whole and cut into micro-batches. It needs no model.

Shapes: B answers of at most T tokens; L is the longest prompt with its answer, H the hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import nn

from rlrecipes.recipe import Example
from rlrecipes.text import quoted


@dataclass(frozen=True)
class Rollout:
    """A batch of answers and everything that does not change while the policy learns from it."""

    examples: list[Example]
    answers: list[str]
    ids: torch.Tensor
    """`[B, L]`: prompts with their answers, right-padded."""
    prompt_lengths: torch.Tensor
    """`[B]`, in tokens."""
    response: torch.Tensor
    """`[B, T]`: the answers alone, right-padded."""
    logprobs: torch.Tensor
    """`[B, T]` of the sampled tokens under the policy that sampled them, as the update computes them; 0 on padding."""
    reference_logprobs: torch.Tensor
    """`[B, T]`, likewise under the reference."""
    entropy: torch.Tensor
    """`[B, T]` in nats; 0 on padding."""
    padding: torch.Tensor
    """`[B, T]`, true behind an answer's last token."""
    states_padding: torch.Tensor
    """`[B, T]`, true behind the state that follows the last token."""
    ended: torch.Tensor
    """`[B]`, true where the answer holds EOS."""
    last_states: torch.Tensor
    """`[B, H]` hidden states of the last tokens under the reward adapter; empty without a learned reward."""
    values: torch.Tensor | None = None
    """`[B, T]`, of the state before each token; the state after EOS has one too, as in TRL. None without a value function."""
    rounding: torch.Tensor | None = None
    """`[B, T]`, how far sampling's own log-probabilities were from `logprobs`; None where the model computes in float32."""

    @property
    def lengths(self) -> torch.Tensor:
        """`[B]`, of the answers in tokens, EOS included."""
        return (~self.padding).sum(1)

    def place(self, row: int) -> str:
        """Where an answer stands, for a sentence about it."""
        return f"on the answer {quoted(self.answers[row])} to {quoted(self.examples[row].prompt[-1].content)}"

    def rows(self, chosen: torch.Tensor) -> Rollout:
        """Some rows `[b]`, in their order."""
        places = chosen.tolist()
        tensors = {name: tensor[chosen] for name, tensor in self.tensors().items()}
        return replace(
            self, examples=[self.examples[i] for i in places], answers=[self.answers[i] for i in places], **tensors
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """What there is of its tensors, by their fields."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


class Drawn(NamedTuple):
    """The scored answers that are drawn for one update."""

    rollout: Rollout
    terms: Mapping[str, torch.Tensor]
    """Each reward term's unweighted values `[B]`."""
    scores: torch.Tensor
    """`[B]`: what is climbed."""


class Advantages(NamedTuple):
    """What an update climbs, each `[B, T]`."""

    advantages: torch.Tensor
    """What each token is worth; 0 behind an answer's last."""
    returns: torch.Tensor | None
    """The targets of the value function, if there is one."""
    penalty: torch.Tensor
    """The KL penalty on each token; never above 0 with the estimator k3."""


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a rollout, cut to their longest: b rows, t states, w input tokens."""

    rows: torch.Tensor
    """`[b]`, their places in the rollout."""
    ids: torch.Tensor
    """`[b, w]`, what the model reads: prompts and answers without the tokens at the end that no state needs."""
    places: torch.Tensor
    """`[b, t]`, the places in `ids` of the states before each answer token."""
    response: torch.Tensor
    """`[b, t]`, as everything below."""
    mask: torch.Tensor
    """True on answer tokens."""
    states_mask: torch.Tensor
    """True on states: one for each token, and the one behind EOS."""
    logprobs: torch.Tensor
    reference_logprobs: torch.Tensor
    advantages: torch.Tensor
    ended: torch.Tensor
    """`[b]`."""
    values: torch.Tensor | None = None
    returns: torch.Tensor | None = None


def places_before(prompt_lengths: torch.Tensor, steps: int, width: int) -> torch.Tensor:
    """`[b, steps]`: the places of the states before each answer token, in rows of `width` tokens.

    The state before an answer's first token is that of the prompt's last, hence - 1. Places behind the row become its last.
    """
    offsets = torch.arange(steps, device=prompt_lengths.device)[None]
    return (prompt_lengths[:, None] - 1 + offsets).clamp(max=width - 1)


def join_rows(parts: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
    """Rows of several chunks, `[b]` or `[b, width]` each, under each other; `fill` pads them to the widest."""
    if parts[0].dim() == 1:
        return torch.cat(list(parts))
    widest = max(part.shape[1] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, widest - part.shape[1]), value=fill) for part in parts])


def join_drawn(parts: Sequence[Drawn], pad: int) -> Drawn:
    """Several draws under each other; `pad` is the token that fills their texts."""
    if len(parts) == 1:
        return parts[0]
    rollouts = [part.rollout for part in parts]
    fill = {"ids": pad, "response": pad, "padding": True, "states_padding": True}
    each = [rollout.tensors() for rollout in rollouts]
    tensors = {name: join_rows([tensors[name] for tensors in each], fill.get(name, 0)) for name in each[0]}
    whole = replace(
        rollouts[0],
        examples=[example for rollout in rollouts for example in rollout.examples],
        answers=[answer for rollout in rollouts for answer in rollout.answers],
        **tensors,
    )
    terms = {name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms}
    return Drawn(whole, terms, torch.cat([part.scores for part in parts]))


def in_order(rollout: Rollout, rows: torch.Tensor, by_prompt: bool) -> torch.Tensor:
    """Rows `[n]` of a rollout such that those that are read together are alike: of one length, or to one prompt."""
    if by_prompt:  # as they were drawn: the shortest prompts first, with all answers to each
        return rows.sort().values
    return rows[(rollout.prompt_lengths + rollout.lengths)[rows].argsort(stable=True)]


def micro_batch(
    rollout: Rollout, advantages: torch.Tensor, returns: torch.Tensor | None, rows: torch.Tensor
) -> MicroBatch:
    """The rows `[b]` of a rollout with their advantages and returns `[B, T]`, cut to the longest of them.

    A row has a state for each answer token and, where there is room, one behind EOS; t is the most that a row has. The first
    is the state of the prompt's last token, so the model reads `prompt length - 1 + states` tokens; w is the most of these.
    """
    states_mask, prompt_lengths = ~rollout.states_padding[rows], rollout.prompt_lengths[rows]
    states = states_mask.sum(1)
    steps, width = int(states.max()), int((prompt_lengths - 1 + states).max())

    def cut(values: torch.Tensor) -> torch.Tensor:
        return values[rows, :steps]

    return MicroBatch(
        rows=rows,
        ids=rollout.ids[rows, :width],
        places=places_before(prompt_lengths, steps, width),
        response=cut(rollout.response),
        mask=~cut(rollout.padding),
        states_mask=states_mask[:, :steps],
        logprobs=cut(rollout.logprobs),
        reference_logprobs=cut(rollout.reference_logprobs),
        advantages=cut(advantages),
        ended=rollout.ended[rows],
        values=None if rollout.values is None else cut(rollout.values),
        returns=None if returns is None else cut(returns),
    )


def broken_row(values: torch.Tensor) -> int | None:
    """The first row of values `[b, t]` that holds NaN or infinity; None where none does."""
    broken = (~torch.isfinite(values)).any(1)
    return int(broken.int().argmax()) if broken.any() else None
