"""A profile says how big a run is: base model, quantization, LoRA, and each stage's training arguments.

Profiles are the TOML files of `recipes/profiles/`; any value can be overridden as `table.key=value`. The training tables
hold TRL's and Transformers' own argument names and are passed on verbatim; a name that TRL would accept and then ignore is
not offered here, so every key either takes effect or is refused.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rlrecipes.errors import UserError
from rlrecipes.recipe import RECIPES, unknown

PROFILES = RECIPES / "profiles"


@dataclass(frozen=True)
class ModelSettings:
    """Which base model, and how it is held in memory."""

    name: str = "builtin"
    """Hub id or local folder; `builtin` trains the embedded base once and caches it."""
    quantization: Literal["nf4", "none"] = "nf4"
    """`nf4`: 4-bit NormalFloat with double quantization (QLoRA, arXiv 2305.14314); `none`: the weights as they are."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the unquantized weights and of every computation."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Transformers' `attn_implementation`; `sdpa` is PyTorch's fused one, `auto` what Transformers chooses for the model."""
    max_length: int = 512
    """Longest prompt plus answer in tokens; longer rows are dropped and counted."""


@dataclass(frozen=True)
class LoraSettings:
    """Size and place of every adapter (`peft.LoraConfig`)."""

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    """Used by SFT and the reward model; PPO needs the policy's probabilities to repeat and sets it to 0."""
    target_modules: str = "all-linear"
    """`all-linear`, or module names separated by commas."""


@dataclass(frozen=True)
class BaseSettings:
    """The embedded base model: a Llama trained from scratch on the recipes' own documents."""

    vocab_size: int = 2048
    hidden_size: int = 160
    intermediate_size: int = 480
    num_hidden_layers: int = 3
    num_attention_heads: int = 5
    max_position_embeddings: int = 2048
    max_steps: int = 1800
    per_device_train_batch_size: int = 24
    learning_rate: float = 1.5e-3
    seed: int = 0
    """Of the base alone: a run's SEED leaves it as it is, as with any base model one downloads."""


@dataclass(frozen=True)
class TrainingSettings:
    """What SFT and the reward model share (`transformers.TrainingArguments`)."""

    max_steps: int = -1
    """Optimizer steps; -1: `num_train_epochs` says how long."""
    num_train_epochs: float | None = None
    """Passes over the data; refused beside a positive `max_steps`, which would silently win."""
    per_device_train_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-4
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optim: str = "adamw_torch"
    gradient_checkpointing: bool = False
    logging_steps: int = 10


@dataclass(frozen=True)
class SFTSettings(TrainingSettings):
    """`trl.SFTConfig`; the loss is on the answer alone."""


@dataclass(frozen=True)
class RewardSettings(TrainingSettings):
    """`trl.RewardConfig`; the adapter starts from the SFT adapter, the score head from N(0, 1/(d+1)) (arXiv 2403.17031)."""

    objective: Literal["auto", "pairwise", "regression"] = "auto"
    """Ours. `pairwise`: Bradley-Terry on comparisons; `regression`: squared error on ratings; `auto`: regression where
    there are ratings and no comparisons."""
    model: str | None = None
    """Ours: a reward model to take instead of training one: a reward stage's folder, or a PEFT adapter or sequence
    classifier with one output, local or from the hub. Other settings of this table are then refused, but for
    `per_device_train_batch_size`: twice as many texts are scored together."""
    center_rewards_coefficient: float | None = None
    """Weight of the squared sum of the two scores (arXiv 2312.09244); the scores are standardised afterwards in any case."""


@dataclass(frozen=True)
class PPOSettings:
    """`trl.experimental.ppo.PPOConfig`, plus what our update adds to it (marked: ours)."""

    total_episodes: int = 1024
    """Answers sampled in all; rounded up to whole batches, which the console then says."""
    per_device_train_batch_size: int = 32
    """Micro-batch: answers in one forward and backward."""
    gradient_accumulation_steps: int = 2
    """Micro-batches in a batch of episodes; batch = this times `per_device_train_batch_size`."""
    num_mini_batches: int = 1
    """Optimizer steps in one pass over a batch."""
    num_ppo_epochs: int = 4
    local_rollout_forward_batch_size: int = 64
    """Answers generated and scored together, without gradients."""
    response_length: int = 0
    """Most tokens in an answer, for PPO and for evaluation; 0: as long as 99 % of the demonstrations' answers."""
    temperature: float = 1.0
    learning_rate: float = 1e-5
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_epsilon: float = 1e-5
    """As in the original implementation (arXiv 2403.17031)."""
    max_grad_norm: float = 1.0
    """TRL's PPO never clips; our update does."""
    optim: str = "adamw_torch"
    gradient_checkpointing: bool = False
    kl_coef: float = 0.05
    """Weight of the KL penalty against the SFT policy, per token."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    kl_target: float = 0.0
    """Ours: KL per answer that `kl_coef` is adapted to (arXiv 1909.08593, section 2.2); 0 keeps `kl_coef` fixed."""
    kl_horizon: int = 10000
    """Ours: episodes over which the adaptation acts; refused while `kl_target` is 0."""
    kl_stop: float = 0.0
    """Ours: training ends, keeping the last policy, when a batch's mean KL per answer exceeds this; 0: never."""
    value: Literal["trunk", "adapter"] = "trunk"
    """Ours: where the value function stands. `trunk`: a head on the policy's hidden states, so that one forward and backward
    serve both; `adapter`: a LoRA adapter of its own, started from the reward model's, with its head."""
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    missing_eos_penalty: float = 1.0
    """Taken from the score of an answer that does not end by itself; 0: nothing."""
    reward_clip: float = 10.0
    """Ours: the summed score is cut to plus or minus this; 0: not at all."""
    num_sample_generations: int = 5
    """How often held-out samples are written to the log while training; 0: never."""


@dataclass(frozen=True)
class EvaluateSettings:
    """How the policies are compared on the held-out split."""

    limit: int = 300
    """Most held-out examples used; 0: all."""
    batch_size: int = 100
    """Answers generated together."""


@dataclass(frozen=True)
class TrackSettings:
    """Weights & Biases."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto`: online for a user who is logged in, else offline."""
    project: str = "rlrecipes"


@dataclass(frozen=True)
class CheckpointSettings:
    """How much an interruption may cost. No part of what is compared between runs: the result is the same."""

    seconds: float = 30
    """A stage saves what it needs to go on when so many seconds have passed, after the step; 0: after every step."""


@dataclass(frozen=True)
class MemorySettings:
    """The device's memory. No part of what is compared between runs."""

    card: str = ""
    """GiB of the card, or its name (`rtx4090`), that `plan` measures against; empty: the profile is for a CPU."""
    halve_on_oom: bool = False
    """When a stage runs out of memory it goes on once with half its micro-batch at an equal batch, and says so; results then
    differ in rounding, and PPO's answers are drawn anew where rollouts had to be halved."""


@dataclass(frozen=True)
class Profile:
    """A budget, whole."""

    name: str
    description: str = ""
    data: Literal["built-in", "hub"] = "built-in"
    """The data to use where the command line names none."""
    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    base: BaseSettings = field(default_factory=BaseSettings)
    sft: SFTSettings = field(default_factory=SFTSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    track: TrackSettings = field(default_factory=TrackSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)


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
    "sft.max_length": "the window is model.max_length's",
    "reward.max_length": "the window is model.max_length's",
}
"""Names that people know from TRL, and why they are not offered."""

LOWEST_TEMPERATURE = 0.01
"""Below it, probabilities may overflow; 0, where it is allowed, is greedy."""
SMALLEST_WHITENED = 8
"""Episodes in a mini-batch below which TRL does not whiten rewards."""
SMALLEST_VOCABULARY = 261
"""256 bytes and the embedded base's 5 special tokens."""

TAKEN = ("reward.model=", "reward.per_device_train_batch_size=")
"""Settings of the `[reward]` table that take effect where the reward model comes from elsewhere."""


def profile_names() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


def load_profile(name: str, overrides: Sequence[str] = (), model: str | None = None) -> Profile:
    """The profile `recipes/profiles/<name>.toml` with `table.key=value` overrides.

    Raises:
        UserError: the profile, a table or a key does not exist, a value has the wrong type, or two values contradict.
    """
    if name not in profile_names():
        raise UserError(unknown("profile", name, profile_names(), f"there are {', '.join(profile_names())}"))
    tables = tomllib.loads((PROFILES / f"{name}.toml").read_text(encoding="utf-8"))
    tables["name"] = name
    for override in overrides:
        table, key, value = split_override(override)
        check_key(table, key)
        tables.setdefault(table, {})[key] = value
    if model is not None:
        tables.setdefault("model", {})["name"] = model
    profile: Profile = _build(Profile, tables, f"profile '{name}'")
    _refuse_idle(profile, overrides)
    _refuse_contradictions(profile)
    return profile


def _refuse_idle(profile: Profile, overrides: Sequence[str]) -> None:
    """Refuses settings of a base model or a reward model that is not going to be made."""
    for override in overrides:
        if override.startswith("base.") and profile.model.name != "builtin":
            raise UserError(
                f"{override} has no effect on the model '{profile.model.name}'; it is for the embedded base"
            )
        if override.startswith("reward.") and profile.reward.model is not None and not override.startswith(TAKEN):
            raise UserError(
                f"{override} has no effect beside reward.model={profile.reward.model}, which trains nothing"
            )


def split_override(override: str) -> tuple[str, str, str]:
    """`sft.max_steps=50` as its three parts."""
    path, equals, value = override.partition("=")
    table, dot, key = path.partition(".")
    if not (equals and dot and table and key and value):
        raise UserError(f"cannot read the setting '{override}'; write it as table.key=value, such as sft.max_steps=50")
    return table, key, value


def check_key(table: str, key: str) -> None:
    """Refuses a key that no profile has, naming the nearest one, or the reason why TRL's is not offered."""
    if reason := REFUSED.get(f"{table}.{key}"):
        raise UserError(f"{table}.{key} is not a setting: {reason}")
    known = [f"{table.name}.{key.name}" for table in _tables() for key in dataclasses.fields(_type_of(table))]
    if f"{table}.{key}" not in known:
        tables = ", ".join(table.name for table in _tables())
        raise UserError(unknown("setting", f"{table}.{key}", known, f"the tables are terms, {tables}"))


def settings_of(profile: Profile, *tables: str) -> dict[str, Any]:
    """The named tables as one flat dictionary `{"sft.max_steps": 100, …}`, as `done.json` records them."""
    values = {table: dataclasses.asdict(getattr(profile, table)) for table in tables}
    return {f"{table}.{key}": value for table, content in values.items() for key, value in content.items()}


def _tables() -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(Profile) if f.default_factory is not dataclasses.MISSING]


def _type_of(table: dataclasses.Field[Any]) -> Any:
    return get_type_hints(Profile)[table.name]


def _build(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """A settings dataclass from TOML values and command-line strings, each converted to its field's type."""
    hints = get_type_hints(kind)
    built = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{where}: " + unknown("setting", key, list(hints), f"there are {', '.join(hints)}"))
        inner = f"{where}, table [{key}]" if dataclasses.is_dataclass(hints[key]) else f"{where}, '{key}'"
        built[key] = _build(hints[key], value, inner) if isinstance(value, dict) else _convert(value, hints[key], inner)
    return kind(**built)


def _convert(value: Any, kind: Any, where: str) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UserError(f"{where} is {value!r}; it must be one of {', '.join(map(str, get_args(kind)))}")
        return value
    options = [option for option in (get_args(kind) or (kind,)) if option is not type(None)]
    target = options[0]
    if target is bool:
        if str(value).lower() not in ("true", "false"):
            raise UserError(f"{where} is {value!r}; it must be true or false")
        return str(value).lower() == "true"
    if len(options) < len(get_args(kind)) and str(value).lower() == "none":
        return None
    try:
        if isinstance(value, bool) or (target is int and isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return target(value)
    except ValueError:
        word = {int: "a whole number", float: "a number"}[target]
        raise UserError(f"{where} is {value!r}; it must be {word}") from None


_MAY_BE_ZERO = {
    *("lora.lora_dropout", "base.seed", "track.project"),
    *(f"{stage}.{key}" for stage in ("sft", "reward", "ppo") for key in ("warmup_steps", "weight_decay")),
    *("ppo.response_length", "ppo.kl_coef", "ppo.kl_target", "ppo.kl_stop", "ppo.reward_clip"),
    *("ppo.missing_eos_penalty", "ppo.num_sample_generations", "ppo.vf_coef", "evaluate.limit"),
    "checkpoint.seconds",
}
_STEPS = {"sft.max_steps", "reward.max_steps"}


def _refuse_out_of_range(settings: Mapping[str, Any]) -> None:
    for path, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or path in _STEPS:
            continue
        if not math.isfinite(value) or value < 0 or (value == 0 and path not in _MAY_BE_ZERO):
            bound = "0 or more" if path in _MAY_BE_ZERO else "greater than 0"
            raise UserError(f"{path} is {value}; it must be a finite number, {bound}")


def _refuse_impossible_base(base: BaseSettings) -> None:
    if base.vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"base.vocab_size is {base.vocab_size}; bytes and special tokens alone are {SMALLEST_VOCABULARY}"
        )
    if base.hidden_size % (2 * base.num_attention_heads):
        raise UserError(
            f"base.num_attention_heads={base.num_attention_heads} does not cut base.hidden_size={base.hidden_size} "
            "into heads of an even width; choose others"
        )
    if base.seed >= 2**32:
        raise UserError(f"base.seed is {base.seed}; it must be a whole number from 0 to {2**32 - 1}")


def _refuse_impossible_updates(ppo: PPOSettings, batch: int) -> None:
    if ppo.kl_target and ppo.kl_horizon <= 0.2 * batch:
        raise UserError(
            f"ppo.kl_horizon={ppo.kl_horizon} is so short that a batch of {batch} episodes could make ppo.kl_coef negative; "
            f"take more than {0.2 * batch:g}"
        )
    if ppo.whiten_rewards and batch // ppo.num_mini_batches < SMALLEST_WHITENED:
        raise UserError(
            f"ppo.whiten_rewards=true needs mini-batches of {SMALLEST_WHITENED} episodes at least, and "
            f"{batch} in {ppo.num_mini_batches} are {batch // ppo.num_mini_batches}; lower ppo.num_mini_batches"
        )
    for name in ("gamma", "lam"):
        if getattr(ppo, name) > 1:
            raise UserError(f"ppo.{name} is {getattr(ppo, name)}; it must be at most 1")


def _refuse_contradictions(profile: Profile) -> None:
    settings = settings_of(profile, *(table.name for table in _tables()))
    _refuse_out_of_range(settings)
    for stage in ("sft", "reward"):
        steps, epochs = settings[f"{stage}.max_steps"], settings[f"{stage}.num_train_epochs"]
        if steps > 0 and epochs is not None:
            raise UserError(
                f"{stage}.num_train_epochs={epochs} would have no effect beside {stage}.max_steps={steps}; "
                f"say {stage}.max_steps=-1 as well"
            )
        if steps == 0 or steps < -1 or (steps == -1 and epochs is None):
            raise UserError(f"{stage}.max_steps is {steps}; give a number of steps, or {stage}.num_train_epochs")
    if profile.lora.lora_dropout >= 1:
        raise UserError(f"lora.lora_dropout is {profile.lora.lora_dropout}; it must be 0 or more, and less than 1")
    if profile.ppo.temperature < LOWEST_TEMPERATURE:
        raise UserError(f"ppo.temperature is {profile.ppo.temperature}; it must be {LOWEST_TEMPERATURE} or more")
    if profile.ppo.response_length >= profile.model.max_length:
        raise UserError(
            f"ppo.response_length={profile.ppo.response_length} leaves no room for a prompt in "
            f"model.max_length={profile.model.max_length}; lower it"
        )
    _refuse_impossible_base(profile.base)
    batch = profile.ppo.per_device_train_batch_size * profile.ppo.gradient_accumulation_steps
    if batch % profile.ppo.num_mini_batches:
        raise UserError(
            f"ppo.num_mini_batches={profile.ppo.num_mini_batches} does not divide a batch of {batch} episodes "
            "(per_device_train_batch_size times gradient_accumulation_steps); choose a divisor"
        )
    _refuse_impossible_updates(profile.ppo, batch)
    if profile.ppo.kl_target == 0 and profile.ppo.kl_horizon != PPOSettings.kl_horizon:
        raise UserError("ppo.kl_horizon has no effect while ppo.kl_target is 0; set ppo.kl_target as well")
