"""Who answers in evaluation, and to which held-out prompts: the same for the answers and for their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlrecipes.data.split import sample_by_hash
from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.model.loading import prompt_window
from rlrecipes.model.tokens import answer_length, fitting_prompts
from rlrecipes.recipe import Example
from rlrecipes.reward.strength import any_withheld
from rlrecipes.run.policies import chosen
from rlrecipes.run.stages import Policy


@dataclass(frozen=True)
class Prompts:
    """The held-out prompts that fit the window."""

    examples: Sequence[Example]
    ids: Sequence[Sequence[int]]
    all: int
    """How many there are with those that do not fit."""
    max_tokens: int
    """The most that a prompt may have."""
    length: int
    """The most tokens of an answer."""


def asked(job: Job, model_name: str, tokenizer: Any) -> Prompts:
    """The prompts of an evaluation: `evaluate.limit` of the held-out ones, drawn by hash.

    Raises:
        UserError: none fits.
    """
    length = answer_length(tokenizer, job.data.train.demonstrations, job.profile.ppo.response_length)
    max_tokens = prompt_window(model_name, job.profile.model, length)
    held_out = sample_by_hash(job.profile.evaluate.limit or len(job.data.held_out.prompts), job.data.held_out.prompts)
    fitting = fitting_prompts(tokenizer, held_out, max_tokens)
    return Prompts([example for example, _ in fitting], [ids for _, ids in fitting], len(held_out), max_tokens, length)


def answering(job: Job) -> dict[str, Policy]:
    """The policies that `evaluate.policies` names and that are there: all but those of algorithms that were not run.

    Raises:
        UserError: it names none that is there.
    """
    named = chosen(job.profile.evaluate.policies, job.run, job.profile.run.start)
    policies = {
        name: policy
        for name, policy in named.items()
        if policy.place or policy.stage is None or job.run.done(policy.stage)
    }
    if not policies:
        titles = " and ".join(policy.title for policy in named.values())
        why = any_withheld(job) or "its stage is not made yet"
        raise UserError(f"evaluate.policies names {titles} alone, which is not run: {why}")
    return policies
