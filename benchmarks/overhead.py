"""How much of an update's time is not model arithmetic.

One run is timed whole while every call of the trunk is noted: `Call("policy", rows=32, tokens=1, past=40, grad=False)`.
Then the same calls are made again on random tokens by nothing but the model: generations token by token with a cache, and
a draw from each step's logits; forward passes with the log-probabilities of the answers' tokens; forward and backward passes
where gradients were needed. What the run took longer than that is overhead: bookkeeping, scoring, advantages, losses,
clipping, the optimizer.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, set_seed
from trl.trainer.utils import selective_log_softmax

from benchmarks import models, ours
from benchmarks.measure import settle
from benchmarks.work import EOS, TOY, Work
from rlrecipes.model.sampling import drawn

WITH_LOGITS = ("policy", "reference")
"""Adapters whose full passes end in log-probabilities; the others' end in hidden states."""


class Time(NamedTuple):
    """Seconds."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Call:
    """One call of the trunk."""

    adapter: str
    rows: int
    tokens: int
    past: int
    """Tokens that the cache holds already."""
    cached: bool
    grad: bool


def overhead(work: Work, folder: Path, rounds: int) -> dict[str, Any]:
    """Medians, over `rounds` runs of one update, of the shares of CPU and of wall time that model arithmetic leaves.

    A share can be a little below 0: the replay keeps all logits of a pass at once, which a trainer need not do.
    """
    ours.build(TOY, models.tokenizer(TOY.model), folder).train()
    settle()
    found = [_round(dataclasses.replace(work, updates=1, seed=work.seed + turn), folder) for turn in range(rounds)]
    return {
        "overhead": median(1 - sum(part.cpu for part in parts.values()) / whole.cpu for whole, parts in found),
        "overhead_wall": median(1 - sum(part.wall for part in parts.values()) / whole.wall for whole, parts in found),
        "update_s": median(whole.cpu for whole, _ in found),
        "arithmetic_s": {name: median(parts[name].cpu for _, parts in found) for name in found[0][1]},
    }


def _round(work: Work, folder: Path) -> tuple[Time, dict[str, Time]]:
    """An update, and each part of its model arithmetic alone."""
    trainer = ours.build(work, models.tokenizer(work.model), folder)
    set_seed(work.seed)
    with _noting(trainer.policy) as calls:
        whole = _time(trainer.train)
    kinds = {
        "generation": [call for call in calls if call.cached],
        "forward": [call for call in calls if not call.cached and not call.grad],
        "forward and backward": [call for call in calls if call.grad],
    }
    return whole, {name: _time(partial(_replay, trainer.policy, chosen, work)) for name, chosen in kinds.items()}


@contextmanager
def _noting(model: Any) -> Iterator[list[Call]]:
    """The calls of the trunk inside the block."""
    calls: list[Call] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = next(
            given for given in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if given is not None
        )
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        cached = cache is not None or bool(kwargs.get("use_cache"))
        rows, tokens = ids.shape[:2]
        calls.append(Call(model.active_adapter, rows, tokens, past, cached, torch.is_grad_enabled()))

    handle = models.trunk(model.get_base_model()).register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _replay(model: Any, calls: Sequence[Call], work: Work) -> None:
    cache: DynamicCache | None = None
    for call in calls:
        ids = torch.randint(EOS + 1, work.model.vocabulary, (call.rows, call.tokens), device=model.device)
        if model.active_adapter != call.adapter:
            model.set_adapter(call.adapter)
        if call.cached:
            cache = _generate(model, ids, cache if call.past else None)
        elif call.grad:
            _pass(model, ids, work).backward()
        else:
            with torch.no_grad():
                _pass(model, ids, work)
    model.set_adapter("policy")
    model.zero_grad()


@torch.no_grad()
def _generate(model: Any, ids: torch.Tensor, cache: DynamicCache | None) -> DynamicCache:
    """One step of a generation: the next token of each row is drawn from its logits."""
    base = model.get_base_model()
    cache = DynamicCache(config=base.config) if cache is None else cache
    if cache.get_seq_length() and cache.layers[0].keys.shape[0] != len(ids):
        cache.batch_select_indices(torch.arange(len(ids), device=ids.device))
    states = models.trunk(base)(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    probabilities = base.get_output_embeddings()(states).float().softmax(-1)
    drawn(probabilities, torch.rand(len(states), dtype=torch.float64, device=states.device))
    return cache


def _pass(model: Any, ids: torch.Tensor, work: Work) -> torch.Tensor:
    """The sum of the answers' log-probabilities, or of the hidden states under an adapter that gives none."""
    base = model.get_base_model()
    states: torch.Tensor = models.trunk(base)(input_ids=ids, use_cache=False).last_hidden_state
    if model.active_adapter not in WITH_LOGITS:
        return states.sum()
    answers = ids[:, -min(work.answer, ids.shape[1] - 1) :]
    logits = base.get_output_embeddings()(states[:, -answers.shape[1] - 1 : -1]).float()
    logprobs: torch.Tensor = selective_log_softmax(logits, answers)
    return logprobs.sum()


def _time(run: Callable[[], Any]) -> Time:
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return Time(time.process_time() - cpu, time.perf_counter() - wall)
