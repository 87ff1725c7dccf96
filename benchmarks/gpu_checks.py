"""The checks of a GPU that need a model of a real size, in one process: `benchmarks.gpu` asks for them.

{"rows": [{"name": "a token step, 64 answers", "target": "–", "found": "31.0 ms, 2,065 tokens/s", "met": null}, …]}
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from benchmarks import models, ours
from benchmarks.large import held, highest, reset
from benchmarks.plan import Shape, planned_mb
from benchmarks.work import Work
from rlrecipes.errors import UserError
from rlrecipes.model.sampling import sample
from rlrecipes.model.tokens import pad_left
from rlrecipes.policy.ppo_trainer import SharedBasePPOTrainer
from rlrecipes.run.checkpoint import load_newest, save

OFF_PLAN, ROUNDING, KEPT_GB, SLOWER = 0.1, 1e-3, 0.05, 1.1
"""What is allowed: the plan's error, the largest log-ratio before a step, what is held at the end, strict over free."""


def checks(work: Work, folder: Path, on: str) -> dict[str, Any]:
    """The rows, in order; each names its target.

    Raises:
        UserError: no GPU is visible.
    """
    if on == "cuda" and not torch.cuda.is_available():
        raise UserError("this needs a GPU that this torch can use, and sees none; --device cpu takes a toy")
    one = dataclasses.replace(work, updates=1)
    before = held(on)
    trainer = ours.build(one, models.tokenizer(work.model), folder, models.causal(one, on))
    rows = [_placed(trainer, on), *_token_steps(trainer, one, on), *_update(trainer, one, on), _deterministic(trainer)]
    rows.append(_paged(folder / "paged", on))
    del trainer
    gc.collect()
    if on == "cuda":
        torch.cuda.empty_cache()
    left = held(on) - before
    return {
        "rows": [*rows, _row("held when all is deleted", f"at most {KEPT_GB} GB", f"{left:.3f} GB", left <= KEPT_GB)]
    }


def _row(name: str, target: str, found: str, met: bool | None) -> dict[str, Any]:
    return {"name": name, "target": target, "found": found, "met": met}


def _placed(trainer: SharedBasePPOTrainer, on: str) -> dict[str, Any]:
    parts = (*trainer.model.parameters(), *trainer.model.buffers())
    places = sorted({part.device.type for part in parts})
    return _row("weights and buffers", f"all on {on}", ", ".join(places), places == [on])


def _token_steps(trainer: SharedBasePPOTrainer, work: Work, on: str) -> list[dict[str, Any]]:
    """The median time between two tokens, for two sizes of a batch."""
    rows = []
    for count in dict.fromkeys((min(32, work.batch), min(64, work.batch))):
        queries = pad_left(trainer.prompts[:count], trainer.processing_class.pad_token_id).to(trainer.policy.device)
        marks: list[float] = []

        def mark(_: torch.Tensor, marks: list[float] = marks) -> None:
            marks.append(time.perf_counter())

        tokens = min(64, work.answer)
        sample(trainer.policy, queries, trainer.processing_class.pad_token_id, (10**9,), tokens, 1.0, on_tokens=mark)
        highest(on)  # waits for the GPU
        step = (marks[-1] - marks[0]) / max(1, len(marks) - 1)
        rows.append(
            _row(f"a token step, {count} answers", "–", f"{step * 1e3:.1f} ms, {count / step:,.0f} tokens/s", None)
        )
    return rows


def _update(trainer: SharedBasePPOTrainer, work: Work, on: str) -> list[dict[str, Any]]:
    """One update: the peaks of its phases beside the plan, and how far the policy is from itself before its first step."""
    peaks: dict[str, float] = {}
    for phase in ("roll_out", "update"):
        setattr(trainer, phase, _peaking(getattr(trainer, phase), phase, peaks, on))
    set_seed(work.seed)
    trainer.train()
    rows = []
    for phase, name in (("roll_out", "ppo rollout"), ("update", "ppo update")):
        planned = planned_mb(Shape(name, work), on) / 1e3
        ratio = planned / peaks[phase]
        found = f"{peaks[phase]:.2f} GB, planned {planned:.2f}"
        rows.append(_row(f"peak of the {name}", "plan within a tenth", found, abs(ratio - 1) <= OFF_PLAN))
    logged = trainer.state.log_history[0]
    apart = logged["first/log_ratio_max"]
    found = f"{apart:.2g} nats at most, clipped {logged['first/clipfrac_avg']:.2%}"
    rows.append(_row("a policy beside itself, before a step", f"at most {ROUNDING} nats", found, apart <= ROUNDING))
    if "sampling/rounding_avg" in logged:
        found = f"{logged['sampling/rounding_avg']:.3f} nats a token, {logged['sampling/rounding_max']:.2f} at most"
        rows.append(_row("sampling's own log-probabilities beside the update's", "–", found, None))
    return rows


def _peaking(step: Callable[..., Any], name: str, peaks: dict[str, float], on: str) -> Callable[..., Any]:
    def watched(*given: Any) -> Any:
        reset(on)
        result = step(*given)
        peaks[name] = highest(on)
        return result

    return watched


def _deterministic(trainer: SharedBasePPOTrainer) -> dict[str, Any]:
    """The same gradients twice in PyTorch's strict mode, and what that costs."""
    rollout = trainer.roll_out({"index": torch.arange(trainer.args.local_batch_size)})
    advantages, returns, _ = trainer.estimate_advantages(rollout, trainer.score(rollout)[1])
    rows = torch.arange(len(rollout.answers), device=rollout.ids.device)

    def gradients() -> list[torch.Tensor]:
        trainer.optimizer.zero_grad()
        trainer.model.train()
        trainer._accumulate(rollout, advantages, returns, rows)
        return [parameter.grad.clone() for parameter in trainer._trainable() if parameter.grad is not None]

    seconds = {}
    try:
        for strict in (False, True):
            torch.use_deterministic_algorithms(strict)
            first = gradients()
            started = time.perf_counter()
            second = gradients()
            float(second[0].flatten()[0])  # waits for the GPU
            seconds[strict] = time.perf_counter() - started
    finally:
        torch.use_deterministic_algorithms(False)
        trainer.optimizer.zero_grad()
    same = all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    ratio = seconds[True] / seconds[False]
    found = f"{'the same' if same else 'other'} gradients, {ratio:.2f} of the time"
    return _row("strict mode, twice", f"the same bytes, at most {SLOWER} of the time", found, same and ratio <= SLOWER)


def _paged(folder: Path, on: str) -> dict[str, Any]:
    """A paged 8-bit optimizer that is saved and restored takes the step that it would have taken."""
    import bitsandbytes as bnb

    def begun() -> tuple[torch.nn.Parameter, Any]:
        torch.manual_seed(1)
        weights = torch.nn.Parameter(torch.randn(128, 128, device=on))
        return weights, bnb.optim.PagedAdamW8bit([weights], lr=1e-3)

    def step(weights: torch.nn.Parameter, optimizer: Any, seed: int) -> None:
        torch.manual_seed(seed)
        weights.grad = torch.randn_like(weights)
        optimizer.step()

    weights, optimizer = begun()
    step(weights, optimizer, 2)
    save(folder, 1, {"weights": weights.data, "optimizer": optimizer.state_dict()})
    newest = load_newest(folder)
    assert newest is not None
    others, restored = begun()
    others.data.copy_(newest.state["weights"])
    restored.load_state_dict(newest.state["optimizer"])
    for each in ((weights, optimizer), (others, restored)):
        step(*each, 3)
    same = torch.equal(weights, others)
    return _row("a paged optimizer, saved and restored", "the same bytes", "the same" if same else "others", same)
