"""All policies answer the same held-out prompts; `stages.evaluate` scores the answers, as often as one likes.

{"prompt": […], "references": ["…"], "answers": {"ppo": {"greedy": {"text": "…", "ended": true, "kl": null}, …}, …}}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.model.adapters import load_adapter, load_policies
from rlrecipes.model.loading import check_model, load_causal, prompt_window
from rlrecipes.model.tokens import encode_prompt, open_tokenizer
from rlrecipes.policy.answers import FILE, Voice, answer, write_answers
from rlrecipes.policy.asked import answering, asked
from rlrecipes.recipe import Example
from rlrecipes.run.checkpoint import Checkpoints
from rlrecipes.run.console import say
from rlrecipes.run.resume import record_drops
from rlrecipes.run.stages import POLICIES, Policy
from rlrecipes.run.tracking import Tracker


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Writes `folder/answers.jsonl`, a row for each prompt, and returns the stage's record.

    Raises:
        UserError: PPO alone is to be evaluated, and was not run.
    """
    tokenizer = open_tokenizer(model_name)
    prompts = asked(job, model_name, tokenizer)
    limit = job.profile.model.max_length - prompts.length
    dropped = record_drops("held-out prompts", prompts.all, len(prompts.examples), prompts.max_tokens, limit)
    policies = answering(job)
    own = [name for name, policy in POLICIES.items() if policy.stage is None or job.run.done(policy.stage)]
    model = load_policies(load_causal(model_name, job.profile.model, tokenizer), job.run, own)
    for policy in policies.values():
        if policy.place and policy.role:
            model = load_adapter(model, Path(policy.place), policy.role)
    model.eval()  # sampling switches dropout off too, but a resumed stage may have nothing left to sample
    checkpoints = Checkpoints(folder, job.profile.checkpoint.seconds, tracker)
    answers = answer(
        job,
        Voice(model, tokenizer, prompts.ids),
        prompts.length,
        policies,
        checkpoints,
        lambda policy: _whole_model(job, policy, prompts.examples, prompts.length),
    )
    write_answers(folder / FILE, prompts.examples, answers)
    return {
        "metrics": {"answers": sum(len(rows) for given in answers.values() for rows in given.values())},
        "examples": len(prompts.examples),
        "adapters": {name: f"../{POLICIES[name].stage}/adapter" for name in own if POLICIES[name].stage},
        "too_long": dropped,
        "resumed": checkpoints.resumed,
    }


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
