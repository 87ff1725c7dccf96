"""Supervised fine-tuning: an adapter that imitates the demonstrations (`trl.SFTTrainer`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from rlrecipes.job import Job
from rlrecipes.model.adapters import add_lora
from rlrecipes.model.loading import load_causal, window
from rlrecipes.model.tokens import every_turn, fitting_examples, open_tokenizer, spelled, spelled_note
from rlrecipes.run.checkpoint import Checkpoints
from rlrecipes.run.console import say
from rlrecipes.run.resume import (
    Resumable,
    check_finite,
    check_rows,
    length_of,
    lora_in_float32,
    record_drops,
    training_arguments,
)
from rlrecipes.run.tracking import Tracker, progress, remove_printer


class ResumableSFTTrainer(Resumable, SFTTrainer):
    """TRL's trainer, which goes on from our checkpoints."""


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Trains the adapter into `folder/adapter` and returns what `done.json` records beside the common part.

    Raises:
        UserError: the demonstrations do not fit the window or do not fill a batch, or the loss becomes NaN or infinite.
    """
    tokenizer = open_tokenizer(model_name)
    max_tokens = window(model_name, job.profile.model)
    demonstrations = job.data.train.demonstrations
    if job.profile.sft.learn == "all":
        demonstrations = [turn for example in demonstrations for turn in every_turn(example)]
    rows = fitting_examples(tokenizer, demonstrations, max_tokens)
    dropped = record_drops("demonstrations", len(demonstrations), len(rows), max_tokens)
    if plain := spelled(tokenizer, job.data):
        say(f"  {spelled_note(plain)}")
    settings = job.profile.sft
    check_rows("demonstrations", len(rows), settings.per_device_train_batch_size, "sft.per_device_train_batch_size")

    dataset = Dataset.from_list(
        [{"input_ids": ids.ids, "completion_mask": [0] * len(ids.prompt) + [1] * len(ids.answer)} for _, ids in rows]
    )
    model = add_lora(load_causal(model_name, job.profile.model, tokenizer), job.profile.lora, "CAUSAL_LM")
    trainer = ResumableSFTTrainer(
        model,
        SFTConfig(
            **training_arguments(SFTConfig, settings, folder, job.seed), max_length=None, completion_only_loss=True
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[progress("sft", tracker)],
    )
    remove_printer(trainer)
    lora_in_float32(model)
    say(f"  {length_of(settings)} on {len(rows)} demonstrations")
    checkpoints = Checkpoints(folder, job.profile.checkpoint.seconds, tracker)
    loss = trainer.train_from(checkpoints)
    check_finite(loss, "SFT", "sft.learning_rate", checkpoints)
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(folder / "adapter")
    return {
        "metrics": {"train_loss": loss},
        "adapters": {"sft": "adapter"},
        "too_long": dropped,
        **({"special_tokens_as_text": plain} if plain else {}),
        "resumed": checkpoints.resumed,
    }
