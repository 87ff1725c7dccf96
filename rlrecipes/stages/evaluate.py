"""Evaluation: all policies answer the same held-out prompts; then their answers are scored, and pairs of them compared.

{"prompt": "Translate: …", "references": ["…"], "policies": {"ppo": {"answer": "…", "headline": 0.93, "reward": 1.7}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from rlrecipes.data.split import sample_by_hash
from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.model.adapters import load_adapter, load_policies
from rlrecipes.model.loading import check_model, load_causal, prompt_window
from rlrecipes.model.tokens import answer_length, encode_prompt, fitting_prompts, open_tokenizer
from rlrecipes.policy.answers import Answer, Voice, answer, write_answers
from rlrecipes.policy.endpoint import ask
from rlrecipes.policy.judge import open_judge
from rlrecipes.policy.neural import neural
from rlrecipes.policy.perplexity import perplexity
from rlrecipes.policy.scores import (
    Score,
    Scored,
    divergence,
    divergence_bound,
    metrics,
    pairs,
    samples,
    score_all,
    styles,
)
from rlrecipes.recipe import Example
from rlrecipes.report.verdict import verdict_of
from rlrecipes.reward.head import Scorer
from rlrecipes.reward.model import Learned, open_learned
from rlrecipes.reward.strength import withheld
from rlrecipes.reward.terms import rewards, shown, value_rows
from rlrecipes.run.checkpoint import Checkpoints
from rlrecipes.run.console import say
from rlrecipes.run.policies import chosen
from rlrecipes.run.resume import record_drops
from rlrecipes.run.stages import POLICIES, Policy
from rlrecipes.run.tracking import Tracker

SHOWN = 50
"""Held-out prompts in W&B's table of samples; `samples.jsonl` has all."""


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Writes `folder/answers.jsonl` and `samples.jsonl`; returns each policy's metrics, and the paired differences.

    Raises:
        UserError: PPO alone is to be evaluated, and was not run.
    """
    tokenizer = open_tokenizer(model_name)
    length = answer_length(tokenizer, job.data.train.demonstrations, job.profile.ppo.response_length)
    max_tokens = prompt_window(model_name, job.profile.model, length)
    held_out = sample_by_hash(job.profile.evaluate.limit or len(job.data.held_out.prompts), job.data.held_out.prompts)
    prompts = fitting_prompts(tokenizer, held_out, max_tokens)
    dropped = record_drops("held-out prompts", len(held_out), len(prompts), max_tokens)
    examples, ids = [example for example, _ in prompts], [ids for _, ids in prompts]

    without = withheld(job)
    own = [name for name, policy in POLICIES.items() if policy.stage is None or job.run.done(policy.stage)]
    asked = chosen(job.profile.evaluate.policies, job.run)
    policies = {name: policy for name, policy in asked.items() if name in own or policy.place}
    if not policies:
        raise UserError(f"evaluate.policies names PPO alone, which is not run: {without}")
    model = load_policies(load_causal(model_name, job.profile.model, tokenizer), job.run, own)
    for policy in policies.values():
        if policy.place and policy.role:
            model = load_adapter(model, Path(policy.place), policy.role)
    learned = _learned(job, model, tokenizer)
    scorer = learned.score if learned else None
    model.eval()  # sampling switches dropout off too, but a resumed stage may have nothing left to sample
    checkpoints = Checkpoints(folder, job.profile.checkpoint.seconds, tracker)
    voice = Voice(model, tokenizer, ids)
    answers = answer(
        job, voice, length, policies, checkpoints, lambda policy: _whole_model(job, policy, examples, length)
    )
    write_answers(folder / "answers.jsonl", examples, answers)

    def reward(given: Sequence[Answer]) -> list[float]:
        texts, limit = [answer.text for answer in given], job.profile.limits.term_seconds
        return rewards(job.recipe.reward, scorer, texts, examples, limit)

    def usual(each: Scored) -> dict[str, Any]:
        found = perplexity(voice, each.greedy, examples, job.profile.evaluate.batch_size)
        return {"perplexity": found} if found else {}

    def by(scorer: Scorer) -> Score:
        return lambda given: scorer([(each.prompt, a.text) for each, a in zip(examples, given, strict=True)])

    judge, judge_record = open_judge(job, model, tokenizer, examples)
    disagreement = by(learned.disagreement) if learned and learned.disagreement else None
    scored = score_all(job, policies, answers, examples, reward, judge, disagreement)
    rows = samples(scored, examples)
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8"
    )
    by_encoders = neural(job, scored, examples)
    record: dict[str, Any] = {
        "metrics": {name: metrics(job, each, examples) | by_encoders[name] for name, each in scored.items()},
        "headline": job.metrics[0].name,
        "style": {name: styles(each, examples) | usual(each) for name, each in scored.items()},
        "comparisons": pairs(scored, policies),
        "judge": judge_record,
        "kl": {name: found for name, each in scored.items() if (found := divergence(policies[name], each))},
        "kl_bound": {name: bound for name in scored if (bound := divergence_bound(policies[name])) is not None},
        "examples": len(examples),
        "adapters": {name: f"../{POLICIES[name].stage}/adapter" for name in own if POLICIES[name].stage},
        "withheld": without,
        "elsewhere": {name: policy.place for name, policy in policies.items() if policy.place},
        "too_long": dropped,
        "resumed": checkpoints.resumed,
    }
    if job.profile.evaluate.judge_url:
        record |= _asked(job, record, scored, policies, examples)
    if tracker.wandb_run is not None:
        tracker.show("samples", _shown(job, scorer, scored, examples[:SHOWN]), step=0)
    headlines = {name: found[record["headline"]] for name, found in record["metrics"].items()}
    tracker.summary({"headline": headlines, "verdict": verdict_of({"evaluate": record}).sentence})
    return record


def _asked(
    job: Job,
    record: dict[str, Any],
    scored: Mapping[str, Scored],
    policies: Mapping[str, Policy],
    examples: Sequence[Example],
) -> dict[str, Any]:
    """What the model behind `evaluate.judge_url` says of the last pair of policies; a dead one leaves the record whole."""
    name = next((name for name in reversed([*policies]) if policies[name].over in scored), None)
    if name is None:
        return {"judge": {"missing": "no two policies are compared"}}
    ours, theirs = ([answer.text for answer in scored[each].greedy] for each in (name, str(policies[name].over)))
    judge, wins = ask(job.profile.evaluate, examples, ours, theirs, job.run.root / ".judge")
    if wins is None:
        say(f"  no judge: {judge['missing']}")
        return {"judge": judge}
    pair = f"{name}_over_{policies[name].over}"
    comparisons = {**record["comparisons"], pair: record["comparisons"][pair] | {"judge_win_rate": wins}}
    return {"judge": judge | {"pair": pair}, "comparisons": comparisons}


def _whole_model(job: Job, policy: Policy, examples: Sequence[Example], length: int) -> Voice:
    """A whole model from elsewhere, loaded beside the base as the profile holds that, with its own tokenizer.

    Raises:
        UserError: it cannot be loaded, or a prompt is too long for it.
    """
    check_model(policy.place)
    tokenizer = open_tokenizer(policy.place)
    prompts = [encode_prompt(tokenizer, example.prompt) for example in examples]
    longest, room = max(map(len, prompts)), prompt_window(policy.place, job.profile.model, length)
    if longest > room:
        raise UserError(
            f"evaluate.policies: a prompt has {longest} tokens for {policy.title}, which has room for {room}; raise "
            "model.max_length, or leave it out"
        )
    say(f"  {policy.title}: a whole model, loaded beside the base")
    return Voice(load_causal(policy.place, job.profile.model, tokenizer), tokenizer, prompts)


def _learned(job: Job, model: PeftModel, tokenizer: Any) -> Learned | None:
    """The learned part of the reward; None where it has none."""
    if not job.recipe.reward.learned:
        return None
    settings = job.profile
    return open_learned(job.run.stage("reward"), model, tokenizer, settings.model, settings.evaluate.batch_size)


def _shown(
    job: Job, scorer: Scorer | None, scored: Mapping[str, Scored], examples: Sequence[Example]
) -> list[dict[str, Any]]:
    """The rows of W&B's table of samples: what each policy answered to the same prompt, one below the other."""
    rows: list[list[dict[str, Any]]] = [[] for _ in examples]
    for name, each in scored.items():
        texts = [given.text for given in each.greedy[: len(examples)]]
        values = value_rows(job.recipe.reward, scorer, texts, examples, job.profile.limits.term_seconds)
        for i, (example, text) in enumerate(zip(examples, texts, strict=True)):
            row: dict[str, Any] = {"policy": name, "prompt": example.prompt[-1].content, "answer": text}
            row |= {"reference": next(iter(example.answers), None), "headline": each.headline[i]}
            judged = {} if each.judge is None else {"judge": each.judge[i]}
            rows[i].append(row | shown(job.recipe.reward, values[i]) | judged)
    return [row for of_prompt in rows for row in of_prompt]
