"""The same job through this project's trainer: one base, and policy, reference and reward model as its adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback

from benchmarks import models
from benchmarks.work import Work, liked, prompts
from rlrecipes.model.adapters import add_in_place
from rlrecipes.policy.trainer import PolicyTrainer
from rlrecipes.policy.training import TRAINERS
from rlrecipes.profile import GRPOSettings, PPOSettings, RLOOSettings
from rlrecipes.recipe import Example, Reward, Term, user
from rlrecipes.reward.head import ScoreHead


def build(work: Work, tokenizer: Any, folder: Path, base: Any = None) -> Any:
    """A trainer on `base`, or on the base that `work` describes."""
    settings = _settings(work)
    model = adapters(work, models.causal(work) if base is None else base)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    trainer = TRAINERS[work.algorithm](
        args=models.arguments(work, folder),
        model=model,
        tokenizer=tokenizer,
        prompts=[(Example(user("a prompt"), ("an answer",)), ids) for ids in prompts(work)],
        reward=_reward(work),
        head=ScoreHead(models.head(work).to(model.device), 0.0, 1.0) if work.reward == "model" else None,
        settings=settings,
    )
    _start_value(trainer, work)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _settings(work: Work) -> PPOSettings | RLOOSettings | GRPOSettings:
    common: dict[str, Any] = {
        "total_episodes": work.batch * work.updates,
        "per_device_train_batch_size": work.micro_batch,
        "gradient_accumulation_steps": work.batch // work.micro_batch,
        "local_rollout_forward_batch_size": work.rollout_batch or work.batch,
        "learning_rate": work.learning_rate,
        "max_grad_norm": work.max_grad_norm,
        "gradient_checkpointing": work.gradient_checkpointing,
        "missing_eos_penalty": work.missing_eos_penalty,
        "reward_clip": 0.0,  # plain TRL has none
        "num_sample_generations": 0,
        "dense_rollout": work.dense_rollout,
    }
    if work.algorithm == "ppo":
        return PPOSettings(**common, num_ppo_epochs=work.epochs, response_length=work.answer, value=work.value)
    kind: type[RLOOSettings] | type[GRPOSettings] = RLOOSettings if work.algorithm == "rloo" else GRPOSettings
    return kind(**common, num_generations=work.answers_each, num_iterations=work.epochs, beta=models.KL_WEIGHT)


def adapters(work: Work, base: Any) -> PeftModel:
    """The base with its roles; policy and reference do nothing yet, reward and value are the random reward model's."""
    model = PeftModel(base, models.lora(work), adapter_name="policy")
    roles = ["reference"] + ["reward"] * (work.reward == "model") + ["value"] * (work.value == "adapter")
    for role in roles:
        model.add_adapter(role, models.lora(work))
    for role in ("policy", "reference"):
        models.fill(model, role, work.seed + 3, works=False)
    for role in ("reward", "value"):
        models.fill(model, role, work.seed + 1)
    for role in ("policy", *roles):
        add_in_place(model, role)  # as `load_adapter` does
    model.set_adapter("policy")
    return model


def _start_value(trainer: PolicyTrainer, work: Work) -> None:
    """A value adapter starts with the reward model's head, as plain TRL's value model does; on the trunk it starts at 0."""
    if work.value == "adapter":
        score = trainer.model.value_model.score
        score.weight.data.copy_(models.head(work))
        if score.bias is not None:
            torch.nn.init.zeros_(score.bias)


def _reward(work: Work) -> Reward:
    if work.reward == "model":
        return Reward(learned=1.0)

    def count(prompt: Any, answer: str, example: Example) -> float:
        return sum(liked(int(word[1:])) for word in answer.split())

    return Reward(learned=0.0, terms=(Term("liked", count, weight=1.0),))
