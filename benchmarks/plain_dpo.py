"""Plain TRL 1.12 DPO: `DPOTrainer` with `peft_config`, whose reference is the base without the adapter, computed once before.

Tuned as far as its settings go: float32 and no activation checkpointing (bfloat16 and that are its defaults), no logging,
saving or reporting, comparisons as token ids, the same micro-batch as ours. TRL computes the reference while it builds its
trainer, so building is measured here, in both arms.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from benchmarks import models
from benchmarks.plain_trainers import arguments, prepare
from benchmarks.work import Work, comparisons


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
        prepare(trainer, work)
        trainer.train()
        return trainer

    return train


def _arguments(work: Work, folder: Path) -> dict[str, Any]:
    return arguments(work, folder) | {
        "per_device_train_batch_size": work.micro_batch // work.answers_each,
        "precompute_ref_log_probs": True,
        "max_length": None,
    }
