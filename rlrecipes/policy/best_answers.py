"""The best of several answers that a policy draws to each prompt, by the recipe's whole reward: what `distill` learns from.

{"prompt": […], "answer": "The sisters saw the picture.", "tokens": [17, 4, 2], "scores": [0.2, 1.31, -0.4, 0.9]}

Rejection sampling fine-tuning: Llama 2 (arXiv 2307.09288, section 3.2.2), RAFT (arXiv 2304.06767).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.model.sampling import is_any, sample
from rlrecipes.model.tokens import decode, ends, pad_left
from rlrecipes.profile import DistillSettings
from rlrecipes.recipe import Example, Reward
from rlrecipes.reward.head import Scorer
from rlrecipes.reward.terms import fresh, going_rows, set_term_states, term_states, weighted_sum
from rlrecipes.run.checkpoint import PartsCheckpoints, random_states, set_random_states
from rlrecipes.run.console import bar
from rlrecipes.run.out_of_memory import phase
from rlrecipes.run.processes import gather, rank, world
from rlrecipes.text import quoted, see

FILE = "answers.jsonl"
SAME = 1e-5
"""Scores of a prompt's answers that lie no further apart are the same up to rounding."""
MOSTLY = 0.8
"""The share of prompts without a choice from which on that is a warning."""


class Drawn(NamedTuple):
    """One answer as the policy drew it."""

    tokens: list[int]
    """Up to its end, where it has one."""
    text: str
    ended: bool


class Best(NamedTuple):
    """The best answer to a prompt."""

    tokens: list[int]
    text: str
    scores: list[float]
    """Of all answers to the prompt, in the order in which they were drawn."""


def best_answers(
    job: Job,
    model: PeftModel,
    tokenizer: Any,
    prompts: Sequence[tuple[Example, list[int]]],
    length: int,
    scorer: Scorer | None,
    checkpoints: PartsCheckpoints,
) -> list[Best]:
    """The answer with the highest reward, of those of at most `length` tokens that the active adapter draws to each prompt.

    They are the first part of `checkpoints`, so that an interrupted stage goes on within them and draws none again. Each
    batch has random numbers of its own; several processes draw a batch each.

    Raises:
        Interrupted: a signal asked for the end; what was drawn so far has been saved.
        UserError: logits are NaN or infinite, a term raises, takes too long or gives no number, or a reward is none.
    """
    settings, reward = job.profile.distill, fresh(job.recipe.reward)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][1]))  # prompts of like length need less padding
    best: list[Any] = [None] * len(prompts)
    done = 0  # prompts, so that memory which runs out may make batches smaller from there on
    if newest := checkpoints.newest():
        best, done = newest.state["best"], newest.step
        set_term_states(reward, newest.state["terms"])
        set_random_states(newest.state["random"])
    size = settings.together
    with phase("distill rollout"), checkpoints.finishing_first(), bar("answers", len(order), done) as progress:
        for first in range(done, len(order), size * world()):
            ends_at = min(first + size * world(), len(order))
            together = [order[start : start + size] for start in range(first, ends_at, size)]
            drawn: list[list[Drawn]] = []
            for batch in together[rank() :][:1]:
                seed = (job.seed + first + rank() * size) % 2**64
                drawn = _drawn(model, tokenizer, [prompts[i][1] for i in batch], length, settings, seed)
            for batch, answers in zip(together, gather(drawn), strict=False):
                examples = [prompts[i][0] for i in batch]
                scores = _scores(reward, scorer, answers, examples, settings, job.profile.limits.term_seconds)
                for i, given, values in zip(batch, answers, scores, strict=True):
                    place = max(range(len(values)), key=values.__getitem__)  # of equal ones the first
                    best[i] = [given[place].tokens, given[place].text, values]
            progress.update(ends_at - first)
            if checkpoints.due():
                state = {"weights": {}, "random": random_states(), "best": best, "terms": term_states(reward)}
                checkpoints.save(ends_at, state)
    checkpoints.finish({"best": best}, len(order))
    return finished(checkpoints)


def finished(checkpoints: PartsCheckpoints) -> list[Best]:
    """What `best_answers` found before an interruption, or just now; empty while it has not."""
    return [Best(*row) for row in checkpoints.finished[0]["best"]] if checkpoints.finished else []


def _drawn(
    model: PeftModel,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    length: int,
    settings: DistillSettings,
    seed: int,
) -> list[list[Drawn]]:
    """Several answers to each prompt, which is read once for all of them; other random numbers stay where they were."""
    pad, last, each, device = tokenizer.pad_token_id, ends(tokenizer), settings.num_generations, model.device
    queries = pad_left(prompts, pad).to(device)
    of = torch.arange(len(prompts), device=device).repeat_interleave(each)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        tokens = sample(model, queries, pad, last, length, settings.temperature, of=of).tokens
    is_end = is_any(tokens, last)
    ended = is_end.any(1)
    lengths = torch.where(ended, is_end.int().argmax(1) + 1, tokens.shape[1])
    rows = [
        Drawn(row[:count], decode(tokenizer, row), end)
        for row, count, end in zip(tokens.tolist(), lengths.tolist(), ended.tolist(), strict=True)
    ]
    return [rows[start : start + each] for start in range(0, len(rows), each)]


def _scores(
    reward: Reward,
    scorer: Scorer | None,
    answers: Sequence[Sequence[Drawn]],
    examples: Sequence[Example],
    settings: DistillSettings,
    seconds: float,
) -> list[list[float]]:
    """The rewards of several answers to each example, less the penalty of those that did not end."""
    rows = [(example, answer) for example, given in zip(examples, answers, strict=True) for answer in given]
    values = going_rows(reward, scorer, [answer.text for _, answer in rows], [example for example, _ in rows], seconds)
    scores = []
    for (example, answer), terms in zip(rows, values, strict=True):
        if not math.isfinite(score := weighted_sum(reward, terms)):
            raise UserError(
                f"the weighted sum of the reward's terms is {score} on the answer {quoted(answer.text)} to "
                f"{quoted(example.prompt[-1].content)}; give them smaller weights"
            )
        scores.append(score - settings.missing_eos_penalty * (not answer.ended))
    each = settings.num_generations
    return [scores[start : start + each] for start in range(0, len(scores), each)]


def write_best(path: Path, examples: Sequence[Example], best: Sequence[Best]) -> None:
    """Writes `path`, a row for each prompt."""
    with path.open("w", encoding="utf-8") as file:
        for example, (tokens, text, scores) in zip(examples, best, strict=True):
            prompt = [message._asdict() for message in example.prompt]
            row = {"prompt": prompt, "answer": text, "tokens": tokens, "scores": scores}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def measured(best: Sequence[Best]) -> dict[str, Any]:
    """For the record: how many answers were drawn, the mean reward of all and of the best, and the share of prompts whose
    answers all score the same."""
    return {
        "answers": sum(len(row.scores) for row in best),
        "reward": fmean(score for row in best for score in row.scores),
        "best": fmean(max(row.scores) for row in best),
        "flat": fmean(max(row.scores) - min(row.scores) <= SAME for row in best),
    }


def without_choice(drawn: dict[str, Any], settings: DistillSettings) -> list[str]:
    """A sentence where the answers to most prompts all score the same, so that the first was as good as the best."""
    if drawn["flat"] < MOSTLY:
        return []
    each = settings.num_generations
    why = (
        f"{drawn['flat']:.0%} of the prompts had {each} answers that all scored the same, so none was better: raise "
        f"distill.temperature ({settings.temperature:g}) or distill.num_generations ({each}), or give the reward finer grades"
    )
    return [see("The answers to a prompt do not differ", why)]
