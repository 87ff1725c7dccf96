"""DPO as `rlrecipes.stages.dpo` does it: the reference once, under the adapter that does nothing yet, then the steps."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import get_peft_model
from transformers import PrinterCallback

from benchmarks import models
from benchmarks.work import PAD, Work, comparisons
from rlrecipes.policy.dpo_trainer import ResumableDPOTrainer, dpo_trainer, reference_logprobs, with_reference
from rlrecipes.profile import DPOSettings
from rlrecipes.run.checkpoint import PartsCheckpoints, set_trainable, trainable
from rlrecipes.run.resume import lora_in_float32


def begin(work: Work, tokenizer: Any, folder: Path) -> Callable[[], ResumableDPOTrainer]:
    """What makes the trainer on a base that is there, trains it and returns it."""
    base, rows = models.causal(work), comparisons(work)
    # Of its own: in the folder of a run before, the stage would go on with the reference that is there.
    draft = Path(tempfile.mkdtemp(dir=folder))

    def train() -> ResumableDPOTrainer:
        settings = _settings(work)
        model = get_peft_model(base, models.lora(work))
        models.fill(model, "default", work.seed + 3, works=False)
        checkpoints = PartsCheckpoints(draft, math.inf, None, 1)
        reference = reference_logprobs(model, rows, settings.per_device_train_batch_size, PAD, checkpoints)
        start = {name: tensor.to("cpu", copy=True) for name, tensor in trainable(model).items()}
        complete = with_reference(rows, reference)
        trainer = dpo_trainer(settings, work.seed, model, tokenizer, complete, (), draft, [])
        trainer.remove_callback(PrinterCallback)
        lora_in_float32(model)
        set_trainable(model, start)
        trainer.train_from(checkpoints, DPOSettings.table)
        return trainer

    return train


def _settings(work: Work) -> DPOSettings:
    steps = work.updates * work.epochs
    return DPOSettings(
        max_steps=steps,
        per_device_train_batch_size=work.micro_batch // work.answers_each,
        gradient_accumulation_steps=work.batch // work.micro_batch,
        learning_rate=work.learning_rate,
        lr_scheduler_type="linear" if work.schedule == "linear" else "constant",
        max_grad_norm=work.max_grad_norm,
        gradient_checkpointing=work.gradient_checkpointing,
        beta=models.KL_WEIGHT,
        logging_steps=steps + 1,  # the other arm logs nothing either
    )
