"""The reward model: an adapter and a score head that prefer the chosen answer (`trl.RewardTrainer`).

It starts from the SFT adapter, so that it reads answers as the policy writes them. Its scores are standardised afterwards
(mean 0, standard deviation 1 over the demonstrations), as in arXiv 1909.08593: any shift of a pairwise model's scores gives
the same preferences, but PPO's reward clip, KL weight and programmatic terms are measured against them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from trl import RewardConfig, RewardTrainer

from rlrecipes.checkpoint import Checkpoints
from rlrecipes.checks import vocabulary
from rlrecipes.console import say
from rlrecipes.encoding import fitting_comparisons, fitting_examples, pad_right
from rlrecipes.job import Job
from rlrecipes.metrics import mean_interval
from rlrecipes.models import add_lora, copy_lora, device, load_scorer, open_tokenizer, window
from rlrecipes.run import write_json
from rlrecipes.tracking import Tracker, progress, remove_printer
from rlrecipes.training import (
    Resumable,
    check_finite,
    check_rows,
    length_of,
    lora_in_float32,
    record_drops,
    training_arguments,
)

SCALED_ON = 512
"""Demonstrations that the scores are standardised over."""


class ResumableRewardTrainer(Resumable, RewardTrainer):
    """TRL's, going on from our checkpoints."""


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Trains the adapter and its head into `folder/adapter`, the scale beside it, and measures the held-out accuracy."""
    tokenizer = open_tokenizer(model_name)
    longest = window(model_name, job.profile.model)
    rows = fitting_comparisons(tokenizer, job.data.comparisons, longest)
    dropped = record_drops("comparisons", len(job.data.comparisons), len(rows), longest)
    settings = job.profile.reward
    check_rows("comparisons", len(rows), settings.per_device_train_batch_size, "reward.per_device_train_batch_size")
    say(f"  {length_of(settings)} on {len(rows)} comparisons")

    model = add_lora(load_scorer(model_name, job.profile.model, tokenizer), job.profile.lora, "SEQ_CLS")
    copy_lora(model, job.run.stage("sft") / "adapter", "default")
    trainer = ResumableRewardTrainer(
        model,
        RewardConfig(**training_arguments(settings, folder, job.seed), max_length=None, disable_dropout=False),
        train_dataset=Dataset.from_list(
            [{"chosen_ids": chosen, "rejected_ids": rejected} for _, chosen, rejected in rows]
        ),
        processing_class=tokenizer,
        callbacks=[progress("reward", tracker)],
    )
    remove_printer(trainer)
    lora_in_float32(model)
    _start_head(model, job.seed)
    checkpoints = Checkpoints(folder, job.profile.checkpoint.seconds, tracker)
    loss = trainer.train_from(checkpoints)
    check_finite(loss, "reward", "reward.learning_rate", checkpoints)
    model.save_pretrained(folder / "adapter")

    examples = fitting_examples(tokenizer, job.data.demonstrations[:SCALED_ON], longest)
    scores = _scores(model, [ids.ids for _, ids in examples], tokenizer.pad_token_id)
    write_json(folder / "scale.json", {"mean": statistics.fmean(scores), "std": statistics.pstdev(scores) or 1.0})
    metrics = {"train_loss": loss, **_held_out_accuracy(job, model, tokenizer, longest)}
    return {
        "metrics": metrics,
        "adapters": {"sft": "../sft/adapter", "reward": "adapter"},
        "too_long": dropped,
        "vocabulary": vocabulary(tokenizer),
        "resumed": checkpoints.resumed,
    }


def _start_head(model: nn.Module, seed: int) -> None:
    """N(0, 1/(d+1)) (arXiv 2403.17031, detail 11): first scores are small, whatever the width."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.endswith("score.modules_to_save.default.weight"):
            width = parameter.shape[1]
            fresh = torch.randn(parameter.shape, generator=generator) / (width + 1) ** 0.5
            parameter.data = fresh.to(parameter.device, parameter.dtype)


@torch.no_grad()
def _scores(model: nn.Module, rows: Sequence[Sequence[int]], pad: int, batch_size: int = 64) -> list[float]:
    """Raw scores of whole sequences, `[rows]`."""
    model.eval()
    scores: list[float] = []
    for start in range(0, len(rows), batch_size):
        ids = pad_right(rows[start : start + batch_size], pad).to(device())
        logits = model(input_ids=ids, attention_mask=(ids != pad).long(), use_cache=False).logits
        scores += logits.squeeze(-1).float().tolist()
    return scores


def _held_out_accuracy(job: Job, model: nn.Module, tokenizer: Any, longest: int) -> dict[str, Any]:
    """How often the chosen answer scores higher; and what always preferring the longer one would reach."""
    rows = fitting_comparisons(tokenizer, job.data.held_out_comparisons, longest)
    if not rows:
        return {}
    chosen = _scores(model, [row[1] for row in rows], tokenizer.pad_token_id)
    rejected = _scores(model, [row[2] for row in rows], tokenizer.pad_token_id)
    won = [_half(a, b) for a, b in zip(chosen, rejected, strict=True)]
    metrics: dict[str, Any] = {
        "accuracy": mean_interval(won).as_json(),
        "longer_wins": mean_interval([_half(len(row[1]), len(row[2])) for row in rows]).as_json(),
        "held_out_comparisons": len(rows),
    }
    flipped = [row[0].flipped for row in rows]
    if None not in flipped:
        clean = [1 - win if flip else win for win, flip in zip(won, flipped, strict=True)]
        metrics["ceiling"] = 1 - statistics.fmean(map(float, map(bool, flipped)))
        metrics["accuracy_without_noise"] = mean_interval(clean).as_json()
    return metrics


def _half(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0
