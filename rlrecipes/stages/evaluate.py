"""Evaluation: base, SFT and PPO answer the same held-out prompts; pairs of them are compared.

{"prompt": "Translate: …", "references": ["…"], "policies": {"ppo": {"answer": "…", "headline": 0.93, "reward": 1.7}}}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from rlrecipes.data.split import sample_by_hash
from rlrecipes.job import Job
from rlrecipes.metrics import Interval, estimate, mean_interval
from rlrecipes.model.adapters import adapter, load_policies
from rlrecipes.model.forward import device
from rlrecipes.model.loading import load_causal, prompt_window
from rlrecipes.model.sampling import sample
from rlrecipes.model.tokens import answer_length, decode, ends, fitting_prompts, open_tokenizer, pad_left
from rlrecipes.reward.model import Scorer, open_learned
from rlrecipes.reward.terms import rewards as term_rewards
from rlrecipes.run.checkpoint import Checkpoints
from rlrecipes.run.console import bar
from rlrecipes.run.interrupts import finishing_first
from rlrecipes.run.resume import record_drops
from rlrecipes.run.stages import POLICIES
from rlrecipes.run.tracking import Tracker


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Writes `folder/samples.jsonl` and returns each policy's metrics, the paired gains and the headline's name."""
    tokenizer = open_tokenizer(model_name)
    length = answer_length(tokenizer, job.data.train.demonstrations, job.profile.ppo.response_length)
    max_tokens = prompt_window(model_name, job.profile.model, length)
    held_out = sample_by_hash(job.profile.evaluate.limit or len(job.data.held_out.prompts), job.data.held_out.prompts)
    prompts = fitting_prompts(tokenizer, held_out, max_tokens)
    dropped = record_drops("held-out prompts", len(held_out), len(prompts), max_tokens)
    examples = [example for example, _ in prompts]

    model = load_policies(load_causal(model_name, job.profile.model, tokenizer), job.run, POLICIES)
    scorer = _scorer(job, model, tokenizer)
    model.eval()  # sampling switches dropout off too, but a resumed stage may have nothing left to sample
    checkpoints = Checkpoints(folder, job.profile.checkpoint.seconds, tracker)
    answers, sampled = _answer(job, model, tokenizer, [ids for _, ids in prompts], length, checkpoints)
    limit = job.profile.limits.term_seconds
    rewards = {policy: term_rewards(job.recipe.reward, scorer, answers[policy], examples, limit) for policy in POLICIES}

    headline = job.metrics[0]
    score = headline.score
    assert score is not None, f"{job.recipe.name}: a headline must score answers one by one"

    def headline_scores(texts: dict[str, list[str]]) -> dict[str, list[float]]:
        return {policy: [score(a, e) for a, e in zip(texts[policy], examples, strict=True)] for policy in POLICIES}

    metrics = {
        policy: {
            **{metric.name: estimate(metric, answers[policy], examples).as_json() for metric in job.metrics},
            f"{headline.name}_sampled": estimate(headline, sampled[policy], examples).as_json(),
            "reward": mean_interval(rewards[policy]).as_json(),
        }
        for policy in POLICIES
    }
    scores, sampled_scores = headline_scores(answers), headline_scores(sampled)
    comparisons = {
        f"{better}_over_{worse}": _compare(scores, sampled_scores, rewards, better, worse)
        for better, worse in ((name, policy.over) for name, policy in POLICIES.items() if policy.over)
    }
    rows = [
        {
            "prompt": [message._asdict() for message in example.prompt],
            "references": list(example.answers),
            "policies": {
                policy: {"answer": answers[policy][i], "headline": scores[policy][i], "reward": rewards[policy][i]}
                for policy in POLICIES
            },
        }
        for i, example in enumerate(examples)
    ]
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8"
    )
    _track(tracker, metrics, comparisons, rows)
    adapters = {name: f"../{policy.stage}/adapter" for name, policy in POLICIES.items() if policy.stage}
    return {
        "metrics": metrics,
        "headline": headline.name,
        "comparisons": comparisons,
        "examples": len(examples),
        "adapters": adapters,
        "too_long": dropped,
        "resumed": checkpoints.resumed,
    }


def _answer(
    job: Job,
    model: PeftModel,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    length: int,
    checkpoints: Checkpoints,
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Every policy's greedy answers, and its answers at temperature 1 from the same random numbers."""
    size = job.profile.evaluate.batch_size
    # A batch has prompts of like length, which need less padding; the answers go back to their places.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    pad, last = tokenizer.pad_token_id, ends(tokenizer)
    batches = [(policy, start) for policy in POLICIES for start in range(0, len(order), size)]
    checkpoint = checkpoints.newest()
    start_batch = checkpoint.step if checkpoint else 0
    empty = {kind: {policy: [""] * len(prompts) for policy in POLICIES} for kind in ("greedy", "sampled")}
    answers: dict[str, dict[str, list[str]]] = checkpoint.state if checkpoint else empty
    with finishing_first(), bar("evaluate", len(batches), start_batch) as progress:
        for number, (policy, start) in enumerate(batches[start_batch:], start_batch + 1):
            torch.manual_seed(job.seed + start)  # the batch's own, so that no answer depends on what ran before it
            places = order[start : start + size]
            queries = pad_left([prompts[i] for i in places], pad).to(device())
            with adapter(model, POLICIES[policy].role):
                for kind, temperature in (("greedy", 0.0), ("sampled", 1.0)):
                    rows = sample(model, queries, pad, last, length, temperature).tokens
                    for i, row in zip(places, rows, strict=True):
                        answers[kind][policy][i] = decode(tokenizer, row)
            progress.update(1)
            if checkpoints.due():
                checkpoints.save(number, answers)
    return answers["greedy"], answers["sampled"]


def _scorer(job: Job, model: PeftModel, tokenizer: Any) -> Scorer | None:
    """The learned part of the reward; None where it has none."""
    if not job.recipe.reward.learned:
        return None
    settings = job.profile
    return open_learned(job.run.stage("reward"), model, tokenizer, settings.model, settings.evaluate.batch_size)[1]


def _compare(
    scores: dict[str, list[float]],
    sampled: dict[str, list[float]],
    rewards: dict[str, list[float]],
    better: str,
    worse: str,
) -> dict[str, dict[str, float]]:
    """Paired differences over the same prompts; a win rate counts a tie as half a win."""

    def gain(values: dict[str, list[float]]) -> Interval:
        return mean_interval([a - b for a, b in zip(values[better], values[worse], strict=True)])

    def wins(values: dict[str, list[float]]) -> Interval:
        return mean_interval([(a > b) + (a == b) / 2 for a, b in zip(values[better], values[worse], strict=True)])

    return {
        "gain": gain(scores).as_json(),
        "win_rate": wins(scores).as_json(),
        "sampled_gain": gain(sampled).as_json(),
        "reward_gain": gain(rewards).as_json(),
        "reward_win_rate": wins(rewards).as_json(),
    }


def _track(
    tracker: Tracker, metrics: dict[str, Any], comparisons: dict[str, Any], rows: Sequence[dict[str, Any]]
) -> None:
    flat = {f"{policy}/{name}": v["value"] for policy, named in metrics.items() for name, v in named.items()}
    flat |= {f"{pair}/{name}": v["value"] for pair, named in comparisons.items() for name, v in named.items()}
    tracker.summary(flat)
    table = [
        {"prompt": r["prompt"][-1]["content"], **{p: a["answer"] for p, a in r["policies"].items()}} for r in rows[:50]
    ]
    tracker.table("answers", table, step=0)
