"""Trains a reward model from a job's comparisons or ratings: an adapter that starts as that of SFT, and a score head.

The reward model that PPO climbs and the judge of evaluation are made this way, on rows that have no prompt in common. With
`reward.seeds` above 1 several are, one after another on the same rows:

    runs/tiny/translation/reward/adapter/, scale.json                     the first, from the run's seed
                                 member-1/adapter/, member-1/scale.json   the next, from the seed after it
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlrecipes.job import Job
from rlrecipes.model.adapters import add_lora, check_runs, copy_lora, unmoved
from rlrecipes.model.loading import load_scorer, window
from rlrecipes.model.tokens import open_tokenizer, vocabulary
from rlrecipes.reward.agreement import batch_size, measure, measure_together, write_scale
from rlrecipes.reward.head import load_scale, member_folder
from rlrecipes.reward.model import RewardModel, Row, as_policy
from rlrecipes.reward.rows import Rows, comparison_rows, rating_rows
from rlrecipes.reward.trainers import pairwise_trainer, regression_trainer, start_head
from rlrecipes.run.best import Best
from rlrecipes.run.checkpoint import Checkpoints, PartsCheckpoints, set_trainable, trainable
from rlrecipes.run.console import say
from rlrecipes.run.out_of_memory import release
from rlrecipes.run.resume import lora_in_float32
from rlrecipes.run.tracking import Tracker, progress, remove_printer


def train(job: Job, model_name: str, folder: Path, tracker: Tracker, stage: str) -> dict[str, Any]:
    """Writes the adapter with its head to `folder/adapter` and the scale beside it; measures them on held-out rows.

    Raises:
        UserError: the rows do not fit, or a loss or gradient is NaN.
    """
    tokenizer = open_tokenizer(model_name)
    prepare = comparison_rows if job.objective == "pairwise" else rating_rows
    rows = prepare(job, tokenizer, window(model_name, job.profile.model))
    make = _one if job.profile.reward.seeds == 1 else _several
    record, warnings, resumed = make(job, model_name, tokenizer, rows, folder, tracker, stage)
    if stage != "reward":  # those are about what PPO climbs; of few rows the loss goes up while the order gets better
        warnings = []
    for number in range(job.profile.reward.seeds):
        warnings += unmoved(member_folder(folder, number) / "adapter", job.start)
    return {
        **record,
        "objective": job.objective,
        "adapters": {**({"sft": "../sft/adapter"} if job.start else {}), stage: "adapter"},
        "vocabulary": vocabulary(tokenizer),
        "warnings": warnings,
        "resumed": resumed,
    }


Made = tuple[dict[str, Any], list[str], dict[str, float] | None]
"""What `done.json` records, warnings, and where the training went on."""


def _one(job: Job, model_name: str, tokenizer: Any, rows: Rows, folder: Path, tracker: Tracker, stage: str) -> Made:
    """Trains one reward model."""
    model = _start(job, model_name, tokenizer)
    checkpoints = Checkpoints(folder, job.profile.checkpoint.seconds, tracker)
    found = _fit(job, model, tokenizer, rows, folder, [progress(stage, tracker)], checkpoints)
    reward_model = as_policy(model, tokenizer, window(model_name, job.profile.model))
    warnings = [*found["warnings"], *_write(job, reward_model, folder)]
    record = {**measure(job, reward_model, {"train_loss": found["loss"]}), **rows.record, **found["kept"]}
    return record, warnings, checkpoints.resumed


def _several(job: Job, model_name: str, tokenizer: Any, rows: Rows, folder: Path, tracker: Tracker, stage: str) -> Made:
    """Trains several in turn, each from a model of its own, and then writes and measures them all on one more.

    So what is left does not depend on which of them this process has trained.
    """
    count = job.profile.reward.seeds
    checkpoints = PartsCheckpoints(folder, job.profile.checkpoint.seconds, tracker, count)
    seeds = [(job.seed + number) % 2**32 for number in range(count)]
    for number in range(len(checkpoints.finished), count):
        say(f"  member {number} of {count}, from seed {seeds[number]}")
        own = dataclasses.replace(job, seed=seeds[number])
        bar = progress(f"{stage} {number}", tracker, f"member{number}/" if number else "", checkpoints.start)
        model = _start(own, model_name, tokenizer)
        found = _fit(own, model, tokenizer, rows, folder, [bar], checkpoints)
        weights = {name: tensor.to("cpu", copy=True) for name, tensor in trainable(model).items()}
        checkpoints.finish({**found, "weights": weights}, found["steps"])
        del model
        release()
    members = checkpoints.finished
    model = _start(job, model_name, tokenizer)
    lora_in_float32(model)
    reward_model, warnings = as_policy(model, tokenizer, window(model_name, job.profile.model)), []
    for number, found in enumerate(members):
        set_trainable(model, found["weights"])
        told = [*found["warnings"], *_write(job, reward_model, member_folder(folder, number))]
        warnings += [f"member {number}: {sentence}" for sentence in told]
    scales = [load_scale(member_folder(folder, number)) for number in range(count)]

    def each(texts: Sequence[Row]) -> list[list[float]]:
        scores = []
        for found, (mean, std) in zip(members, scales, strict=True):
            set_trainable(model, found["weights"])
            raw = reward_model.scores(texts, batch_size(job))
            scores.append([(score - mean) / std for score in raw])
        return scores

    record = measure_together(job, reward_model, each)
    for seed, found, measured in zip(seeds, members, record["members"], strict=True):
        measured |= {"seed": seed, "train_loss": found["loss"], **found["kept"]}
    metrics = {"train_loss": fmean(found["loss"] for found in members), **record["metrics"]}
    return {**record, "metrics": metrics, **rows.record}, warnings, checkpoints.resumed


def _start(job: Job, model_name: str, tokenizer: Any) -> Any:
    """The base with the adapter that training begins at, and moves, and a head that is not drawn yet."""
    model = add_lora(load_scorer(model_name, job.profile.model, tokenizer), job.profile.lora, "SEQ_CLS")
    check_runs(model, job.profile.lora.target_modules)
    if job.start:
        copy_lora(model, job.start, "default")
    return model


def _fit(
    job: Job,
    model: Any,
    tokenizer: Any,
    rows: Rows,
    folder: Path,
    callbacks: list[Any],
    checkpoints: Checkpoints,
) -> dict[str, Any]:
    """Trains the model; its mean loss, its steps, what `done.json` holds of the step that was kept, and warnings."""
    build = pairwise_trainer if job.objective == "pairwise" else regression_trainer
    trainer = build(job, model, tokenizer, rows, folder, callbacks)
    remove_printer(trainer)
    lora_in_float32(model)
    start_head(model, job.seed)
    loss = trainer.train_from(checkpoints, "reward", Best(job.profile.reward, len(rows.aside)))
    guessing = math.log(2) if job.objective == "pairwise" else 1.0  # of targets with deviation 1
    warnings = trainer.warnings(loss, guessing)
    return {"loss": loss, "steps": trainer.state.global_step, "kept": trainer.kept, "warnings": warnings}


def _write(job: Job, reward_model: RewardModel, folder: Path) -> list[str]:
    """Writes `folder/adapter` and the scale beside it; sentences on what is wrong with the scores."""
    folder.mkdir(exist_ok=True)
    reward_model.model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    reward_model.tokenizer.save_pretrained(folder / "adapter")
    return write_scale(job, folder, reward_model)
