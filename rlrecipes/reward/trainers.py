"""The trainers of a reward model: TRL's on comparisons, squared error on ratings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import RewardConfig, RewardTrainer

from rlrecipes.job import Job
from rlrecipes.model.tokens import pad_right
from rlrecipes.reward.rows import Rows
from rlrecipes.run.best import evaluation
from rlrecipes.run.gradients import whole_rows
from rlrecipes.run.processes import world
from rlrecipes.run.resume import Resumable, training_arguments


class ResumableRewardTrainer(Resumable, RewardTrainer):
    """TRL's `RewardTrainer`, which goes on from our checkpoints; several processes share the texts of a batch."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *others: Any, **named: Any) -> Any:
        """The loss over all pairs, from the scores that all processes have; its gradient flows to this one's own texts."""
        read = model if world() == 1 else _divided(model)
        return super().compute_loss(read, inputs, *others, **named)


class ResumableRegressionTrainer(Resumable, Trainer):
    """Squared error of the score; it goes on from our checkpoints."""

    loss_is_scaled_for_ga = (
        False  # the loss is a micro-batch's mean: Transformers divides by the number of micro-batches
    )

    def compute_loss(self, model: Any, inputs: Mapping[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        read = model if world() == 1 else _divided(model)
        scores = read(input_ids=inputs["ids"], attention_mask=inputs["mask"], use_cache=False).logits.squeeze(-1)
        return nn.functional.mse_loss(scores, inputs["score"])


def _divided(model: Any) -> Callable[..., SequenceClassifierOutput]:
    """The model as several processes call it together: each reads its own texts, and gets the scores of all."""
    trained = next(parameter for parameter in model.parameters() if parameter.requires_grad)

    def read(input_ids: torch.Tensor, **inputs: Any) -> SequenceClassifierOutput:
        def scores(rows: list[int]) -> torch.Tensor:
            mine = {key: part[rows] if isinstance(part, torch.Tensor) else part for key, part in inputs.items()}
            logits: torch.Tensor = model(input_ids=input_ids[rows], **mine).logits
            return logits

        inputs.pop("margin", None)  # TRL hands them to the model, too, which has no use for them
        return SequenceClassifierOutput(logits=whole_rows(scores, len(input_ids), trained))

    return read


def pairwise_trainer(
    job: Job, model: Any, tokenizer: Any, rows: Rows, folder: Path, callbacks: list[Any]
) -> ResumableRewardTrainer:
    """Trains on `comparison_rows`: the chosen answer should score higher (Bradley-Terry)."""
    arguments = training_arguments(RewardConfig, job.profile.reward, folder, job.seed)
    return ResumableRewardTrainer(
        model,
        RewardConfig(**arguments, **evaluation(len(rows.aside)), max_length=None, disable_dropout=False),
        train_dataset=Dataset.from_list(rows.train),
        eval_dataset=Dataset.from_list(rows.aside) if rows.aside else None,
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def regression_trainer(
    job: Job, model: Any, tokenizer: Any, rows: Rows, folder: Path, callbacks: list[Any]
) -> ResumableRegressionTrainer:
    """Trains on `rating_rows`: the score should be the rating's."""

    def collate(batch: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        ids, scores = [row["ids"] for row in batch], [row["score"] for row in batch]
        mask = pad_right([[1] * len(row) for row in ids], 0)
        return {"ids": pad_right(ids, tokenizer.pad_token_id), "mask": mask, "score": torch.tensor(scores)}

    arguments = training_arguments(TrainingArguments, job.profile.reward, folder, job.seed)
    trainer = ResumableRegressionTrainer(
        model,
        TrainingArguments(**arguments, **evaluation(len(rows.aside)), remove_unused_columns=False),
        train_dataset=rows.train,
        eval_dataset=rows.aside or None,
        data_collator=collate,
        callbacks=callbacks,
    )
    # Transformers takes a loss in evaluation only where a batch has labels, or where it is told so.
    trainer.can_return_loss, trainer.label_names = True, []
    return trainer


def start_head(model: nn.Module, seed: int) -> None:
    """Draws the score head from N(0, 1/(H+1)) (arXiv 2403.17031, detail 11): first scores are small at any width."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.endswith("score.modules_to_save.default.weight"):
            width = parameter.shape[1]
            weights = torch.randn(parameter.shape, generator=generator) / (width + 1) ** 0.5
            parameter.data = weights.to(parameter.device, parameter.dtype)
