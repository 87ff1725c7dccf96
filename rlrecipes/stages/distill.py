"""Best of n as data: SFT goes on with the best of several of its own answers to each training prompt, by the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from rlrecipes.data.split import sample_by_hash, set_aside
from rlrecipes.job import Job
from rlrecipes.model.adapters import begin_adapter, check_runs, unmoved
from rlrecipes.model.loading import load_causal, prompt_window
from rlrecipes.model.tokens import Encoded, answer_length, fitting_prompts, open_tokenizer
from rlrecipes.policy.best_answers import FILE, Best, best_answers, finished, measured, without_choice, write_best
from rlrecipes.policy.sft_trainer import sft_trainer
from rlrecipes.recipe import Example
from rlrecipes.reward.model import open_learned
from rlrecipes.run.best import Best as Kept
from rlrecipes.run.checkpoint import PartsCheckpoints, set_trainable, trainable
from rlrecipes.run.console import say
from rlrecipes.run.resume import check_rows, length_of, record_drops
from rlrecipes.run.tracking import Tracker, progress


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Trains the policy into `folder/adapter`, with the answers that it learned from beside it; returns the stage's record.

    Raises:
        UserError: the prompts do not fit the window or do not fill a batch, an answer cannot be scored, or a loss or gradient
            is NaN or infinite.
    """
    settings, train = job.profile.distill, job.data.train
    tokenizer = open_tokenizer(model_name)
    length = answer_length(tokenizer, train.demonstrations, job.profile.ppo.response_length)
    max_tokens = prompt_window(model_name, job.profile.model, length)
    asked = sample_by_hash(settings.limit or len(train.prompts), train.prompts)
    prompts = fitting_prompts(tokenizer, asked, max_tokens)
    dropped = record_drops("prompts", len(asked), len(prompts), max_tokens, job.profile.model.max_length - length)
    places = range(len(prompts))
    learned, aside = list(places), list[int]()
    if settings.keep == "best":
        learned, aside = set_aside(places, [example.prompt for example, _ in prompts])
    size = settings.per_device_train_batch_size
    check_rows("prompts", len(learned), size, "distill.per_device_train_batch_size")

    model = begin_adapter(load_causal(model_name, job.profile.model, tokenizer), job.start, "default", job.profile.lora)
    model.set_adapter("default")
    check_runs(model, job.profile.lora.target_modules)
    start = {name: tensor.to("cpu", copy=True) for name, tensor in trainable(model).items()}
    checkpoints = PartsCheckpoints(folder, job.profile.checkpoint.seconds, tracker, 1)
    best = finished(checkpoints) or _draw(job, model, tokenizer, prompts, length, checkpoints)
    drawn = measured(best)
    say(f"  reward {drawn['reward']:.3f} of all, {drawn['best']:.3f} of the best")

    rows = [Encoded(ids, each.tokens) for (_, ids), each in zip(prompts, best, strict=True)]
    taught, looked_at = ([rows[i] for i in part] for part in (learned, aside))
    callbacks = [progress("distill", tracker)]
    trainer = sft_trainer(settings, job.seed, model, tokenizer, taught, looked_at, folder, callbacks)
    set_trainable(model, start)
    beside = f", {len(aside)} set aside" if aside else ""
    say(f"  {length_of(settings)} on the best answers to {len(learned)} prompts{beside}")
    loss = trainer.train_from(checkpoints, "distill", Kept(settings, len(aside)))
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(folder / "adapter")
    write_best(folder / FILE, [example for example, _ in prompts], best)
    moved = unmoved(folder / "adapter", job.start)
    return {
        "metrics": {"train_loss": loss, "reward": drawn["reward"], "best_reward": drawn["best"]},
        "adapters": {"policy": "adapter"},
        "answer_length": length,
        "too_long": dropped,
        "drawn": drawn,
        **trainer.kept,
        "warnings": [
            *without_choice(drawn, settings),
            *trainer.warnings(loss, math.log(len(tokenizer)), trainer.start),
            *moved,
        ],
        "resumed": checkpoints.resumed,
    }


def _draw(
    job: Job,
    model: PeftModel,
    tokenizer: Any,
    prompts: Sequence[tuple[Example, list[int]]],
    length: int,
    checkpoints: PartsCheckpoints,
) -> list[Best]:
    """The best answers, by a reward model that is there while they are drawn and not while they are learned."""
    settings, scorer = job.profile.distill, None
    if job.recipe.reward.learned:
        size = settings.per_device_train_batch_size
        scorer = open_learned(job.run.stage("reward"), model, tokenizer, job.profile.model, size).score
    model.set_adapter("default")
    say(f"  {settings.num_generations} answers of at most {length} tokens to each of {len(prompts)} prompts")
    best = best_answers(job, model, tokenizer, prompts, length, scorer, checkpoints)
    for role in [name for name in model.peft_config if name != "default"]:
        model.delete_adapter(role)
    model.set_adapter("default")
    return best
