"""TRL's trainer of supervised fine-tuning behind our checkpoints: SFT gives it demonstrations, `distill` a policy's answers.

{"input_ids": [1, 7, 9, 4, 2], "completion_mask": [0, 0, 0, 1, 1]}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rlrecipes.model.tokens import Encoded
from rlrecipes.profile import TrainingSettings
from rlrecipes.run.best import evaluation
from rlrecipes.run.gradients import own_rows, whole_loss
from rlrecipes.run.processes import add_up, world
from rlrecipes.run.resume import Resumable, lora_in_float32, training_arguments
from rlrecipes.run.tracking import remove_printer


class ResumableSFTTrainer(Resumable, SFTTrainer):
    """TRL's trainer, which goes on from our checkpoints, and divides the rows of a batch among several processes."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of all rows, with the gradient of this process's own; it is a mean over the whole batch's tokens."""
        if world() == 1:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rows, idle = own_rows(inputs)
        if idle:
            rows["labels"] = torch.full_like(rows["labels"], -100)
        gathered = self.accelerator.gather_for_metrics
        # What TRL gathers it then adds up.
        self.accelerator.gather_for_metrics = lambda part: add_up(part.detach() * (not idle))
        try:
            loss, outputs = super().compute_loss(model, rows, True, num_items_in_batch)
        finally:
            self.accelerator.gather_for_metrics = gathered
        if num_items_in_batch is None or not self.model_accepts_loss_kwargs:  # a mean over the rows' own tokens
            own, all_of_them = ((labels[..., 1:] != -100).sum() for labels in (rows["labels"], inputs["labels"]))
            loss = loss * own / all_of_them
        loss = whole_loss(loss)
        return (loss, outputs) if return_outputs else loss


def sft_trainer(
    settings: TrainingSettings,
    seed: int,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Encoded],
    aside: Sequence[Encoded],
    folder: Path,
    callbacks: list[Any],
) -> ResumableSFTTrainer:
    """Trains the active adapter of `model` on the answers of `rows`; those `aside` say which step to keep.

    On a quantized base TRL rounds the adapter to bfloat16; it comes out in float32 again, with the rounded weights.
    """
    trainer = ResumableSFTTrainer(
        model,
        SFTConfig(
            **training_arguments(SFTConfig, settings, folder, seed),
            **evaluation(len(aside)),
            max_length=None,
            completion_only_loss=True,
        ),
        train_dataset=_dataset(rows),
        eval_dataset=_dataset(aside) if aside else None,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    remove_printer(trainer)
    lora_in_float32(model)
    return trainer


def _dataset(rows: Sequence[Encoded]) -> Dataset:
    """Rows as TRL reads them: their ids, and a mask that is 1 on the answer."""
    return Dataset.from_list(
        [{"input_ids": row.ids, "completion_mask": [0] * len(row.prompt) + [1] * len(row.answer)} for row in rows]
    )
