"""Plain TRL 1.12 RLOO and GRPO: `RLOOTrainer` and `GRPOTrainer` with `peft_config`, a reward model of its own, beta above 0.

With an adapter their reference is the base without it, so there is no second policy. Tuned as far as their settings go:
float32, no activation checkpointing (both are on by default), no logging, saving or reporting, all answers of a batch drawn
together, the same micro-batch as ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from benchmarks import models
from benchmarks.plain_trainers import arguments, prepare
from benchmarks.work import Work, liked, prompts

TRAINERS: dict[str, tuple[Any, Any]] = {"rloo": (RLOOConfig, RLOOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}


def build(work: Work, tokenizer: Any, folder: Path) -> Any:
    """A trainer of `work.algorithm`, before `train()`."""
    kind, trainer_of = TRAINERS[work.algorithm]
    policy = models.causal(work)
    reward = models.frozen_scorer(work, policy) if work.reward == "model" else _count
    trainer = trainer_of(
        model=policy,
        reward_funcs=reward,
        reward_processing_classes=tokenizer if work.reward == "model" else None,
        args=kind(**_arguments(work, folder)),
        train_dataset=Dataset.from_list([{"prompt": _text(ids)} for ids in prompts(work)]),
        processing_class=tokenizer,
        peft_config=models.lora(work),
    )
    prepare(trainer, work)
    return trainer


def _arguments(work: Work, folder: Path) -> dict[str, Any]:
    return arguments(work, folder) | {
        "num_iterations": work.epochs,
        "num_generations": work.answers_each,
        "per_device_train_batch_size": work.micro_batch,
        "max_completion_length": work.answer,
        "temperature": 1.0,
        "adam_epsilon": 1e-5,
    }


def _text(ids: list[int]) -> str:
    """A prompt as TRL takes it; the space behind it keeps its last word and an answer's first apart in the reward model."""
    return "".join(f"w{token} " for token in ids)


def _count(completion_ids: list[list[int]], **rest: Any) -> list[float]:
    """The programmed reward."""
    return [float(sum(map(liked, ids))) for ids in completion_ids]
