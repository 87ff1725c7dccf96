"""What policies answer to the same prompts. They are scored from these answers alone (`policy.scores`), at any later time.

{"prompt": […], "references": ["…"], "answers": {"ppo": {"greedy": {"text": "…", "ended": true, "kl": null}, …}, …}}

A policy has a `greedy` answer and a `sampled` one, at temperature 1. A policy that the best of n is taken from has n more,
called `1` to `n`, and so has each for pass@n; the best of 4 is taken from the first four.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from rlrecipes.job import Job
from rlrecipes.model.adapters import adapter, reference
from rlrecipes.model.forward import device, next_token_logits, states_at
from rlrecipes.model.likelihood import token_logprobs
from rlrecipes.model.sampling import Sampled, is_any, sample
from rlrecipes.model.tokens import decode, ends, pad_left, pad_right
from rlrecipes.policy.rollout import places_before
from rlrecipes.recipe import Example
from rlrecipes.run.checkpoint import Checkpoints
from rlrecipes.run.console import bar, say
from rlrecipes.run.policies import kinds
from rlrecipes.run.processes import gather, rank, world
from rlrecipes.run.stages import POLICIES, Policy


class Answer(NamedTuple):
    """One answer to a prompt."""

    text: str
    ended: bool
    """Whether it ends by EOS, rather than at the most tokens that an answer may have."""
    kl: float | None = None
    """Its log-probability less that under SFT, in nats: its mean is the KL divergence. Of sampled answers of policies that
    were trained on from SFT."""


FILE = "answers.jsonl"

Answers = Mapping[str, Mapping[str, Sequence[Answer]]]
"""Answers to all prompts, by policy and by kind: `greedy`, `sampled`, `1`, `2`, …"""


class _Batch(NamedTuple):
    """Prompts that a policy answers together."""

    policy: str
    kind: str
    start: int
    """The place of the first among all prompts, ordered by length."""


@dataclass(frozen=True)
class Voice:
    """A model that answers, and the prompts as it reads them."""

    model: Any
    tokenizer: Any
    prompts: Sequence[Sequence[int]]


def answer(
    job: Job,
    voice: Voice,
    length: int,
    policies: Mapping[str, Policy],
    checkpoints: Checkpoints,
    other: Callable[[Policy], Voice],
) -> Answers:
    """The answers of `policies` to the prompts, of at most `length` tokens each.

    `voice` has the adapters of all of them but of whole models from elsewhere, which `other` loads, one at a time. All
    policies draw from the same random numbers. A batch has a seed of its own, so no answer depends on what ran before it,
    and an interrupted stage goes on at the next batch. Several processes take a batch each, as many together as they are.
    """
    size = job.profile.evaluate.batch_size
    # A batch has prompts of like length, which need less padding; the answers go back to their places.
    order = sorted(range(len(voice.prompts)), key=lambda i: len(voice.prompts[i]))
    wanted = kinds(policies, job.profile.evaluate.pass_at)
    batches = [
        _Batch(policy, kind, start)
        for policy in wanted
        for start in range(0, len(order), size)
        for kind in wanted[policy]
    ]
    for name, each in wanted.items():
        if drawn := len([kind for kind in each if kind.isdigit()]):
            best = any(policy.over == name and policy.best_of for policy in policies.values())
            why = "to take the best of" if best else "for pass@k"
            title = (policies.get(name) or POLICIES[name]).title
            say(f"  {drawn} answers of {title} to each of {len(order)} prompts, {why}")
    checkpoint = checkpoints.newest()
    done = checkpoint.step if checkpoint else 0
    answers: dict[str, dict[str, list[Any]]] = (
        checkpoint.state
        if checkpoint
        else {name: {kind: [None] * len(order) for kind in wanted[name]} for name in wanted}
    )
    speaking, speaker = "", voice
    with checkpoints.finishing_first(), bar("answers", len(batches), done) as progress:
        for first in range(done, len(batches), world()):
            together = batches[first : first + world()]
            rows: list[list[Any]] = []
            if mine := together[rank() :][:1]:
                (batch,) = mine
                draw = int(batch.kind) if batch.kind.isdigit() else 0
                torch.manual_seed((job.seed + batch.start + draw * len(order)) % 2**64)
                policy = policies.get(batch.policy) or POLICIES[batch.policy]
                if batch.policy != speaking:
                    speaking, speaker = batch.policy, voice  # the one before makes room first
                    speaker = other(policy) if policy.place and not policy.role else voice
                prompts = [speaker.prompts[i] for i in order[batch.start : batch.start + size]]
                rows = [list(row) for row in _answers(speaker, prompts, length, policy.role, batch.kind)]
            for batch, given in zip(together, gather(rows), strict=False):
                for i, row in zip(order[batch.start : batch.start + size], given, strict=True):
                    answers[batch.policy][batch.kind][i] = row
            progress.update(len(together))
            if checkpoints.due():
                checkpoints.save(first + len(together), answers)
    return {
        name: {kind: [Answer(*row) for row in rows] for kind, rows in given.items()} for name, given in answers.items()
    }


def write_answers(path: Path, examples: Sequence[Example], answers: Answers) -> None:
    """Writes `path`, a row for each prompt."""
    with path.open("w", encoding="utf-8") as file:
        for i, example in enumerate(examples):
            given = {name: {kind: rows[i]._asdict() for kind, rows in by.items()} for name, by in answers.items()}
            prompt = [message._asdict() for message in example.prompt]
            row = {"prompt": prompt, "references": list(example.answers), "answers": given}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_answers(path: Path) -> Answers:
    """The answers that `write_answers` wrote."""
    with path.open(encoding="utf-8") as lines:  # a text may hold characters at which `splitlines` would part it
        rows = [json.loads(line)["answers"] for line in lines]
    kinds = {name: list(by) for name, by in rows[0].items()}
    return {name: {kind: [Answer(**row[name][kind]) for row in rows] for kind in kinds[name]} for name in kinds}


def best_of(drawn: Sequence[Sequence[Answer]], scores: Sequence[Sequence[float]]) -> list[Answer]:
    """The answer with the highest score to each prompt, from answers and scores `[n, prompts]`; of equal ones the first."""
    places = [max(range(len(drawn)), key=lambda k: scores[k][i]) for i in range(len(drawn[0]))]
    return [drawn[k][i] for i, k in enumerate(places)]


def _answers(voice: Voice, prompts: Sequence[Sequence[int]], length: int, role: str | None, kind: str) -> list[Answer]:
    model, tokenizer = voice.model, voice.tokenizer
    pad, last = tokenizer.pad_token_id, ends(tokenizer)
    queries = pad_left(prompts, pad).to(device())
    with adapter(model, role) if isinstance(model, PeftModel) else nullcontext():
        sampled = sample(model, queries, pad, last, length, 0.0 if kind == "greedy" else 1.0)
    texts = [decode(tokenizer, row) for row in sampled.tokens]
    is_end = is_any(sampled.tokens, last)
    divergences: Sequence[float | None] = [None] * len(prompts)
    if kind == "sampled" and role not in (None, "reference"):
        divergences = _divergences(model, prompts, sampled, is_end, pad)
    return [Answer(*row) for row in zip(texts, is_end.any(1).tolist(), divergences, strict=True)]


@torch.no_grad()
def _divergences(
    model: PeftModel, prompts: Sequence[Sequence[int]], sampled: Sampled, is_end: torch.Tensor, pad: int
) -> list[float]:
    """Of each answer, its log-probability less that under the reference, in nats."""
    tokens, steps = sampled.tokens, sampled.tokens.shape[1]
    mask = (is_end.cumsum(1) - is_end.int()) == 0  # up to the first end
    ids = pad_right([[*prompt, *row] for prompt, row in zip(prompts, tokens.tolist(), strict=True)], pad).to(
        tokens.device
    )
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=tokens.device)
    with adapter(model, reference(model)):
        states = states_at(model, ids, places_before(lengths, steps, ids.shape[1]))
        flat = token_logprobs(states[mask], tokens[mask], lambda part: next_token_logits(model, part))
    before = torch.zeros_like(sampled.logprobs, dtype=flat.dtype).masked_scatter(mask, flat)
    divergences: list[float] = (sampled.logprobs * mask - before).sum(1).tolist()
    return divergences
