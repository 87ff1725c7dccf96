"""Plain TRL 1.12 DPO: `DPOTrainer` with `peft_config`, whose reference is the base without the adapter, computed once before.

Tuned as far as its settings go: float32 and no activation checkpointing (bfloat16 and that are its defaults), no logging,
saving or reporting, comparisons as token ids, the same micro-batch as ours. TRL computes the reference while it builds its
trainer, so building is measured here, in both arms.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback
from trl import DPOConfig, DPOTrainer

from benchmarks import models
from benchmarks.work import Work, comparisons
from rlrecipes.run.resume import lora_in_float32


class OfTokens(DPOTrainer):
    """TRL's trainer on token ids, as ours: neither arm's time has tokenizing in it."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def begin(work: Work, tokenizer: Any, folder: Path) -> Callable[[], OfTokens]:
    """What makes the trainer on a base that is there, trains it and returns it."""
    base, rows = models.causal(work), Dataset.from_list(comparisons(work))

    def train() -> OfTokens:
        trainer = OfTokens(
            model=base,
            args=DPOConfig(**_arguments(work, folder)),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=models.lora(work),
        )
        lora_in_float32(trainer.model)  # bfloat16, as TRL makes them on a 4-bit base, is slow on a CPU
        models.fill(trainer.model, "default", work.seed + 3, works=False)
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train()
        return trainer

    return train


def _arguments(work: Work, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "seed": work.seed,
        "max_steps": work.updates * work.epochs,
        "per_device_train_batch_size": work.micro_batch // work.answers_each,
        "gradient_accumulation_steps": work.batch // work.micro_batch,
        "precompute_ref_log_probs": True,
        "beta": models.KL_WEIGHT,
        "max_length": None,
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": work.schedule,
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
