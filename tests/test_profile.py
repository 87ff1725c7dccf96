"""Every setting takes effect or is refused."""

import ast
import dataclasses
import inspect
import re
from itertools import pairwise
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from conftest import ROOT

from rlrecipes import run_recipe
from rlrecipes.errors import UserError
from rlrecipes.profile import (
    ALGORITHMS,
    REFUSED,
    SAMPLING,
    Profile,
    check_profile,
    load_profile,
    profile_names,
    settings_of,
)
from rlrecipes.profile.load import make_profile, read_tables
from rlrecipes.profile.names import OTHER, ours
from rlrecipes.run.stages import STAGES

TABLES = [field.name for field in dataclasses.fields(Profile) if field.name not in ("name", "description", "data")]
KEYS = [
    (table, field.name)
    for table in TABLES
    for field in dataclasses.fields(getattr(Profile("any"), table))
    if field.name != "optim"
]
EVERY = f"run.algorithms={','.join(ALGORITHMS)}"
GROUPED = ("rloo", "grpo")
COMPANIONS = {
    **{f"{table}.{key}": [EVERY] for table, key in KEYS if table in GROUPED},
    **{f"{table}.kl_horizon": [EVERY, f"{table}.kl_target=6"] for table in GROUPED},
    **{f"dpo.{key}": [EVERY] for table, key in KEYS if table == "dpo"},
    "dpo.num_train_epochs": [EVERY, "dpo.max_steps=-1"],
    **{f"distill.{key}": [EVERY] for table, key in KEYS if table == "distill"},
    "distill.num_train_epochs": [EVERY, "distill.max_steps=-1"],
    "dpo.label_smoothing": [EVERY, "dpo.loss_type=robust"],
    "sft.num_train_epochs": ["sft.max_steps=-1"],
    "reward.num_train_epochs": ["reward.max_steps=-1"],
    "ppo.kl_horizon": ["ppo.kl_target=6"],
    "evaluate.judge_url": ["evaluate.judge_model=m"],
    "evaluate.judge_model": ["evaluate.judge_url=http://localhost/v1"],
    "ppo.num_mini_batches": ["ppo.per_device_train_batch_size=14"],
    "reward.combine": ["reward.seeds=3"],
}
"""What must be said beside a setting, so that it does not contradict the profile."""


OTHERS = {"base.vocab_size": 500, "base.hidden_size": 320, "base.num_attention_heads": 2, "run.algorithms": "grpo"}
OTHERS |= {f"{table}.kl_horizon": 700 for table in SAMPLING}
OTHERS |= {"dpo.loss_type": "hinge", "dpo.loss_weights": "2", "distill.local_rollout_forward_batch_size": 16}
OTHERS |= {f"{table}.{key}": 8 for table in GROUPED for key in ("num_generations", "per_device_train_batch_size")}
"""Values where 7 will not do."""
RECORDED = {name.partition(".")[0] for stage in STAGES.values() for name in stage.tables} | {"base"}
"""The tables that `done.json` holds."""


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
        (["ppo.gamma=1.1"], "^ppo.gamma=1.1: it must be at most 1$"),
        (["ppo.lam=2"], "at most 1"),
        (["sft.learning_rate=0"], "greater than 0"),
        (["sft.learning_rate=inf"], "finite"),
        (["ppo.learning_rate=1e38"], "at most 1000"),
        (["sft.weight_decay=-1"], "0 or more"),
        (["ppo.temperature=0"], "0.01 or more"),
        (["ppo.total_episodes=-5"], "greater than 0"),
        (["ppo.kl_coef=-0.1"], "0 or more"),
        (["sft.max_steps=1.5"], "a whole number"),
        (["evaluate.limit=1e3"], "a whole number"),
        (["sft.max_steps=true"], "a whole number"),
        (["sft.learning_rate=True"], "a number"),
        (["sft.gradient_checkpointing=yes"], "true or false"),
        (["ppo.kl_coef=nan"], "a finite number"),
        (["lora.lora_dropout=1"], "less than 1"),
        (["lora.lora_dropout=-0.1"], "0 or more"),
        (["base.seed=4294967296"], "at most 4294967295"),
    ],
)
def test_a_contradiction_is_refused(overrides, said):
    with pytest.raises(UserError, match=said):
        load_profile("tiny", overrides)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("ppo.lr=1", "there is no setting 'ppo.lr'; did you mean 'ppo.learning_rate'?"),
        ("ppo.beta=1", "did you mean 'ppo.kl_coef'?"),
        ("beta=1", "the setting 'beta=1' lacks its table; did you mean 'ppo.kl_coef'?"),
        ("sft.batch_size=1", "did you mean 'sft.per_device_train_batch_size'?"),
        ("max_new_tokens=9", "did you mean 'ppo.response_length'?"),
        ("sft.bf16=true", "did you mean 'model.dtype=bfloat16'?"),
        ("load_in_4bit=true", "did you mean 'model.quantization=nf4'?"),
        ("epochs=1", "did you mean 'sft.num_train_epochs', 'reward.num_train_epochs', 'dpo.num_train_epochs' or"),
        ("ppo.epochs=1", "did you mean 'ppo.num_ppo_epochs'?"),
        (
            "lr=1",
            "did you mean 'sft.learning_rate', 'reward.learning_rate', 'ppo.learning_rate', 'rloo.learning_rate',",
        ),
        ("grpo.max_completion_length=9", "use ppo.response_length"),
        ("grpo.response_length=9", "did you mean 'ppo.response_length'?"),
        ("grpo.kl_coef=1", "did you mean 'grpo.beta'?"),
        ("rloo.rloo_k=2", "did you mean 'rloo.num_generations'?"),
        ("grpo.num_ppo_epochs=2", "did you mean 'grpo.num_iterations'?"),
        ("dpo.kl_coef=1", "did you mean 'dpo.beta'?"),
        ("dpo.loss=ipo", "did you mean 'dpo.loss_type'?"),
        ("distill.best_of_n=8", "did you mean 'distill.num_generations'?"),
        ("dpo.rpo_alpha=1", "use dpo.loss_type=sigmoid,sft with dpo.loss_weights=1,…"),
        ("nonsense=1", "write it as table.key=value"),
    ],
)
def test_a_name_that_other_libraries_have_is_answered_with_ours(override, said):
    with pytest.raises(UserError) as refusal:
        load_profile("tiny", [override])
    assert said in str(refusal.value)


def test_every_name_of_others_stands_for_a_setting_that_there_is():
    known = list(settings_of(load_profile("tiny"), *TABLES))
    for key, name in OTHER.items():
        assert ours("", key, known), key
        for path in ours("", key, known):
            assert path.partition("=")[0] in known, name
            if "=" in path:
                load_profile("tiny", [path])


def test_steps_on_the_command_line_take_the_place_of_a_profiles_epochs():
    assert load_profile("single_gpu_24gb").sft.num_train_epochs == 1
    for table in ("sft", "reward", "dpo", "distill"):
        settings = getattr(load_profile("single_gpu_24gb", [EVERY, f"{table}.max_steps=50"]), table)
        assert (settings.max_steps, settings.num_train_epochs) == (50, None)
    with pytest.raises(UserError, match=r"no effect beside sft\.max_steps=50"):
        load_profile("single_gpu_24gb", ["sft.max_steps=50", "sft.num_train_epochs=2"])
    assert load_profile("single_gpu_24gb", ["sft.max_steps=-1"]).sft.num_train_epochs == 1


CONSTANT = "lr_scheduler_type=constant"
IDLE = {
    "sft.warmup_steps": [["sft." + CONSTANT], ["sft.max_steps=7"]],
    "reward.warmup_steps": [["reward." + CONSTANT], ["reward.max_steps=7"]],
    "sft.logging_steps": [["sft.max_steps=6"]],
    "reward.logging_steps": [["reward.max_steps=6"]],
    "sft.num_train_epochs": [["sft.max_steps=6"]],
    "reward.num_train_epochs": [["reward.max_steps=6"]],
    **{
        f"{table}.{key}": [[EVERY, f"{table}.{beside}"] for beside in besides]
        for table in ("dpo", "distill")
        for key, besides in {
            "warmup_steps": [CONSTANT, "max_steps=7"],
            "logging_steps": ["max_steps=6"],
            "num_train_epochs": ["max_steps=6"],
            "patience": ["keep=last"],
        }.items()
    },
    "dpo.label_smoothing": [[EVERY, "dpo.loss_type=ipo"], [EVERY, "dpo.loss_type=sigmoid,sft"]],
    "ppo.kl_estimator": [["ppo.kl_coef=0"]],
    "ppo.cliprange": [["ppo.num_ppo_epochs=1"]],
    "ppo.cliprange_value": [["ppo.num_ppo_epochs=1"], ["ppo.vf_coef=0"]],
    "ppo.value": [["ppo.vf_coef=0"]],
    "sft.patience": [["sft.keep=last"]],
    "reward.patience": [["reward.keep=last"]],
    **{
        f"{table}.{key}": [[EVERY, f"{table}.{beside}"] for beside in besides]
        for table, weight in (("ppo", "kl_coef"), ("rloo", "beta"), ("grpo", "beta"))
        for key, besides in {
            "warmup_steps": [CONSTANT, "total_episodes=448"],
            "kl_horizon": ["kl_target=0"],
            "kl_target": [f"{weight}=0"],
            "adam_epsilon": [f"optim={name}" for name in ("sgd", "adafactor", "adagrad", "rmsprop", "lion_32bit")],
            "local_rollout_forward_batch_size": ["per_device_train_batch_size=4"],
            "keep": ["eval_every=0"],
            "patience": ["eval_every=0"],
            "judge": ["eval_every=0"],
        }.items()
    },
    **{
        f"{table}.{key}": [[EVERY, f"{table}.num_iterations=1"]]
        for table in GROUPED
        for key in ("epsilon", "epsilon_high")
    },
    "grpo.importance_sampling_level": [[EVERY, "grpo.num_iterations=1"]],
    "track.project": [["track.wandb=off"]],
    "track.artifacts": [["track.wandb=off"]],
    "evaluate.judge": [["evaluate.judge_url=http://localhost/v1", "evaluate.judge_model=m"]],
    "evaluate.judge_model": [["evaluate.limit=5"]],
    **{f"base.{key}": [["model.name=some/model"]] for table, key in KEYS if table == "base"},
    **{
        f"reward.{key}": [["reward.model=some/model"]]
        for table, key in KEYS
        if table == "reward" and key not in ("model", "per_device_train_batch_size", "function")
    }
    | {
        "reward.warmup_steps": [["reward." + CONSTANT], ["reward.max_steps=7"], ["reward.model=some/model"]],
        "reward.patience": [["reward.keep=last"], ["reward.model=some/model"]],
        "reward.combine": [["reward.seeds=1"], ["reward.model=some/model"]],
    },
}
"""Settings, and those beside which nothing would read them."""
OF_EVERY_ALGORITHM = (
    *("total_episodes", "per_device_train_batch_size", "gradient_accumulation_steps", "temperature", "dense_rollout"),
    *("learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm", "gradient_checkpointing", "kl_stop"),
    *("anyway", "eval_every", "missing_eos_penalty", "reward_clip", "num_sample_generations"),
)
OF_GROUPS = (
    *("num_generations", "num_iterations", "steps_per_generation", "beta", "mask_truncated_completions"),
    "dynamic_sampling",
)
ALWAYS = {
    *("model.name", "model.quantization", "model.dtype", "model.attention", "model.max_length", "model.device"),
    *("lora.r", "lora.lora_alpha", "lora.lora_dropout", "lora.target_modules"),
    *("sft.max_steps", "sft.per_device_train_batch_size", "sft.gradient_accumulation_steps", "sft.learning_rate"),
    *(
        "sft.keep",
        "sft.learn",
        "sft.lr_scheduler_type",
        "sft.weight_decay",
        "sft.max_grad_norm",
        "sft.gradient_checkpointing",
    ),
    *("reward.model", "reward.per_device_train_batch_size", "reward.function"),
    "ppo.num_mini_batches",
    *("ppo.num_ppo_epochs", "ppo.response_length"),
    *(f"{table}.{key}" for table in SAMPLING for key in OF_EVERY_ALGORITHM),
    *(
        f"{policy}.{key}"
        for table, key in KEYS
        for policy in ("dpo", "distill")
        if table == "sft" and f"sft.{key}" not in IDLE and key != "learn"
    ),
    *("distill.num_generations", "distill.temperature", "distill.limit", "distill.local_rollout_forward_batch_size"),
    *("distill.missing_eos_penalty", "distill.anyway"),
    *("dpo.beta", "dpo.loss_type", "dpo.loss_weights"),
    *(f"{table}.{key}" for table in GROUPED for key in OF_GROUPS),
    *("rloo.normalize_advantages", "grpo.loss_type", "grpo.scale_rewards"),
    "run.algorithms",
    "run.start",
    *("ppo.kl_coef", "ppo.vf_coef", "ppo.gamma", "ppo.lam", "ppo.whiten_rewards"),
    *("evaluate.limit", "evaluate.batch_size", "evaluate.policies", "evaluate.judge_url", "evaluate.pass_at"),
    *("evaluate.bertscore", "evaluate.comet"),
    *("track.wandb", "checkpoint.seconds", "limits.term_seconds"),
    *("memory.card", "memory.halve_on_oom", "run.deterministic"),
}
"""Settings that something reads whatever the others are."""


def test_of_every_setting_it_is_known_when_it_takes_effect():
    assert {f"{table}.{key}" for table, key in KEYS} == ALWAYS | IDLE.keys()
    assert not ALWAYS & IDLE.keys()


@pytest.mark.parametrize("name", IDLE)
def test_a_setting_that_nothing_would_read_is_refused_in_a_sentence_that_names_it(name):
    table, key = name.split(".")
    value = another(load_profile("tiny"), table, key)
    for beside in IDLE[name]:
        with pytest.raises(UserError) as error:
            load_profile("tiny", [*beside, f"{name}={value}"])
        assert str(error.value).startswith(
            (f"{name}={value} ", f"{name}={float(value) if key == 'kl_target' else value}")
        )
        assert "no effect" in str(error.value) or "would never come to its value" in str(error.value)
        assert len(str(error.value)) < 300


def test_a_loss_of_grpo_that_is_another_by_its_batch_is_refused():
    one_step = (
        r"grpo\.loss_type=bnpo would have no effect beside dapo where a pass over a batch is one step \(no more grpo\."
    )
    with pytest.raises(UserError, match=one_step):
        load_profile("tiny", [EVERY, "grpo.loss_type=bnpo"])
    assert load_profile("tiny", [EVERY, "grpo.loss_type=bnpo", "grpo.steps_per_generation=2"]).grpo.mini_batches == 2
    assert load_profile("tiny", [EVERY, "grpo.loss_type=dr_grpo"]).grpo.mini_batches == 1


def test_a_default_that_somebody_gives_is_refused_where_nothing_would_read_it():
    assert load_profile("tiny", ["sft.max_steps=3"]).sft.logging_steps == 10
    with pytest.raises(UserError, match=r"sft\.logging_steps=10 would have no effect above sft\.max_steps"):
        load_profile("tiny", ["sft.max_steps=3", "sft.logging_steps=10"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["loss_type=sigmod"], "dpo.loss_type: there is no loss 'sigmod'; did you mean 'sigmoid'?"),
        (["loss_type=sft"], "dpo.loss_type=sft compares no answers; name one of sigmoid, hinge, ipo, robust"),
        (["loss_type=ipo,ipo"], "dpo.loss_type=ipo,ipo names a loss twice"),
        (["loss_type=robust"], "dpo.loss_type=robust is sigmoid while dpo.label_smoothing is 0; give the share of"),
        (["loss_type=robust", "label_smoothing=0.5"], "it must be less than 0.5"),
        (
            ["loss_type=sigmoid,sft", "loss_weights=1"],
            "must be a positive number for each of sigmoid, sft, with commas",
        ),
        (["loss_weights=-1"], "dpo.loss_weights=-1 must be a positive number for each of sigmoid"),
        (["loss_weights=half"], "dpo.loss_weights=half must be a positive number"),
        (["beta=0"], "greater than 0"),
        (["max_steps=0"], "dpo.max_steps is 0; give a number of steps, or dpo.num_train_epochs"),
    ],
)
def test_losses_of_dpo_that_mean_nothing_are_refused_in_a_sentence(settings, said):
    with pytest.raises(UserError) as error:
        load_profile("tiny", ["run.algorithms=dpo", *(f"dpo.{setting}" for setting in settings)])
    assert said in str(error.value)


def test_losses_of_dpo_have_their_weights_however_they_are_written():
    several = ["run.algorithms=dpo", "dpo.loss_type=sigmoid, sft", "dpo.loss_weights=1 0.2"]
    assert load_profile("tiny", several).dpo.losses == {"sigmoid": 1.0, "sft": 0.2}
    assert load_profile("tiny", several[:2]).dpo.losses == {"sigmoid": 1.0, "sft": 1.0}
    tables = {**read_tables("tiny"), "dpo": {"loss_type": ["ipo", "sft"], "loss_weights": [2, 0.5]}}
    assert make_profile(tables, "mine", [], None, "a file").dpo.losses == {"ipo": 2.0, "sft": 0.5}


def test_what_switches_off_what_is_off_may_be_given():
    assert load_profile(
        "tiny", ["sft.lr_scheduler_type=constant", "sft.warmup_steps=0", "ppo.kl_target=0", "ppo.kl_coef=0"]
    )


def test_what_a_file_sets_for_the_usual_case_stands_in_no_overrides_way():
    assert load_profile("own").ppo.patience == 0
    check_profile(load_profile("own", ["ppo.eval_every=0"]))
    tables = read_tables("own")
    kept = tables | {"ppo": tables["ppo"] | {"eval_every": 0}}  # as a run's settings.toml keeps them
    assert make_profile(kept, "own", [], None, "settings.toml").ppo.patience == 0
    with pytest.raises(UserError, match=r"ppo\.patience=2 would have no effect while ppo\.eval_every is 0"):
        load_profile("own", ["ppo.eval_every=0", "ppo.patience=2"])


def test_a_file_that_sets_what_nothing_would_read_is_refused_whatever_is_overridden():
    steps = {"max_steps": 50}
    tables = {"sft": steps, "reward": steps, "ppo": {"eval_every": 0, "patience": 3}}
    for overrides in [], ["sft.max_steps=40"]:
        with pytest.raises(UserError, match=r"ppo\.patience=3 would have no effect"):
            make_profile(tables, "mine", overrides, None, "profile 'mine'")
    assert make_profile(tables, "mine", ["ppo.eval_every=4"], None, "profile 'mine'").ppo.patience == 3


@pytest.mark.parametrize(("table", "key"), [pair for pair in KEYS if pair[0] in RECORDED], ids=lambda part: part)
def test_a_setting_that_decides_a_result_is_recorded_with_it(table, key):
    name, profile = f"{table}.{key}", load_profile("tiny")
    changed = load_profile("tiny", [*COMPANIONS.get(name, []), f"{name}={another(profile, table, key)}"])
    recorded = [settings_of(each, table) for each in (profile, changed)]
    assert recorded[0][name] != recorded[1][name]


def test_a_setting_that_is_not_recorded_is_read_by_name():
    read = attributes(ROOT / "rlrecipes")
    assert {key for table, key in KEYS if table not in RECORDED} <= read


def test_a_profile_that_is_built_in_python_is_held_to_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = load_profile("tiny")
    idle = dataclasses.replace(profile, ppo=dataclasses.replace(profile.ppo, kl_horizon=5))
    with pytest.raises(UserError, match=r"ppo\.kl_horizon=5 would have no effect while ppo\.kl_target is 0"):
        run_recipe("translation", idle)


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


def attributes(folder):
    """Every name that code of ours reads as an attribute."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def marked(table, mark=r"Ours"):
    """The fields of a table, and of what it inherits, whose text begins with "Ours", or as `mark` says."""
    kinds = [kind for kind in type(table).__mro__ if dataclasses.is_dataclass(kind)]
    body = [line for kind in kinds for line in ast.parse(inspect.getsource(kind)).body[0].body]
    pairs = [(field, text) for field, text in pairwise(body) if isinstance(field, ast.AnnAssign)]
    return {field.target.id for field, text in pairs if re.match(mark, ast.unparse(text).strip("'\""), re.DOTALL)}


def test_every_training_setting_is_one_that_trl_knows_or_is_marked_as_ours_and_read_by_us():
    from trl import DPOConfig, GRPOConfig, RewardConfig, RLOOConfig, SFTConfig

    from rlrecipes.policy.trainer import PPOConfig

    profile, grouped = load_profile("tiny"), r"Ours|.*Not in TRL's RLOO and GRPO"
    for table, config, mark in (
        (profile.sft, SFTConfig, "Ours"),
        (profile.reward, RewardConfig, "Ours"),
        (profile.ppo, PPOConfig, "Ours"),
        (profile.rloo, RLOOConfig, grouped),
        (profile.grpo, GRPOConfig, grouped),
        (profile.dpo, DPOConfig, "Ours"),
        (profile.distill, SFTConfig, "Ours"),
    ):
        lacking = {field.name for field in dataclasses.fields(table)} - {f.name for f in dataclasses.fields(config)}
        assert marked(table, mark) == lacking
        assert lacking <= attributes(ROOT / "rlrecipes")


def test_only_what_a_configuration_of_trl_knows_is_handed_to_it(tmp_path):
    from transformers import TrainingArguments
    from trl import RewardConfig

    from rlrecipes.policy.trainer import PPOConfig
    from rlrecipes.run.resume import training_arguments

    profile = load_profile("tiny", ["reward.center_rewards_coefficient=0.5"])
    ppo = training_arguments(PPOConfig, profile.ppo, tmp_path, 0)
    assert {key for key in settings_of(profile, "ppo") if key.removeprefix("ppo.") not in ppo} == {
        *("ppo.kl_target", "ppo.kl_horizon", "ppo.kl_stop", "ppo.value", "ppo.reward_clip"),
        *("ppo.eval_every", "ppo.keep", "ppo.patience", "ppo.judge", "ppo.anyway", "ppo.dense_rollout"),
    }
    assert training_arguments(RewardConfig, profile.reward, tmp_path, 0)["center_rewards_coefficient"] == 0.5
    assert "center_rewards_coefficient" not in training_arguments(TrainingArguments, profile.reward, tmp_path, 0)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Loads a profile `mine` of this text."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "recipes" / "profiles"  # where one's own stand
    folder.mkdir(parents=True)

    def load(text, overrides=()):
        (folder / "mine.toml").write_text(text + "\n[sft]\nmax_steps = 2\n[reward]\nmax_steps = 2\n")
        return load_profile("mine", overrides)

    return load


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[ppo]\nwarmup_steps = 1.5", "profile 'mine', table [ppo], 'warmup_steps' is 1.5; it must be a whole number"),
        ("[ppo]\nkl_coef = -1", "profile 'mine', table [ppo], 'kl_coef' is -1; it must be 0 or more"),
        (
            "[model]\ndtype = 'int8'",
            "profile 'mine', table [model], 'dtype' is 'int8'; it must be one of float32, bfloat16",
        ),
        ("[track]\nproject = true", "profile 'mine', table [track], 'project' is True; it must be a text"),
        ("[ppo]\nwhiten_rewards = 1", "profile 'mine', table [ppo], 'whiten_rewards' is 1; it must be true or false"),
        ("[ppo]\nkl_coef = true", "profile 'mine', table [ppo], 'kl_coef' is 'True'; it must be a number"),
        (
            "[ppo]\nresponse_length = true",
            "profile 'mine', table [ppo], 'response_length' is 'True'; it must be a whole number",
        ),
        ("[ppo]\nkl_cof = 1", "profile 'mine', table [ppo]: there is no setting 'kl_cof'; did you mean 'kl_coef'?"),
        ("descripton = 'a'", "profile 'mine': there is no setting 'descripton'; did you mean 'description'?"),
        ("ppo = 5", "profile 'mine', 'ppo' is 5; it must be a table"),
    ],
)
def test_a_fault_of_a_profiles_file_names_profile_and_table(file, text, said):
    with pytest.raises(UserError) as error:
        file(text)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["ppo.kl_coef=low"], "ppo.kl_coef=low: it must be a number"),
        (["ppo.kl_coef=-1"], "ppo.kl_coef=-1: it must be 0 or more"),
        (["ppo.kl_coef=1", "ppo.kl_coef=-2"], "ppo.kl_coef=-2: it must be 0 or more"),
        (["model.dtype=int8"], "model.dtype=int8: it must be one of float32, bfloat16"),
    ],
)
def test_a_bad_override_is_told_as_the_user_wrote_it(file, overrides, said):
    with pytest.raises(UserError) as error:
        file("[ppo]\nkl_coef = 0.5", overrides)
    assert str(error.value) == said


def test_an_override_takes_the_place_of_a_bad_value_in_the_file(file):
    assert file("[ppo]\nkl_coef = -1", ["ppo.kl_coef=1"]).ppo.kl_coef == 1


def test_a_file_that_is_no_toml_is_told_with_the_place(file, tmp_path):
    with pytest.raises(UserError, match=r"recipes/profiles/mine\.toml is not TOML: .*line 1.*; mend it"):
        file("[ppo")
    (tmp_path / "recipes" / "profiles" / "mine.toml").write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not TOML: 'utf-8' codec"):
        load_profile("mine")


def test_a_profile_of_ones_own_hides_the_packages_and_the_others_stay(file, tmp_path):
    file("")
    (tmp_path / "recipes" / "profiles" / "tiny.toml").write_bytes(
        (tmp_path / "recipes/profiles/mine.toml").read_bytes()
    )
    assert load_profile("tiny").sft.max_steps == 2
    assert {"mine", "tiny", "single_gpu_16gb"} <= set(profile_names())


def test_an_override_in_a_table_that_is_none_is_told_of_the_table(file):
    with pytest.raises(UserError, match="'ppo' is 5; it must be a table"):
        file("ppo = 5", ["ppo.kl_coef=1"])


def test_a_file_may_write_a_whole_number_as_a_float_and_a_text_as_a_number(file):
    profile = file("[ppo]\ntotal_episodes = 1e3\n[memory]\ncard = 24")
    assert (profile.ppo.total_episodes, profile.memory.card) == (1000, "24")
    assert isinstance(profile.ppo.total_episodes, int)


@pytest.mark.parametrize("key", ["sft.max_steps", "ppo.total_episodes", "evaluate.limit", "lora.r"])
def test_a_number_that_no_library_could_hold_is_refused(key):
    with pytest.raises(UserError, match="it must be at most 2147483647"):
        load_profile("tiny", [f"{key}={'9' * 30}"])
