"""All policies answer the same held-out prompts; `stages.evaluate` scores the answers, as often as one likes.

{"prompt": […], "references": ["…"], "answers": {"ppo": {"greedy": {"text": "…", "ended": true, "kl": null}, …}, …}}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.model.adapters import load_policies, take_adapter
from rlrecipes.model.loading import check_model, load_causal, window
from rlrecipes.model.tokens import encode_prompt, open_tokenizer
from rlrecipes.policy.answers import FILE, Voice, answer, write_answers
from rlrecipes.policy.asked import answering, asked
from rlrecipes.profile import ModelSettings
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
    for name, policy in policies.items():
        if policy.place and policy.role:
            model = take_adapter(model, Path(policy.place), policy.role, f"evaluate.policies: {name}")
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
        "answer_length": prompts.length,
        "adapters": {name: f"../{POLICIES[name].stage}/adapter" for name in own if POLICIES[name].stage},
        "too_long": dropped,
        "resumed": checkpoints.resumed,
    }


def _whole_model(job: Job, policy: Policy, examples: Sequence[Example], length: int) -> Voice:
    """A whole model from elsewhere, loaded beside the base as the profile holds that, with its own tokenizer.

    Raises:
        UserError: it cannot be loaded, or a prompt is too long for it.
    """
    check_model(policy.place, job.profile.model)
    tokenizer = open_tokenizer(policy.place)
    prompts = [encode_prompt(tokenizer, example.prompt) for example in examples]
    _check_window(policy, job.profile.model, max(map(len, prompts)) + length)
    say(f"  {policy.title}: a whole model, loaded beside the base")
    return Voice(load_causal(policy.place, job.profile.model, tokenizer), tokenizer, prompts)


def _check_window(policy: Policy, settings: ModelSettings, needed: int) -> None:
    """Refuses a model whose window is shorter than the `needed` tokens of the longest prompt and its answer.

    Its tokenizer may need more than the base's, by whose tokens the prompts were chosen. All stages stand on
    `model.max_length`, so that another one is for another run, and helps only a model with such a window.

    Raises:
        UserError: with what helps.
    """
    if (room := window(policy.place, settings)) >= needed:
        return
    roomier = window(policy.place, dataclasses.replace(settings, max_length=needed)) == needed
    instead = f"a new run with model.max_length={needed}" if roomier else "a model with a longer window"
    whose = "model.max_length" if room == settings.max_length else "its own window"
    raise UserError(
        f"evaluate.policies: a prompt with its answer takes {needed} tokens of {policy.title}, which has room for {room} "
        f"({whose}); leave it out, or take {instead}"
    )
