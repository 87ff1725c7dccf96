"""Trains a reward model from a job's comparisons or ratings: an adapter that starts as that of SFT, and a score head.

The reward model that PPO climbs and the judge of evaluation are made this way, on rows that have no prompt in common.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rlrecipes.job import Job
from rlrecipes.model.adapters import add_lora, check_runs, copy_lora, unmoved
from rlrecipes.model.loading import load_scorer, window
from rlrecipes.model.tokens import open_tokenizer, vocabulary
from rlrecipes.reward.agreement import measure, write_scale
from rlrecipes.reward.model import as_policy
from rlrecipes.reward.rows import comparison_rows, rating_rows
from rlrecipes.reward.trainers import pairwise_trainer, regression_trainer, start_head
from rlrecipes.run.best import Best
from rlrecipes.run.checkpoint import Checkpoints
from rlrecipes.run.resume import lora_in_float32
from rlrecipes.run.tracking import Tracker, progress, remove_printer


def train(job: Job, model_name: str, folder: Path, tracker: Tracker, stage: str) -> dict[str, Any]:
    """Writes the adapter with its head to `folder/adapter` and the scale beside it; measures them on held-out rows.

    Raises:
        UserError: the rows do not fit, or a loss or gradient is NaN.
    """
    tokenizer = open_tokenizer(model_name)
    max_tokens = window(model_name, job.profile.model)
    prepare = comparison_rows if job.objective == "pairwise" else rating_rows
    rows = prepare(job, tokenizer, max_tokens)
    model = add_lora(load_scorer(model_name, job.profile.model, tokenizer), job.profile.lora, "SEQ_CLS")
    check_runs(model, job.profile.lora.target_modules)
    copy_lora(model, job.run.stage("sft") / "adapter", "default")
    build = pairwise_trainer if job.objective == "pairwise" else regression_trainer
    trainer = build(job, model, tokenizer, rows, folder, [progress(stage, tracker)])
    remove_printer(trainer)
    lora_in_float32(model)
    start_head(model, job.seed)
    checkpoints = Checkpoints(folder, job.profile.checkpoint.seconds, tracker)
    best = Best(job.profile.reward, len(rows.aside))
    loss = trainer.train_from(checkpoints, "reward", best)
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(folder / "adapter")

    reward_model = as_policy(model, tokenizer, max_tokens)
    guessing = math.log(2) if job.objective == "pairwise" else 1.0  # of targets with deviation 1
    warnings = [*trainer.warnings(loss, guessing), *write_scale(job, folder, reward_model)]
    if stage != "reward":  # those are about what PPO climbs; of few rows the loss goes up while the order gets better
        warnings = []
    warnings += unmoved(folder / "adapter", job.run.stage("sft") / "adapter")
    return {
        **measure(job, reward_model, {"train_loss": loss}),
        **rows.record,
        **trainer.kept,
        "objective": job.objective,
        "adapters": {"sft": "../sft/adapter", stage: "adapter"},
        "vocabulary": vocabulary(tokenizer),
        "warnings": warnings,
        "resumed": checkpoints.resumed,
    }
