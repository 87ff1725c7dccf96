"""Every setting takes effect or is refused."""

import dataclasses
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from rlrecipes.errors import UserError
from rlrecipes.profile import REFUSED, Profile, load_profile, profile_names, settings_of

TABLES = [field.name for field in dataclasses.fields(Profile) if field.name not in ("name", "description", "data")]
KEYS = [
    (table, key) for table in TABLES for key in get_type_hints(type(getattr(Profile("any"), table))) if key != "optim"
]
COMPANIONS = {
    "sft.num_train_epochs": ["sft.max_steps=-1"],
    "reward.num_train_epochs": ["reward.max_steps=-1"],
    "ppo.kl_horizon": ["ppo.kl_target=6"],
    "ppo.num_mini_batches": ["ppo.per_device_train_batch_size=14"],
}
"""What must be said beside a setting, so that it does not contradict the profile."""


OTHERS = {"ppo.kl_horizon": 700, "base.vocab_size": 500, "base.hidden_size": 320, "base.num_attention_heads": 2}
"""Values where 7 will not do."""


def another(profile, table, key):
    """A value of the key's type that is not the one it has."""
    if f"{table}.{key}" in OTHERS:
        return OTHERS[f"{table}.{key}"]
    kind, now = get_type_hints(type(getattr(profile, table)))[key], getattr(getattr(profile, table), key)
    if get_origin(kind) is Literal:
        return next(value for value in get_args(kind) if value != now)
    kind = (get_args(kind) or (kind,))[0]
    return {bool: not now, str: "something", int: 7, float: 0.125}[kind]


@pytest.mark.parametrize(("table", "key"), KEYS, ids=lambda part: part)
def test_an_override_is_taken_up(table, key):
    profile = load_profile("tiny")
    value = another(profile, table, key)
    changed = load_profile("tiny", [*COMPANIONS.get(f"{table}.{key}", []), f"{table}.{key}={value}"])
    assert getattr(getattr(changed, table), key) == value
    assert getattr(getattr(profile, table), key) != value


def test_an_optimizer_is_taken_up():
    assert load_profile("tiny", ["ppo.optim=sgd"]).ppo.optim == "sgd"


def test_the_last_of_two_overrides_holds():
    assert load_profile("tiny", ["sft.max_steps=5", "sft.max_steps=6"]).sft.max_steps == 6


def test_model_is_short_for_the_models_name():
    assert load_profile("tiny", ["model.name=one"], model="other/one").model.name == "other/one"


def test_none_stands_for_nothing_where_nothing_is_allowed():
    assert load_profile("tiny", ["reward.center_rewards_coefficient=none"]).reward.center_rewards_coefficient is None
    with pytest.raises(UserError, match="a number"):
        load_profile("tiny", ["sft.learning_rate=none"])


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads_and_says_what_it_is_for(name):
    assert load_profile(name).description


def test_the_default_profile_is_there_and_in_4_bit():
    assert load_profile("tiny").model.quantization == "nf4"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sft.num_train_epochs=2"], "no effect beside sft.max_steps"),
        (["sft.max_steps=0"], "give a number of steps"),
        (["reward.max_steps=-1"], "reward.num_train_epochs"),
        (["reward.max_steps=-2"], "give a number of steps"),
        (["ppo.num_mini_batches=5", "ppo.per_device_train_batch_size=8"], "does not divide a batch of 8"),
        (["ppo.kl_horizon=5"], "no effect while ppo.kl_target is 0"),
        (["ppo.kl_target=6", "ppo.kl_horizon=12"], "could make ppo.kl_coef negative; take more than 12.8"),
        (["ppo.whiten_rewards=true", "ppo.num_mini_batches=16"], "needs mini-batches of 8 episodes at least"),
        (["ppo.gamma=1.1"], "ppo.gamma is 1.1; it must be at most 1"),
        (["ppo.lam=2"], "at most 1"),
        (["sft.learning_rate=0"], "greater than 0"),
        (["sft.learning_rate=inf"], "finite"),
        (["sft.weight_decay=-1"], "0 or more"),
        (["ppo.temperature=0"], "greater than 0"),
        (["ppo.total_episodes=-5"], "greater than 0"),
        (["ppo.kl_coef=-0.1"], "0 or more"),
        (["sft.max_steps=1.5"], "a whole number"),
        (["evaluate.limit=1e3"], "a whole number"),
    ],
)
def test_a_contradiction_is_refused(overrides, said):
    with pytest.raises(UserError, match=said):
        load_profile("tiny", overrides)


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_of_trl_that_would_do_nothing_is_refused_with_the_reason(name):
    with pytest.raises(UserError, match="is not a setting: "):
        load_profile("tiny", [f"{name}=1"])


def test_no_refused_name_is_offered():
    assert not set(REFUSED) & settings_of(load_profile("tiny"), *TABLES).keys()


def test_settings_are_flat():
    settings = settings_of(load_profile("tiny"), "sft", "reward")
    assert settings["sft.max_steps"] == load_profile("tiny").sft.max_steps
    assert {name.partition(".")[0] for name in settings} == {"sft", "reward"}


def test_every_training_setting_is_one_that_trl_knows_or_is_ours():
    from trl import RewardConfig, SFTConfig

    from rlrecipes.policy.trainer import PPOConfig
    from rlrecipes.stages import ppo, reward

    profile = load_profile("tiny")
    for table, config, ours in (
        (profile.sft, SFTConfig, set()),
        (profile.reward, RewardConfig, reward.OURS),
        (profile.ppo, PPOConfig, ppo.OURS),
    ):
        known = {field.name for field in dataclasses.fields(config)}
        assert not ours & known
        assert {field.name for field in dataclasses.fields(table)} <= known | ours


def test_half_a_step_is_refused_in_a_profile_file_too(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text("[sft]\nmax_steps = 1.5\n[reward]\nmax_steps = 2\n")
    monkeypatch.setattr("rlrecipes.profile.PROFILES", tmp_path)
    with pytest.raises(UserError, match=r"max_steps.*whole number"):
        load_profile("mine")
