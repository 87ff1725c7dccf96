"""The reward model: an adapter and a score head, trained on comparisons or on ratings, or taken from elsewhere.

`pairwise` prefers the chosen answer (Bradley-Terry; `trl.RewardTrainer`), `regression` learns ratings by squared error. Both
start from the SFT adapter, so that they read answers as the policy writes them. `reward.model` names a model to take instead.

Scores are standardised afterwards (mean 0, standard deviation 1 over the demonstrations), as in arXiv 1909.08593: any shift
of a pairwise model's scores gives the same preferences, but PPO's reward clip, KL weight and programmatic terms are measured
against them.
"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments
from trl import RewardConfig, RewardTrainer

from rlrecipes.access import ADAPTER, ADAPTER_WEIGHTS
from rlrecipes.agreement import accuracy, correlations
from rlrecipes.checkpoint import Checkpoints
from rlrecipes.checks import vocabulary
from rlrecipes.console import say
from rlrecipes.encoding import encode, fitting_comparisons, pad_right
from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.models import add_lora, copy_lora, load_scorer, open_tokenizer, window
from rlrecipes.recipe import Data, Rating
from rlrecipes.reward_model import RewardModel, as_policy, load_beside, load_sharing
from rlrecipes.reward_source import find_reward_model
from rlrecipes.run import Run, write_json
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
OURS = {"objective", "model"}
"""Settings of the `[reward]` table that TRL does not know."""


class ResumableRewardTrainer(Resumable, RewardTrainer):
    """TRL's, going on from our checkpoints."""


class ResumableRegressionTrainer(Resumable, Trainer):
    """Squared error of the score, going on from our checkpoints."""

    loss_is_scaled_for_ga = False  # a mean over the micro-batch, so Transformers divides by their number

    def compute_loss(self, model: Any, inputs: Mapping[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        scores = model(input_ids=inputs["ids"], attention_mask=inputs["mask"], use_cache=False).logits.squeeze(-1)
        return nn.functional.mse_loss(scores, inputs["score"])


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Leaves the adapter and its head in `folder/adapter`, the scale beside it, and measures on the held-out split."""
    if job.profile.reward.model is not None:
        return _take(job, model_name, folder)
    tokenizer = open_tokenizer(model_name)
    longest = window(model_name, job.profile.model)
    prepare = _comparisons if job.objective == "pairwise" else _ratings
    rows, record = prepare(job, tokenizer, longest)
    model = add_lora(load_scorer(model_name, job.profile.model, tokenizer), job.profile.lora, "SEQ_CLS")
    copy_lora(model, job.run.stage("sft") / "adapter", "default")
    build = _pairwise if job.objective == "pairwise" else _regression
    trainer = build(job, model, tokenizer, rows, folder, [progress("reward", tracker)])
    remove_printer(trainer)
    lora_in_float32(model)
    _start_head(model, job.seed)
    checkpoints = Checkpoints(folder, job.profile.checkpoint.seconds, tracker)
    loss = trainer.train_from(checkpoints)
    check_finite(loss, "reward", "reward.learning_rate", checkpoints)
    model.save_pretrained(folder / "adapter")

    reward_model = as_policy(model, tokenizer, longest)
    _write_scale(job, folder, reward_model)
    return {
        **_measured(job, reward_model, {"train_loss": loss}),
        **record,
        "objective": job.objective,
        "adapters": {"sft": "../sft/adapter", "reward": "adapter"},
        "vocabulary": vocabulary(tokenizer),
        "resumed": checkpoints.resumed,
    }


def _take(job: Job, model_name: str, folder: Path) -> dict[str, Any]:
    """A reward model from elsewhere, measured and scaled as ours are."""
    source = find_reward_model(str(job.profile.reward.model))
    if source.shares(model_name):
        model = load_sharing(source, model_name, job.profile.model, open_tokenizer(model_name))
        (folder / "adapter").mkdir()
        for name in (ADAPTER, ADAPTER_WEIGHTS):
            shutil.copyfile(Path(source.place) / name, folder / "adapter" / name)
        beside, adapters = None, {"reward": "adapter"}
        say(f"  taken from {source.place}: one more adapter of the base")
    else:
        model = load_beside(source, job.profile.model)
        beside, adapters = source.base or source.place, {}
        say(f"  taken from {source.name}: loaded beside the base, with its own tokenizer")
    _write_scale(job, folder, model)
    return {
        **_measured(job, model, {}),
        "objective": None,
        "adapters": adapters,
        "reward_model": {"name": source.name, "beside": beside},
    }


# What is trained.


def _comparisons(job: Job, tokenizer: Any, longest: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows as TRL names them, and what `done.json` records of them."""
    tasks = [fitting_comparisons(tokenizer, data.comparisons, longest) for data in job.tasks.values()]
    before = sum(len(data.comparisons) for data in job.tasks.values())
    dropped = record_drops("comparisons", before, sum(map(len, tasks)), longest)
    balanced = _balanced(tasks)
    rows = [{"chosen_ids": chosen, "rejected_ids": rejected} for _, chosen, rejected in balanced]
    margins = [comparison.margin for comparison, _, _ in balanced]
    count = sum(margin is not None for margin in margins)
    if count:  # TRL looks at a batch's first row to see whether all have one
        rows = [{**row, "margin": margin or 0.0} for row, margin in zip(rows, margins, strict=True)]
    _announce(job, len(rows), "comparisons", f", {count} with margins" if count else "")
    return rows, {"too_long": dropped, **({"margins": count} if count else {})}


def _ratings(job: Job, tokenizer: Any, longest: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows whose scores have mean 0 and standard deviation 1 over each recipe's training ratings, whatever their scale."""
    tasks = [_fitting_ratings(tokenizer, data.ratings, longest) for data in job.tasks.values()]
    before = sum(len(data.ratings) for data in job.tasks.values())
    dropped = record_drops("ratings", before, sum(map(len, tasks)), longest)
    scales = [_scale([rating.score for rating, _ in rows]) for rows in tasks]
    rows = _balanced(
        [
            [{"ids": ids, "score": (rating.score - scale["mean"]) / scale["std"]} for rating, ids in task]
            for task, scale in zip(tasks, scales, strict=True)
        ]
    )
    _announce(job, len(rows), "ratings", ", by regression")
    return rows, {"too_long": dropped, "targets": dict(zip(job.tasks, scales, strict=True))}


def _announce(job: Job, count: int, what: str, how: str) -> None:
    settings = job.profile.reward
    check_rows(what, count, settings.per_device_train_batch_size, "reward.per_device_train_batch_size")
    say(f"  {length_of(settings)} on {count} {what}{how}")


def _pairwise(
    job: Job, model: Any, tokenizer: Any, rows: list[dict[str, Any]], folder: Path, callbacks: list[Any]
) -> ResumableRewardTrainer:
    arguments = training_arguments(job.profile.reward, folder, job.seed, ours=OURS)
    return ResumableRewardTrainer(
        model,
        RewardConfig(**arguments, max_length=None, disable_dropout=False),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def _regression(
    job: Job, model: Any, tokenizer: Any, rows: list[dict[str, Any]], folder: Path, callbacks: list[Any]
) -> ResumableRegressionTrainer:
    def collate(batch: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        ids, scores = [row["ids"] for row in batch], [row["score"] for row in batch]
        mask = pad_right([[1] * len(row) for row in ids], 0)
        return {"ids": pad_right(ids, tokenizer.pad_token_id), "mask": mask, "score": torch.tensor(scores)}

    arguments = training_arguments(job.profile.reward, folder, job.seed, ours=OURS | {"center_rewards_coefficient"})
    return ResumableRegressionTrainer(
        model,
        TrainingArguments(**arguments, remove_unused_columns=False),
        train_dataset=rows,
        data_collator=collate,
        callbacks=callbacks,
    )


def _fitting_ratings(tokenizer: Any, ratings: Sequence[Rating], longest: int) -> list[tuple[Rating, list[int]]]:
    rows = [(rating, encode(tokenizer, rating.prompt, rating.answer).ids) for rating in ratings]
    return [(rating, ids) for rating, ids in rows if len(ids) <= longest]


def _balanced(tasks: Sequence[Sequence[Any]]) -> list[Any]:
    """As many rows of each recipe as the largest brings, the others' repeated; a batch is drawn from all of them."""
    most = max(map(len, tasks))
    return [row for rows in tasks for row in islice(cycle(rows), most)]


def _start_head(model: nn.Module, seed: int) -> None:
    """N(0, 1/(d+1)) (arXiv 2403.17031, detail 11): first scores are small, whatever the width."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.endswith("score.modules_to_save.default.weight"):
            width = parameter.shape[1]
            fresh = torch.randn(parameter.shape, generator=generator) / (width + 1) ** 0.5
            parameter.data = fresh.to(parameter.device, parameter.dtype)


# What came out.


def _write_scale(job: Job, folder: Path, model: RewardModel) -> None:
    encoded = (model.encode(example.prompt, example.answers[0]) for example in job.data.demonstrations)
    fitting = list(islice((row for row in encoded if len(row["input_ids"]) <= model.longest), SCALED_ON))
    if not fitting:
        record_drops("demonstrations", len(job.data.demonstrations), 0, model.longest)
    scores = model.scores(fitting, _at_once(job))
    if not all(map(math.isfinite, scores)):
        raise UserError(
            "the reward model gives NaN or infinity on demonstrations; choose another model.dtype, or another reward.model"
        )
    write_json(folder / "scale.json", _scale(scores))


def _scale(scores: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(scores), "std": statistics.pstdev(scores) or 1.0}


def _measured(job: Job, model: RewardModel, metrics: dict[str, Any]) -> dict[str, Any]:
    """With the agreement among `metrics`; of a shared model, under `recipes` that with each, beside that of its own model."""
    if len(job.tasks) == 1:
        return {"metrics": {**metrics, **_agreement(model, job.data, _at_once(job))}}
    found = {name: _agreement(model, data, _at_once(job)) for name, data in job.tasks.items()}
    alone = {name: (Run(job.run.name, name, job.run.root).done("reward") or {}).get("metrics", {}) for name in found}
    for name, own in found.items():
        for measure in ("accuracy", "spearman"):
            if measure in own:
                single = f"; of its own model {_told(alone[name][measure])}" if measure in alone[name] else ""
                say(f"  {name}: held-out {measure} {_told(own[measure])}{single}")
    recipes = {name: {"shared": found[name], "single": alone[name]} for name in found}
    return {"metrics": metrics, "recipes": recipes}


def _at_once(job: Job) -> int:
    """Texts that are scored together: as many as a comparison's two sides are when it is trained on."""
    return 2 * job.profile.reward.per_device_train_batch_size


def _agreement(model: RewardModel, data: Data, at_once: int) -> dict[str, Any]:
    """With the held-out comparisons and ratings that are not too long."""
    rows = [
        (pair, model.encode(pair.prompt, pair.chosen), model.encode(pair.prompt, pair.rejected))
        for pair in data.held_out_comparisons
    ]
    rows = [row for row in rows if max(len(row[1]["input_ids"]), len(row[2]["input_ids"])) <= model.longest]
    rated = [(rating, model.encode(rating.prompt, rating.answer)) for rating in data.held_out_ratings]
    rated = [row for row in rated if len(row[1]["input_ids"]) <= model.longest]
    return {
        **accuracy(
            [pair for pair, _, _ in rows],
            model.scores([chosen for _, chosen, _ in rows], at_once),
            model.scores([rejected for _, _, rejected in rows], at_once),
            [(len(chosen["input_ids"]), len(rejected["input_ids"])) for _, chosen, rejected in rows],
        ),
        **correlations([rating for rating, _ in rated], model.scores([row for _, row in rated], at_once)),
    }


def _told(found: Mapping[str, float]) -> str:
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
