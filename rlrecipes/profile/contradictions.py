"""Settings that are each within their bounds, and have no effect or contradict each other.

"sft.num_train_epochs=2 would have no effect beside sft.max_steps=100; say sft.max_steps=-1 as well"
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rlrecipes.profile import distill, dpo
from rlrecipes.profile.algorithms import ALGORITHMS, GroupSettings, GRPOSettings, PolicySettings, PPOSettings
from rlrecipes.profile.settings import EvaluateSettings, Profile, algorithms, sampling_algorithms
from rlrecipes.profile.training import TrainingSettings
from rlrecipes.profile.values import SFT

SMALLEST_WHITENED = 8  # episodes in a mini-batch below which TRL does not whiten rewards

SCORING = ("reward.model=", "reward.per_device_train_batch_size=", "reward.function=")
"""Settings of the `[reward]` table that take effect on a reward model that is not trained here."""


def idle(profile: Profile, overrides: Sequence[str]) -> Iterator[str]:
    """Sentences about overrides of a base model, a reward model or a policy that the run does not train."""
    model, reward, there = profile.model.name, profile.reward.model, algorithms(profile)
    for override in overrides:
        table = override.partition(".")[0]
        if table in ALGORITHMS and table not in there and not override.startswith("ppo.response_length="):
            yield f"{override} has no effect on a run without {table}; add it to run.algorithms, or leave it out"
        if override.startswith("sft.") and profile.run.start != SFT:
            yield f"{override} has no effect where run.start={profile.run.start} takes the place of SFT; leave it out"
        if override.startswith("base.") and model != "builtin":
            yield f"{override} has no effect on the model '{model}'; it is for the embedded base"
        if override.startswith("reward.") and reward is not None and not override.startswith(SCORING):
            yield f"{override} has no effect beside reward.model={reward}, which trains nothing"


def contradictions(profile: Profile, given: Collection[str] = (), spared: Collection[str] = ()) -> Iterator[str]:
    """Sentences about values that are within their bounds and contradict each other, or have no effect.

    A value may have no effect where it is a setting's own default and is not among those `given` by name, where it is given
    and switches off what is off, as `ppo.kl_target=0`, or where it is `spared`: a file's, which has an effect without what
    was given.
    """
    for name, why in without_effect(profile).items():
        table, _, key = name.partition(".")
        settings = getattr(profile, table)
        value = getattr(settings, key)
        if (name in given and value) or (value != getattr(type(settings), key) and name not in spared):
            yield f"{name}={value} would have no effect {why}; change that or leave it out"
    for stage, settings in _on_rows(profile).items():
        steps, epochs = settings.max_steps, settings.num_train_epochs
        if 0 < steps <= settings.warmup_steps:
            yield _warm_up(stage, steps, settings.warmup_steps)
        if steps > 0 and epochs is not None:
            yield (
                f"{stage}.num_train_epochs={epochs} would have no effect beside {stage}.max_steps={steps}; "
                f"say {stage}.max_steps=-1 as well"
            )
        if steps == 0 or steps < -1 or (steps == -1 and epochs is None):
            yield f"{stage}.max_steps is {steps}; give a number of steps, or {stage}.num_train_epochs"
    width, heads = profile.base.hidden_size, profile.base.num_attention_heads
    if width % (2 * heads):
        yield (
            f"base.num_attention_heads={heads} does not cut base.hidden_size={width} into heads of an even width; "
            "choose others"
        )
    length, window = profile.ppo.response_length, profile.model.max_length
    if length >= window:
        yield f"ppo.response_length={length} leaves no room for a prompt in model.max_length={window}; lower it"
    for table in sampling_algorithms(profile):
        yield from _policy_contradictions(getattr(profile, table))
    if "dpo" in algorithms(profile):
        yield from dpo.contradictions(profile.dpo)
    if "distill" in algorithms(profile):
        yield from distill.contradictions(profile.distill)
    if profile.evaluate.judge_url and not profile.evaluate.judge_model:
        yield f"evaluate.judge_url={profile.evaluate.judge_url} needs evaluate.judge_model, the name of its model"


def without_effect(profile: Profile) -> dict[str, str]:
    """The settings that nothing reads beside the others, and why."""
    ppo, evaluate = profile.ppo, profile.evaluate
    one_step = ppo.passes == ppo.mini_batches == 1
    rules = {
        "reward.seeds": (profile.reward.model is not None, "beside reward.model, which trains nothing"),
        "reward.combine": (profile.reward.seeds == 1, "while reward.seeds is 1"),
        "ppo.kl_estimator": (ppo.kl_coef == 0, "while ppo.kl_coef is 0"),
        "ppo.cliprange": (one_step, "where a batch takes one step (ppo.num_ppo_epochs=1, ppo.num_mini_batches=1)"),
        "ppo.cliprange_value": (one_step or not ppo.vf_coef, "where a batch takes one step or ppo.vf_coef is 0"),
        "ppo.value": (ppo.vf_coef == 0, "while ppo.vf_coef is 0: values start at 0 and stay there"),
        "evaluate.judge": (bool(evaluate.judge_url), "beside evaluate.judge_url, which judges in its place"),
        "evaluate.judge_model": (not evaluate.judge_url, "without evaluate.judge_url"),
        "track.artifacts": (profile.track.wandb == "off", "while track.wandb is off"),
        "track.project": (profile.track.wandb == "off", "while track.wandb is off"),
    }
    for stage, settings in _on_rows(profile).items():
        rules |= _of_training(stage, settings)
    if "dpo" in algorithms(profile):
        rules["dpo.label_smoothing"] = ("robust" not in profile.dpo.names, "without robust in dpo.loss_type")
    for table in sampling_algorithms(profile):
        rules |= _of_policy(getattr(profile, table), evaluate)
    return {name: why for name, (idle, why) in rules.items() if idle}


def _on_rows(profile: Profile) -> dict[str, TrainingSettings]:
    """The tables of the stages of a run that learn from rows as they are."""
    tables: dict[str, TrainingSettings] = {"sft": profile.sft, "reward": profile.reward}
    policies: dict[str, TrainingSettings] = {"dpo": profile.dpo, "distill": profile.distill}
    return tables | {table: settings for table, settings in policies.items() if table in algorithms(profile)}


def _of_training(stage: str, settings: TrainingSettings) -> dict[str, tuple[bool, str]]:
    """What the tables of SFT, the reward model, DPO and `distill` have."""
    never = 0 < settings.max_steps < settings.logging_steps
    rules = {
        "warmup_steps": (settings.lr_scheduler_type == "constant", f"on {stage}.lr_scheduler_type=constant"),
        "patience": (settings.keep == "last", f"beside {stage}.keep=last"),
        "logging_steps": (never, f"above {stage}.max_steps: nothing would be logged"),
    }
    return {f"{stage}.{name}": rule for name, rule in rules.items()}


def _of_policy(settings: PolicySettings, evaluate: EvaluateSettings) -> dict[str, tuple[bool, str]]:
    """What every algorithm's table has, and RLOO's and GRPO's alone."""
    table, weight = settings.table, f"{settings.table}.{settings.kl_weight}"
    unweighted, unwatched = settings.beta_or_kl_coef == 0, settings.eval_every == 0
    rules = {
        "kl_horizon": (settings.kl_target == 0, f"while {table}.kl_target is 0"),
        "kl_target": (unweighted, f"while {weight} is 0, since it is multiplied"),
        "adam_epsilon": (not _has_epsilon(settings.optim), f"on {table}.optim={settings.optim}, which has none"),
        "local_rollout_forward_batch_size": (
            settings.local_rollout_forward_batch_size > settings.batch,
            f"above a batch of {settings.batch} episodes",
        ),
        "keep": (unwatched, f"while {table}.eval_every is 0"),
        "patience": (unwatched, f"while {table}.eval_every is 0"),
        "judge": (
            unwatched or evaluate.judge != "auto" or bool(evaluate.judge_url),
            f"while {table}.eval_every is 0 or evaluation has another judge or none",
        ),
        "warmup_steps": (settings.lr_scheduler_type == "constant", f"on {table}.lr_scheduler_type=constant"),
    }
    if isinstance(settings, GroupSettings):
        one_step = f"where a batch takes one step ({table}.num_iterations=1, and no more {table}.steps_per_generation)"
        rules |= dict.fromkeys(("epsilon", "epsilon_high"), (settings.passes == settings.mini_batches == 1, one_step))
    if isinstance(settings, GRPOSettings):
        # Where no step came before, a ratio is 1, and the gradient of an answer's mean ratio is the mean of its tokens'.
        rules["importance_sampling_level"] = rules["epsilon"]
        whole = settings.loss_type == "bnpo" and settings.mini_batches == 1
        rules["loss_type"] = (
            whole,
            f"beside dapo where a pass over a batch is one step (no more {table}.steps_per_generation)",
        )
    return {f"{table}.{name}": rule for name, rule in rules.items()}


def _has_epsilon(optim: str) -> bool:
    return "adamw" in optim or "ademamix" in optim


def _warm_up(stage: str, steps: int, warmup: int) -> str:
    return (
        f"{stage}.warmup_steps={warmup} is as long as the {steps} steps of the stage, so the learning rate would never come "
        f"to its value; take fewer than {steps}"
    )


def _policy_contradictions(settings: PolicySettings) -> Iterator[str]:
    table, batch, horizon = settings.table, settings.batch, settings.kl_horizon
    if settings.kl_target and horizon <= 0.2 * batch:
        yield (
            f"{table}.kl_horizon={horizon} is so short that a batch of {batch} episodes could make "
            f"{table}.{settings.kl_weight} negative; take more than {0.2 * batch:g}"
        )
    if isinstance(settings, PPOSettings):
        yield from _ppo_contradictions(settings)
    if isinstance(settings, GroupSettings):
        yield from _group_contradictions(settings)
    if 0 < (updates := -(-settings.total_episodes // batch)) <= settings.warmup_steps:
        yield _warm_up(table, updates, settings.warmup_steps)


def _ppo_contradictions(ppo: PPOSettings) -> Iterator[str]:
    batch, minis = ppo.batch, ppo.num_mini_batches
    if batch % minis:
        yield (
            f"ppo.num_mini_batches={minis} does not divide a batch of {batch} episodes "
            "(per_device_train_batch_size times gradient_accumulation_steps); choose a divisor"
        )
    if ppo.whiten_rewards and batch // minis < SMALLEST_WHITENED:
        yield (
            f"ppo.whiten_rewards=true needs mini-batches of {SMALLEST_WHITENED} episodes at least, and "
            f"{batch} in {minis} are {batch // minis}; lower ppo.num_mini_batches"
        )


def _group_contradictions(settings: GroupSettings) -> Iterator[str]:
    table, each, taken = settings.table, settings.num_generations, settings.gradient_accumulation_steps
    if settings.steps % taken:
        yield (
            f"{table}.steps_per_generation={settings.steps} is no multiple of {table}.gradient_accumulation_steps={taken}; "
            "choose one that is"
        )
    if settings.batch % each:
        yield (
            f"{table}.num_generations={each} does not divide a batch of {settings.batch} answers "
            "(per_device_train_batch_size times steps_per_generation); choose a divisor"
        )
