"""Reads a profile's file, and the settings that override it.

load_profile("tiny", ["sft.max_steps=50"]).sft.max_steps == 50
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rlrecipes.errors import UserError, first_line
from rlrecipes.profile.contradictions import contradictions, idle, without_effect
from rlrecipes.profile.functions import functions_joined
from rlrecipes.profile.names import OF_TABLES, OTHER, meant, ours
from rlrecipes.profile.settings import Profile
from rlrecipes.recipe import recipe_roots, unknown

_TABLES = {f.name: f.default_factory for f in fields(Profile) if callable(f.default_factory)}

REFUSED = {
    "ppo.bf16": "the precision is model.dtype's",
    "ppo.fp16": "half precision overflows in QLoRA; use model.dtype=bfloat16",
    "ppo.max_steps": "TRL's PPO counts episodes; use ppo.total_episodes",
    "ppo.num_train_epochs": "TRL's PPO counts episodes; use ppo.total_episodes",
    "ppo.eval_steps": "TRL's PPO never evaluates while it trains; the evaluate stage does",
    "ppo.sft_model_path": "TRL's PPO trainer does not read it; the sft stage's adapter is used",
    "ppo.reward_model_path": "TRL's PPO trainer does not read it; the reward stage's adapter is used",
    "ppo.stop_token": "answers always end at the tokenizer's EOS token",
    "ppo.stop_token_id": "answers always end at the tokenizer's EOS token",
    **{
        f"{table}.{name}": why.format(table)
        for table in ("rloo", "grpo")
        for name, why in {
            "bf16": "the precision is model.dtype's",
            "fp16": "half precision overflows in QLoRA; use model.dtype=bfloat16",
            "max_steps": "a policy's training counts episodes; use {}.total_episodes",
            "num_train_epochs": "a policy's training counts episodes; use {}.total_episodes",
            "eval_steps": "looks at the policy are {}.eval_every's",
            "max_completion_length": "answers are as long in every algorithm, so that they can be compared; use "
            "ppo.response_length",
            "generation_batch_size": "a batch is {0}.per_device_train_batch_size times {0}.steps_per_generation",
            "reward_weights": "each term of the reward has its own, as terms.learned",
            "use_vllm": "answers are drawn from the model that is trained",
        }.items()
    },
    **{f"{table}.max_length": "the window is model.max_length's" for table in ("sft", "reward", "dpo", "distill")},
    "dpo.max_prompt_length": "nothing is cut; comparisons longer than model.max_length are left out and counted",
    "dpo.bf16": "the precision is model.dtype's",
    "dpo.fp16": "half precision overflows in QLoRA; use model.dtype=bfloat16",
    "dpo.rpo_alpha": "TRL dropped the name; use dpo.loss_type=sigmoid,sft with dpo.loss_weights=1,…",
    "dpo.reference_free": "the reference is the SFT policy, whose log-probabilities are computed once",
    "dpo.sync_ref_model": "the reference's log-probabilities are computed once, before training",
    "dpo.precompute_ref_log_probs": "they are always computed once, before training",
    "dpo.precompute_ref_batch_size": "it is dpo.per_device_train_batch_size, without gradients",
    "dpo.disable_dropout": "DPO trains without dropout in any case",
    "dpo.use_liger_kernel": "logits never exist for a whole batch in any case",
    "dpo.padding_free": "TRL 1.12 does not do it either",
    **dict.fromkeys(
        (
            "dpo.f_divergence_type",
            "dpo.f_alpha_divergence_coef",
            "dpo.ld_alpha",
            "dpo.use_weighting",
            "dpo.discopop_tau",
        ),
        "it is of TRL's losses beyond sigmoid, hinge, ipo, robust and sft, which are not offered",
    ),
    **dict.fromkeys(
        (
            "dpo.total_episodes",
            "dpo.num_generations",
            "dpo.temperature",
            "dpo.response_length",
            "dpo.eval_every",
            "dpo.anyway",
        ),
        "DPO samples nothing and climbs no reward model; it learns from the comparisons",
    ),
    "distill.bf16": "the precision is model.dtype's",
    "distill.fp16": "half precision overflows in QLoRA; use model.dtype=bfloat16",
    **dict.fromkeys(
        ("distill.response_length", "distill.max_completion_length"),
        "answers are as long in every algorithm, so that they can be compared; use ppo.response_length",
    ),
    **dict.fromkeys(
        ("distill.beta", "distill.kl_coef"),
        "nothing holds it at SFT but the few steps that it takes; use distill.max_steps or distill.learning_rate",
    ),
    "distill.eval_every": "the step that is kept is the one with the lowest loss on rows set aside (distill.keep)",
}
"""Names that people know from TRL, and why a profile does not offer them."""

_MUST_BE = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "dataclass": "a table",
    "literal": "one of {expected}",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "at most {le}",
}
"""Our words for pydantic's kinds of error, by name or first word; the text of other kinds is good as it is."""


def profile_names() -> list[str]:
    return sorted(_files())


def _files() -> dict[str, Path]:
    return {path.stem: path for root in reversed(recipe_roots()) for path in (root / "profiles").glob("*.toml")}


def load_profile(name: str, overrides: Sequence[str] = (), model: str | None = None) -> Profile:
    """The profile `recipes/profiles/<name>.toml` with `table.key=value` overrides; `model` is a hub id or a local folder.

    An override with a positive `max_steps` takes the place of the file's `num_train_epochs`.

    Raises:
        UserError: the profile, a table or a key does not exist, its file is not TOML, a value has the wrong type or is out of
            bounds, or two values contradict.
    """
    return make_profile(read_tables(name), name, overrides, model, f"profile '{name}'")


def read_tables(name: str) -> dict[str, Any]:
    """The tables of a profile's file.

    Raises:
        UserError: there is no such profile, or its file is not TOML.
    """
    if name not in (files := _files()):
        raise UserError(unknown("profile", name, list(files), f"there are {', '.join(sorted(files))}"))
    try:
        return tomllib.loads(files[name].read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{files[name]} is not TOML: {first_line(error)}; mend it") from None


def make_profile(
    read: Mapping[str, Any], name: str, overrides: Sequence[str], model: str | None, origin: str
) -> Profile:
    """The profile of tables as they stand in a file, which `origin` names in sentences; otherwise like `load_profile`."""
    tables: dict[str, Any] = deepcopy(dict(read))
    overrides = functions_joined(overrides)
    for table in outweighed(tables, overrides):
        del tables[table]["num_train_epochs"]
    for override in [*overrides, *([f"model.name={model}"] if model is not None else [])]:
        table, key, value = split_override(override)
        check_key(table, key)
        if isinstance(tables.setdefault(table, {}), dict):  # anything but a table is refused below
            tables[table][key] = value
    try:
        profile = Profile(**tables | {"name": name})
    except ValidationError as error:
        raise UserError(_refusal(error.errors()[0], origin, overrides)) from None
    for sentence in idle(profile, overrides):
        raise UserError(sentence)
    names = [override.partition("=")[0] for override in overrides]
    for sentence in contradictions(profile, names, _spared(profile)):
        raise UserError(sentence)
    return profile


def _spared(profile: Profile) -> set[str]:
    """The settings without effect that nobody chose: they are as in the profile's file, where they have one."""
    file = _tables_of_file(profile)
    names = {name for name in without_effect(profile) if not _differs(profile, name, file)}
    try:
        return names - {*without_effect(Profile(**{**file, "name": ""}))}
    except ValidationError:  # an override took the place of a bad value
        return names


def outweighed(tables: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The tables whose `num_train_epochs` an override with a positive `max_steps` takes the place of."""
    named = {path: value for path, _, value in (override.partition("=") for override in overrides)}
    steps = {table: named.get(f"{table}.max_steps", "") for table in ("sft", "reward", "dpo", "distill")}
    return [
        table
        for table, value in steps.items()
        if value.isdecimal() and int(value) > 0 and f"{table}.num_train_epochs" not in named
        if isinstance(tables.get(table), dict) and "num_train_epochs" in tables[table]
    ]


def check_profile(profile: Profile) -> None:
    """Refuses a profile whose values contradict each other, or that somebody chose and that have no effect, wherever it was
    made.

    Raises:
        UserError: the sentence says which.
    """
    for sentence in contradictions(profile, spared=_spared(profile)):
        raise UserError(sentence)


def split_override(override: str) -> tuple[str, str, str]:
    """`sft.max_steps=50` as its three parts."""
    path, equals, value = override.partition("=")
    table, dot, key = path.partition(".")
    if not dot and equals and value and (names := ours("", path, _known())):
        raise UserError(f"the setting '{override}' lacks its table; {meant(names)}")
    if not (equals and dot and table and key and value):
        raise UserError(f"cannot read the setting '{override}'; write it as table.key=value, such as sft.max_steps=50")
    return table, key, value


def check_once(settings: Sequence[str]) -> None:
    """Refuses settings of which one is given twice with different values: the first would have no effect.

    Raises:
        UserError: with both values.
    """
    values: dict[str, str] = {}
    for name, _, value in (setting.partition("=") for setting in settings):
        if values.setdefault(name, value) != value:
            raise UserError(f"{name} is given as {values[name]} and as {value}; give it once")


def check_key(table: str, key: str) -> None:
    """Refuses a key that no profile has, naming the nearest one, or the reason why TRL's is not offered."""
    if reason := REFUSED.get(f"{table}.{key}"):
        raise UserError(f"{table}.{key} is not a setting: {reason}")
    if (name := f"{table}.{key}") in (known := _known()):
        return
    if (key in OTHER or key in OF_TABLES.get(table, {})) and (names := ours(table, key, known)):
        raise UserError(f"there is no setting '{name}'; {meant(names)}")
    raise UserError(unknown("setting", name, known, f"the tables are terms, {', '.join(_TABLES)}"))


def _known() -> list[str]:
    return [f"{table}.{key}" for table, kind in _TABLES.items() for key in _names(kind)]


def by_hand(profile: Profile, name: str) -> bool:
    """Whether a setting such as `sft.patience` has another value than the profile's file, or its default, gives it."""
    return _differs(profile, name, _tables_of_file(profile))


def _differs(profile: Profile, name: str, file: Mapping[str, Any]) -> bool:
    table, _, key = name.partition(".")
    usual = file.get(table, {}).get(key, getattr(_TABLES[table], key))
    return bool(getattr(getattr(profile, table), key) != usual)


def _tables_of_file(profile: Profile) -> dict[str, Any]:
    """Those of the file that the profile is named after; empty where there is none."""
    return read_tables(profile.name) if profile.name in _files() else {}


def settings_of(profile: Profile, *names: str) -> dict[str, Any]:
    """The named tables, and single settings such as `evaluate.limit`, as one flat dictionary `{"sft.max_steps": 100, …}`."""
    parts = [name.partition(".") for name in names]
    return {
        f"{table}.{key}": value
        for table, _, one in parts
        for key, value in asdict(getattr(profile, table)).items()
        if one in ("", key)
    }


def _names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


def _refusal(error: ErrorDetails, origin: str, overrides: Sequence[str]) -> str:
    """What is wrong with a value: a sentence about the override that set it, or else about the file."""
    *table, key = map(str, error["loc"])
    where = ", ".join([origin, *(f"table [{part}]" for part in table)])
    if error["type"] == "unexpected_keyword_argument":
        known = _names(_TABLES[table[0]] if table else Profile)
        return f"{where}: " + unknown("setting", key, known, f"there are {', '.join(known)}")
    kind = error["type"] if error["type"] in _MUST_BE else error["type"].partition("_")[0]
    limits = {limit: str(value).replace("'", "").replace(" or ", ", ") for limit, value in error.get("ctx", {}).items()}
    bound = _MUST_BE.get(kind, error["msg"].removeprefix("Input should be ")).format(**limits)
    given = [override for override in overrides if override.startswith(".".join([*table, key]) + "=")]
    return (f"{given[-1]}: " if given else f"{where}, '{key}' is {error['input']!r}; ") + f"it must be {bound}"
