"""Trains the SFT policy, or the base, on the recipe's reward by one of the algorithms, as their stages do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import save_file

from rlrecipes.data.split import SAMPLES, SLICE, sample_by_hash, set_aside
from rlrecipes.job import Job
from rlrecipes.model.adapters import add_in_place, begin_adapter, load_adapter, unmoved
from rlrecipes.model.loading import load_causal, prompt_window
from rlrecipes.model.tokens import answer_length, fitting_prompts, open_tokenizer
from rlrecipes.policy.group_trainer import GRPOTrainer, RLOOTrainer
from rlrecipes.policy.judge import open_second
from rlrecipes.policy.measures import at_rest, faults
from rlrecipes.policy.ppo_trainer import SharedBasePPOTrainer
from rlrecipes.policy.sampler import ONCE_MORE
from rlrecipes.policy.trainer import PolicyTrainer, PPOConfig
from rlrecipes.policy.watch import Watch
from rlrecipes.profile import MOST_DRAWS, PolicySettings
from rlrecipes.recipe import Example, Metric
from rlrecipes.reward.head import Scorer
from rlrecipes.reward.judge import missing
from rlrecipes.reward.model import open_learned
from rlrecipes.reward.terms import fresh, shown, value_rows
from rlrecipes.run.checkpoint import Checkpoints
from rlrecipes.run.console import say
from rlrecipes.run.resume import check_rows, record_drops, training_arguments
from rlrecipes.run.tracking import Tracker, progress, remove_printer

TRAINERS: dict[str, type[PolicyTrainer]] = {"ppo": SharedBasePPOTrainer, "rloo": RLOOTrainer, "grpo": GRPOTrainer}
"""By the names of the profile's tables."""


def train(job: Job, model_name: str, folder: Path, tracker: Tracker, settings: PolicySettings) -> dict[str, Any]:
    """Trains the policy into `folder/adapter`, with PPO's value head beside it, and returns the stage's record.

    `settings` are those of the profile's table of the algorithm, of which nothing is left to be chosen.

    Raises:
        UserError: the prompts do not fit the window or do not fill a batch.
    """
    table, value = settings.table, getattr(settings, "value", None)
    tokenizer = open_tokenizer(model_name)
    length = answer_length(tokenizer, job.data.train.demonstrations, job.profile.ppo.response_length)
    max_tokens = prompt_window(model_name, job.profile.model, length)
    prompts = fitting_prompts(tokenizer, job.data.train.prompts, max_tokens)
    asked = job.profile.model.max_length - length
    dropped = record_drops("prompts", len(job.data.train.prompts), len(prompts), max_tokens, asked)
    headline = job.metrics[0]
    prompts, watched = _divided(prompts, headline, settings)
    check_rows("prompts", len(prompts), settings.batch // settings.answers_each, f"{table}.per_device_train_batch_size")

    start, reward = job.start, job.run.stage("reward")
    model = begin_adapter(load_causal(model_name, job.profile.model, tokenizer), start, "policy", job.profile.lora)
    if start:
        model = load_adapter(model, start, "reference")
    head, scorer = None, None
    if job.recipe.reward.learned:
        head, scorer, _ = open_learned(
            reward, model, tokenizer, job.profile.model, settings.per_device_train_batch_size
        )
    shared = head is not None
    if value == "adapter":
        model = _with_value(model, reward / "adapter" if shared else start)
    judge = _judge(job, model, tokenizer, settings) if watched else None
    model.set_adapter("policy")
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    limit = job.profile.limits.term_seconds
    assert headline.score is not None, f"{job.recipe.name}: a headline must score answers one by one"
    watch = Watch(watched, headline.score, job.recipe.reward, scorer, settings, limit, judge) if watched else None
    samples = fitting_prompts(tokenizer, sample_by_hash(SAMPLES, job.data.held_out.prompts), max_tokens)

    def show(rows: list[dict[str, Any]], step: int) -> None:
        examples, answers = [example for example, _ in samples], [row["answer"] for row in rows]
        values = value_rows(job.recipe.reward, scorer, answers, examples, limit)
        scores = [
            {"reference": next(iter(example.answers), None), **shown(job.recipe.reward, each)}
            for example, each in zip(examples, values, strict=True)
        ]
        tracker.table("samples", [row | each for row, each in zip(rows, scores, strict=True)], step)

    trainer = TRAINERS[table](
        args=arguments(settings, folder, job.seed, length),
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        reward=fresh(job.recipe.reward),
        head=head,
        settings=settings,
        samples=samples,
        on_samples=show,
        scorer=scorer,
        callbacks=[progress(table, tracker)],
        term_seconds=limit,
        watch=watch,
    )
    remove_printer(trainer)
    updates = trainer.args.num_total_batches
    episodes, batch = updates * settings.batch, f"{settings.batch}"
    note = "" if episodes == settings.total_episodes else f" (rounded up from {settings.total_episodes})"
    batch += f" ({settings.answers_each} to each prompt)" if settings.answers_each > 1 else ""
    batch += f", from at most {MOST_DRAWS} draws" if (dynamic := getattr(settings, "dynamic_sampling", False)) else ""
    say(f"  {episodes} episodes{note} in {updates} updates of {batch}, answers of at most {length} tokens")
    if trainer.sampler.dense:
        say("  answers are drawn from a dense copy of the policy")
    if trainer.sampler.rounds:
        say(f"  {ONCE_MORE}")
    if getattr(settings, "vf_coef", None) == 0:
        say("  ppo.vf_coef=0: no value function is learned, so advantages are rewards less the first batch's mean")
    checkpoints = Checkpoints(folder, job.profile.checkpoint.seconds, tracker)
    checkpoints.check_room(trainer.model)
    with checkpoints.finishing_first():
        trainer.train(checkpoints)
    if trainer.stopped:
        say(f"  stopped early: {trainer.stopped}")
    drawn, learned = trainer.state.episode, trainer.state.global_step * settings.batch
    if dynamic:
        say(f"  {drawn} answers were drawn for batches of {learned} in all ({table}.dynamic_sampling)")

    folders = {"policy": "adapter"} | ({"value": "value_adapter"} if value == "adapter" else {})
    model.save_pretrained(folder, selected_adapters=list(folders), save_embedding_layers=False)
    for role, name in folders.items():
        shutil.move(folder / role, folder / name)
    tokenizer.save_pretrained(folder / "adapter")
    (folder / "README.md").unlink(missing_ok=True)
    if value:
        save_file(trainer.model.value_model.score.state_dict(), folder / "value_head.safetensors")
    tracker.summary({"kept": {"step": trainer.kept, "of": trainer.state.global_step}})
    rows = trainer.state.log_history
    last = {key: value for key, value in rows[min(trainer.kept, len(rows) - 1)].items() if "/" in key}
    adapters = {
        **({"reference": "../sft/adapter"} if start else {}),
        "policy": "adapter",
        **({"reward": "../reward/adapter"} if shared else {}),
    }
    return {
        "metrics": last,
        "adapters": adapters,
        "answer_length": length,
        "too_long": dropped,
        "stopped": trainer.stopped,
        "dense_rollout": trainer.sampler.dense,
        **({"watch": watch.record(trainer.stopped)} if watch else {}),
        **({"drawn": {"answers": drawn, "of_batches": learned}} if dynamic else {}),
        "warnings": _warnings(trainer, folder, start),
        "resumed": checkpoints.resumed,
    }


def _with_value(model: PeftModel, start: Path | None) -> PeftModel:
    """The model with the value function's adapter, which begins at that in `start`, or fresh and as large as the policy's."""
    if start:
        return load_adapter(model, start, "value")
    model.add_adapter("value", model.peft_config["policy"])
    add_in_place(model, "value")
    return model


def _judge(job: Job, model: PeftModel, tokenizer: Any, settings: PolicySettings) -> Scorer | None:
    """The second reward model, where it was made and is worth it; the console says where it is not."""
    if not settings.judge or missing(job):
        return None
    if not job.run.done("judge"):
        say(f"  no judge looks at {settings.title}: the stage judge is not made yet")
        return None
    scorer, record = open_second(job, model, tokenizer, settings.per_device_train_batch_size)
    if scorer is None:
        say(f"  no judge looks at {settings.title}: {record['missing']}")
    return scorer


def _warnings(trainer: PolicyTrainer, folder: Path, start: Path | None) -> list[str]:
    """What is wrong with the policy that is left, and with what it was trained on."""
    rows, settings = trainer.state.log_history, trainer.settings
    nothing, apart = trainer.taught_nothing(), trainer.warnings()
    if still := at_rest(rows, settings):
        return nothing or [*apart, *still]  # the cause, and not what came of it
    unimproved = trainer.watch.warnings() if trainer.watch else []
    if trainer.stopped or unimproved:
        return [*nothing, *apart, *unimproved]
    return [*nothing, *apart, *unmoved(folder / "adapter", start), *faults(rows, settings)]


def _divided(
    prompts: list[tuple[Example, list[int]]], headline: Metric, settings: PolicySettings
) -> tuple[list[tuple[Example, list[int]]], list[tuple[Example, list[int]]]]:
    """The prompts to train on, and those set aside to watch the policy by; none where the headline cannot judge answers."""
    judged = headline.needs is None or all(headline.needs in example.truth for example, _ in prompts)
    if not (settings.eval_every and judged):
        return prompts, []
    return set_aside(prompts, [example.prompt for example, _ in prompts], SLICE)


def arguments(settings: PolicySettings, folder: Path, seed: int, length: int) -> PPOConfig:
    """The configuration of TRL's trainer, whose loop is ours (`policy.trainer`), for any of the algorithms."""
    named = training_arguments(PPOConfig, settings, folder, seed)
    ours = {
        "gradient_accumulation_steps": settings.batch // settings.per_device_train_batch_size,
        "num_mini_batches": settings.mini_batches,
        "num_ppo_epochs": settings.passes,
        "kl_coef": settings.beta_or_kl_coef,
        "missing_eos_penalty": settings.missing_eos_penalty or None,  # TRL takes a positive number or None
        "response_length": length,
        "stop_token": "eos",
        "logging_steps": 1,
    }
    return PPOConfig(**named | ours)
