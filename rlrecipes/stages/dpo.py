"""DPO: trains the SFT policy, or the base, on the reward model's comparisons (`rlrecipes.policy.dpo_trainer`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from rlrecipes.job import Job
from rlrecipes.model.adapters import begin_adapter, check_runs, unmoved
from rlrecipes.model.loading import load_causal, window
from rlrecipes.model.tokens import open_tokenizer
from rlrecipes.policy.dpo_trainer import checksum, dpo_trainer, reference_logprobs, with_reference
from rlrecipes.reward.rows import preference_rows
from rlrecipes.run.best import Best
from rlrecipes.run.checkpoint import PartsCheckpoints, set_trainable, trainable
from rlrecipes.run.resume import lora_in_float32
from rlrecipes.run.tracking import Tracker, progress, remove_printer


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Trains the policy into `folder/adapter`, with the reference's log-probabilities beside it; returns the stage's record.

    Raises:
        UserError: the comparisons do not fit the window or do not fill a batch, or a loss or gradient is NaN or infinite.
    """
    settings = job.profile.dpo
    tokenizer = open_tokenizer(model_name)
    rows = preference_rows(job, tokenizer, window(model_name, job.profile.model))
    model = begin_adapter(load_causal(model_name, job.profile.model, tokenizer), job.start, "default", job.profile.lora)
    model.set_adapter("default")
    check_runs(model, job.profile.lora.target_modules)
    checkpoints = PartsCheckpoints(folder, job.profile.checkpoint.seconds, tracker, 1)
    everything = [*rows.train, *rows.aside]
    # Before its first step the policy is the reference.
    reference = reference_logprobs(
        model, everything, settings.per_device_train_batch_size, tokenizer.pad_token_id, checkpoints
    )
    complete = with_reference(everything, reference)
    train, aside = complete[: len(rows.train)], complete[len(rows.train) :]
    start = {name: tensor.to("cpu", copy=True) for name, tensor in trainable(model).items()}
    trainer = dpo_trainer(settings, job.seed, model, tokenizer, train, aside, folder, [progress("dpo", tracker)])
    remove_printer(trainer)
    lora_in_float32(model)
    set_trainable(model, start)
    loss = trainer.train_from(checkpoints, "dpo", Best(settings, len(aside)))
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(folder / "adapter")
    save_file({"logprobs": reference}, folder / "reference.safetensors")
    return {
        "metrics": {"train_loss": loss, **_last(trainer.state.log_history)},
        "adapters": {**({"reference": "../sft/adapter"} if job.start else {}), "policy": "adapter"},
        "reference": {"comparisons": len(everything), "sha256": checksum(reference)},
        **rows.record,
        **trainer.kept,
        "warnings": [*trainer.warnings(loss, math.inf, trainer.start), *unmoved(folder / "adapter", job.start)],
        "resumed": checkpoints.resumed,
    }


def _last(logs: list[dict[str, Any]]) -> dict[str, float]:
    """What the last rows of the log say of the batches that were learned from, by TRL's names."""
    return {key: value for row in logs for key, value in row.items() if key.startswith(("rewards/", "logps/"))}
