"""Settings that are each within their bounds, and have no effect or contradict each other.

"sft.num_train_epochs=2 would have no effect beside sft.max_steps=100; say sft.max_steps=-1 as well"
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlrecipes.profile.settings import PPOSettings, Profile

SMALLEST_WHITENED = 8  # episodes in a mini-batch below which TRL does not whiten rewards

SCORING = ("reward.model=", "reward.per_device_train_batch_size=")
"""Settings of the `[reward]` table that take effect on a reward model that is not trained here."""


def idle(profile: Profile, overrides: Sequence[str]) -> Iterator[str]:
    """Sentences about overrides of a base model or a reward model that the run does not train."""
    model, reward = profile.model.name, profile.reward.model
    for override in overrides:
        if override.startswith("base.") and model != "builtin":
            yield f"{override} has no effect on the model '{model}'; it is for the embedded base"
        if override.startswith("reward.") and reward is not None and not override.startswith(SCORING):
            yield f"{override} has no effect beside reward.model={reward}, which trains nothing"


def contradictions(profile: Profile) -> Iterator[str]:
    """Sentences about values that are within their bounds and contradict each other."""
    for stage, settings in (("sft", profile.sft), ("reward", profile.reward)):
        steps, epochs = settings.max_steps, settings.num_train_epochs
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
    yield from _ppo_contradictions(profile.ppo, profile.model.max_length)


def _ppo_contradictions(ppo: PPOSettings, window: int) -> Iterator[str]:
    batch = ppo.per_device_train_batch_size * ppo.gradient_accumulation_steps
    minis, horizon = ppo.num_mini_batches, ppo.kl_horizon
    if ppo.response_length >= window:
        yield f"ppo.response_length={ppo.response_length} leaves no room for a prompt in model.max_length={window}; lower it"
    if batch % minis:
        yield (
            f"ppo.num_mini_batches={minis} does not divide a batch of {batch} episodes "
            "(per_device_train_batch_size times gradient_accumulation_steps); choose a divisor"
        )
    if ppo.kl_target and horizon <= 0.2 * batch:
        yield (
            f"ppo.kl_horizon={horizon} is so short that a batch of {batch} episodes could make ppo.kl_coef negative; "
            f"take more than {0.2 * batch:g}"
        )
    if ppo.whiten_rewards and batch // minis < SMALLEST_WHITENED:
        yield (
            f"ppo.whiten_rewards=true needs mini-batches of {SMALLEST_WHITENED} episodes at least, and "
            f"{batch} in {minis} are {batch // minis}; lower ppo.num_mini_batches"
        )
    if ppo.kl_target == 0 and horizon != PPOSettings.kl_horizon:
        yield "ppo.kl_horizon has no effect while ppo.kl_target is 0; set ppo.kl_target as well"
