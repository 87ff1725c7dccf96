"""Plain TRL 1.12 RLOO and GRPO: `RLOOTrainer` and `GRPOTrainer` with `peft_config`, a reward model of its own, beta above 0.

With an adapter their reference is the base without it, so there is no second policy. Tuned as far as their settings go:
float32, no activation checkpointing (both are on by default), no logging, saving or reporting, all answers of a batch drawn
together, the same micro-batch as ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from benchmarks import models
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
    models.fill(trainer.model, "default", work.seed + 3, works=False)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:  # TRL makes them bfloat16 on a 4-bit base, which a CPU multiplies slowly
            parameter.data = parameter.data.float()
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _arguments(work: Work, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "seed": work.seed,
        "max_steps": work.updates * work.epochs,
        "num_iterations": work.epochs,
        "num_generations": work.answers_each,
        "per_device_train_batch_size": work.micro_batch,
        "gradient_accumulation_steps": work.batch // work.micro_batch,
        "max_completion_length": work.answer,
        "temperature": 1.0,
        "beta": models.KL_WEIGHT,
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": work.schedule,
        "adam_epsilon": 1e-5,
        "max_grad_norm": work.max_grad_norm,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": work.gradient_checkpointing,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def _text(ids: list[int]) -> str:
    """A prompt as TRL takes it; the space behind it keeps its last word and an answer's first apart in the reward model."""
    return "".join(f"w{token} " for token in ids)


def _count(completion_ids: list[list[int]], **rest: Any) -> list[float]:
    """The programmed reward."""
    return [float(sum(map(liked, ids))) for ids in completion_ids]
