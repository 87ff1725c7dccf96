"""What the arms of TRL's own trainers share: settings that mean the same in each, and where training begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback

from benchmarks import models
from benchmarks.work import Work
from rlrecipes.run.resume import lora_in_float32


def arguments(work: Work, folder: Path) -> dict[str, Any]:
    """Keyword arguments of `DPOConfig`, `RLOOConfig` and `GRPOConfig`; nothing is logged or saved."""
    return {
        "output_dir": str(folder),
        "seed": work.seed,
        "max_steps": work.updates * work.epochs,
        "gradient_accumulation_steps": work.batch // work.micro_batch,
        "beta": models.KL_WEIGHT,
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


def prepare(trainer: Any, work: Work) -> None:
    """Puts the adapter to where ours begins, and takes away what prints."""
    lora_in_float32(trainer.model)  # bfloat16, as TRL makes them on a 4-bit base, is slow on a CPU and rounds the start
    models.fill(trainer.model, "default", work.seed + 3, works=False)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
