"""Evaluation: the answers of all policies to the same held-out prompts are scored, and pairs of policies compared.

{"prompt": "Translate: …", "references": ["…"], "policies": {"ppo": {"answer": "…", "headline": 0.93, "reward": 1.7}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from rlrecipes.job import Job
from rlrecipes.model.adapters import begin_adapter
from rlrecipes.model.loading import load_causal
from rlrecipes.model.tokens import open_tokenizer
from rlrecipes.policy.answers import FILE, Answer, Voice, read_answers
from rlrecipes.policy.asked import answering, asked
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
from rlrecipes.reward.strength import all_withheld, any_withheld
from rlrecipes.reward.terms import rewards, shown, value_rows
from rlrecipes.run.console import say
from rlrecipes.run.processes import alone, is_first
from rlrecipes.run.stages import Policy
from rlrecipes.run.tracking import Tracker

SHOWN = 50
"""Held-out prompts in W&B's table of samples; `samples.jsonl` has all."""


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Writes `folder/samples.jsonl`; returns each policy's metrics, and the paired differences. No policy answers here."""
    tokenizer = open_tokenizer(model_name)
    prompts, policies, answered = asked(job, model_name, tokenizer), answering(job), job.run.need("answers")
    examples, answers = prompts.examples, read_answers(job.run.stage("answers") / FILE)
    base = load_causal(model_name, job.profile.model, tokenizer)
    model = begin_adapter(base, job.start, "reference", job.profile.lora)
    learned = _learned(job, model, tokenizer)
    scorer = learned.score if learned else None
    model.eval()
    voice = Voice(model, tokenizer, prompts.ids)

    def reward(given: Sequence[Answer]) -> list[float]:
        texts, limit = [answer.text for answer in given], job.profile.limits.term_seconds
        return rewards(job.recipe.reward, scorer, texts, examples, limit)

    def by(scorer: Scorer) -> Score:
        return lambda given: scorer([(each.prompt, a.text) for each, a in zip(examples, given, strict=True)])

    judge, judge_record = open_judge(job, model, tokenizer, examples)
    disagreement = by(learned.disagreement) if learned and learned.disagreement else None
    scored = score_all(job, policies, answers, examples, reward, judge, disagreement)
    if job.profile.evaluate.pass_at and not any(each.passed for each in scored.values()):
        say(f"  no pass@k: {job.metrics[0].name}, the headline, is not 0 or 1 for every answer (evaluate.pass_at)")
    usual = {
        name: perplexity(voice, each.greedy, examples, job.profile.evaluate.batch_size) for name, each in scored.items()
    }
    if not is_first():  # what is left reads no more texts, or is somebody's own
        return {}
    rows = samples(scored, examples)
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8"
    )
    by_encoders = neural(job, scored, examples)
    record: dict[str, Any] = {
        "metrics": {name: metrics(job, each, examples) | by_encoders[name] for name, each in scored.items()},
        "headline": job.metrics[0].name,
        "style": {
            name: styles(each, examples) | ({"perplexity": usual[name]} if usual[name] else {})
            for name, each in scored.items()
        },
        "comparisons": pairs(scored, policies),
        "judge": judge_record,
        "kl": {name: found for name, each in scored.items() if (found := divergence(policies[name], each))},
        "kl_bound": {name: bound for name in scored if (bound := divergence_bound(policies[name])) is not None},
        "examples": len(examples),
        "adapters": answered["adapters"],
        "withheld": any_withheld(job),
        "not_run": all_withheld(job),
        "elsewhere": {name: policy.place for name, policy in policies.items() if policy.place},
        "too_long": answered["too_long"],
    }
    if job.profile.evaluate.judge_url:
        record |= _asked(job, record, scored, policies, examples)
    if tracker.wandb_run is not None:
        with alone():
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
