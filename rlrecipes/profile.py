"""A profile says how big a run is: base model, quantization, LoRA, and each stage's training arguments.

Profiles are the TOML files of `recipes/profiles/`; any value can be overridden as `table.key=value`. The training tables
hold TRL's and Transformers' own argument names and pass them on verbatim. They leave out names that TRL would accept and
then ignore, so every key either takes effect or is refused.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from rlrecipes.errors import UserError, first_line
from rlrecipes.recipe import recipe_roots, unknown

LOWEST_TEMPERATURE = 0.01  # below it, probabilities may overflow; 0, where it is allowed, is greedy
SMALLEST_VOCABULARY = 261  # 256 bytes and the embedded base's 5 special tokens
SMALLEST_WHITENED = 8  # episodes in a mini-batch below which TRL does not whiten rewards

# The types of settings. Values come from TOML or, as text, from the command line. Pydantic would also read true as 1.
_NO_SWITCH = BeforeValidator(lambda value: str(value) if isinstance(value, bool) else value)
_NONE = BeforeValidator(lambda value: None if str(value).lower() == "none" else value)
_TRUE_OR_FALSE = BeforeValidator(lambda value: {"true": True, "false": False}.get(str(value).lower(), value))
Switch = Annotated[bool, Field(strict=True), _TRUE_OR_FALSE]
Whole = Annotated[int, _NO_SWITCH]
Count = Annotated[Whole, Field(gt=0)]
CountOrZero = Annotated[Whole, Field(ge=0)]
Number = Annotated[float, _NO_SWITCH, Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
ZeroOrMore = Annotated[Number, Field(ge=0)]
Share = Annotated[Positive, Field(le=1)]

_CONFIG = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # `card = 24` is a text without quotes


@dataclass(frozen=True, config=_CONFIG)
class ModelSettings:
    """Which base model, and how memory holds it."""

    name: str = "builtin"
    """Hub id or local folder; `builtin` trains the embedded base once and caches it."""
    quantization: Literal["nf4", "none"] = "nf4"
    """`nf4`: 4-bit NormalFloat with double quantization (QLoRA, arXiv 2305.14314); `none`: the weights as they are."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the unquantized weights and of every computation."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Transformers' `attn_implementation`; `sdpa` is PyTorch's fused one, `auto` what Transformers chooses for the model."""
    max_length: Count = 512
    """Longest prompt plus answer in tokens; longer rows are left out and counted."""


@dataclass(frozen=True, config=_CONFIG)
class LoraSettings:
    """Size and place of every adapter (`peft.LoraConfig`)."""

    r: Count = 16
    lora_alpha: Count = 32
    lora_dropout: Annotated[ZeroOrMore, Field(lt=1)] = 0.0
    """Of SFT and the reward model; PPO sets it to 0, since it needs the same probabilities twice."""
    target_modules: str = "all-linear"
    """`all-linear`, or module names separated by commas."""


@dataclass(frozen=True, config=_CONFIG)
class BaseSettings:
    """The embedded base model: a Llama trained from scratch on the recipes' own documents."""

    vocab_size: Annotated[Whole, Field(ge=SMALLEST_VOCABULARY)] = 2048
    hidden_size: Count = 160
    intermediate_size: Count = 480
    num_hidden_layers: Count = 3
    num_attention_heads: Count = 5
    max_position_embeddings: Count = 2048
    max_steps: Count = 1800
    per_device_train_batch_size: Count = 24
    learning_rate: Positive = 1.5e-3
    seed: Annotated[Whole, Field(ge=0, le=2**32 - 1)] = 0
    """Of the base alone: like a downloaded base model, it does not depend on a run's SEED."""


@dataclass(frozen=True, config=_CONFIG)
class TrainingSettings:
    """What SFT and the reward model share (`transformers.TrainingArguments`)."""

    max_steps: Whole = -1
    """Optimizer steps; -1: `num_train_epochs` says how long."""
    num_train_epochs: Annotated[Positive | None, _NONE] = None
    """Passes over the data; refused beside a positive `max_steps`, which would override it in silence."""
    per_device_train_batch_size: Count = 32
    gradient_accumulation_steps: Count = 1
    learning_rate: Positive = 2e-4
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: CountOrZero = 0
    weight_decay: ZeroOrMore = 0.0
    max_grad_norm: Positive = 1.0
    optim: str = "adamw_torch"
    gradient_checkpointing: Switch = False
    logging_steps: Count = 10


@dataclass(frozen=True, config=_CONFIG)
class SFTSettings(TrainingSettings):
    """`trl.SFTConfig`; the loss is on the answer alone."""


@dataclass(frozen=True, config=_CONFIG)
class RewardSettings(TrainingSettings):
    """`trl.RewardConfig`; the adapter starts from the SFT adapter, the score head from N(0, 1/(d+1)) (arXiv 2403.17031)."""

    objective: Literal["auto", "pairwise", "regression"] = "auto"
    """Ours. `pairwise`: Bradley-Terry on comparisons; `regression`: squared error on ratings; `auto`: regression where
    there are ratings and no comparisons."""
    model: Annotated[str | None, _NONE] = None
    """Ours: a reward model to take instead of training one: a reward stage's folder, or a PEFT adapter or sequence
    classifier with one output, local or from the hub. Other settings of this table are then refused, but for
    `per_device_train_batch_size`: twice as many texts are scored together."""
    center_rewards_coefficient: Annotated[Positive | None, _NONE] = None
    """Weight of the squared sum of the two scores (arXiv 2312.09244); the scores are standardised afterwards in any case."""


@dataclass(frozen=True, config=_CONFIG)
class PPOSettings:
    """`trl.experimental.ppo.PPOConfig`, plus what our update adds to it (marked: ours)."""

    total_episodes: Count = 1024
    """Answers sampled in all, rounded up to whole batches; the console says when it rounds."""
    per_device_train_batch_size: Count = 32
    """Micro-batch: answers in one forward and backward."""
    gradient_accumulation_steps: Count = 2
    """Micro-batches in a batch of episodes: a batch is this times `per_device_train_batch_size`."""
    num_mini_batches: Count = 1
    """Optimizer steps in one pass over a batch."""
    num_ppo_epochs: Count = 4
    local_rollout_forward_batch_size: Count = 64
    """Answers generated and scored together, without gradients."""
    response_length: CountOrZero = 0
    """Most tokens in an answer, in PPO and in evaluation; 0: as long as 99 % of the demonstrations' answers."""
    temperature: Annotated[Number, Field(ge=LOWEST_TEMPERATURE)] = 1.0
    learning_rate: Positive = 1e-5
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: CountOrZero = 0
    weight_decay: ZeroOrMore = 0.0
    adam_epsilon: Positive = 1e-5
    """As in the original implementation (arXiv 2403.17031)."""
    max_grad_norm: Positive = 1.0
    """TRL's PPO never clips; our update does."""
    optim: str = "adamw_torch"
    gradient_checkpointing: Switch = False
    kl_coef: ZeroOrMore = 0.05
    """Weight of the KL penalty against the SFT policy, per token."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    kl_target: ZeroOrMore = 0.0
    """Ours: KL per answer that `kl_coef` is adapted to (arXiv 1909.08593, section 2.2); 0 keeps `kl_coef` fixed."""
    kl_horizon: Count = 10000
    """Ours: episodes over which the adaptation acts; refused while `kl_target` is 0."""
    kl_stop: ZeroOrMore = 0.0
    """Ours: training ends, keeping the last policy, when a batch's mean KL per answer exceeds this; 0: never."""
    value: Literal["trunk", "adapter"] = "trunk"
    """Ours: where the value function stands. `trunk`: a head on the policy's hidden states, so that one forward and backward
    serve both; `adapter`: a LoRA adapter of its own, started from the reward model's, with its head."""
    cliprange: Positive = 0.2
    cliprange_value: Positive = 0.2
    vf_coef: ZeroOrMore = 0.1
    gamma: Share = 1.0
    lam: Share = 0.95
    whiten_rewards: Switch = False
    missing_eos_penalty: ZeroOrMore = 1.0
    """Taken from the score of an answer that does not end by itself; 0: nothing."""
    reward_clip: ZeroOrMore = 10.0
    """Ours: the summed score is cut to plus or minus this; 0: not at all."""
    num_sample_generations: CountOrZero = 5
    """How often held-out samples are written to the log while training; 0: never."""


@dataclass(frozen=True, config=_CONFIG)
class EvaluateSettings:
    """How the policies are compared on the held-out split."""

    limit: CountOrZero = 300
    """Most held-out examples used; 0: all."""
    batch_size: Count = 100
    """Answers generated together."""


@dataclass(frozen=True, config=_CONFIG)
class TrackSettings:
    """Weights & Biases."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto`: online for a user who is logged in, else offline."""
    project: str = "rlrecipes"


@dataclass(frozen=True, config=_CONFIG)
class CheckpointSettings:
    """How much an interruption may cost. Not recorded among a stage's settings: the result is the same."""

    seconds: ZeroOrMore = 30
    """Seconds between the checkpoints of a stage, which come after a step; 0: after every step."""


@dataclass(frozen=True, config=_CONFIG)
class MemorySettings:
    """The device's memory. Not recorded among a stage's settings."""

    card: str = ""
    """GiB of the card, or its name (`rtx4090`), that `plan` measures against; empty: the profile is for a CPU."""
    halve_on_oom: Switch = False
    """A stage that runs out of memory goes on once with half its micro-batch at an equal batch, and says so. Results then
    differ in rounding, and PPO draws other answers where its rollouts were halved."""


@dataclass(frozen=True, config=_CONFIG)
class Profile:
    """A budget, whole."""

    name: str
    description: str = ""
    data: Literal["built-in", "hub"] = "built-in"
    """The data of runs whose command line names none."""
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
    "sft.max_length": "the window is model.max_length's",
    "reward.max_length": "the window is model.max_length's",
}
"""Names that people know from TRL, and why a profile does not offer them."""

SCORING = ("reward.model=", "reward.per_device_train_batch_size=")
"""Settings of the `[reward]` table that take effect on a reward model that is not trained here."""

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

    Raises:
        UserError: the profile, a table or a key does not exist, its file is not TOML, a value has the wrong type or is out of
            bounds, or two values contradict.
    """
    if name not in (files := _files()):
        raise UserError(unknown("profile", name, list(files), f"there are {', '.join(sorted(files))}"))
    try:
        tables = tomllib.loads(files[name].read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{files[name]} is not TOML: {first_line(error)}; mend it") from None
    for override in [*overrides, *([f"model.name={model}"] if model is not None else [])]:
        table, key, value = split_override(override)
        check_key(table, key)
        if isinstance(tables.setdefault(table, {}), dict):  # anything but a table is refused below
            tables[table][key] = value
    try:
        profile = Profile(**tables | {"name": name})
    except ValidationError as error:
        raise UserError(_refusal(error.errors()[0], name, overrides)) from None
    if wrong := [*_idle(profile, overrides), *_contradictions(profile)]:
        raise UserError(wrong[0])
    return profile


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
    known = [f"{table}.{key}" for table, kind in _TABLES.items() for key in _names(kind)]
    if f"{table}.{key}" not in known:
        raise UserError(unknown("setting", f"{table}.{key}", known, f"the tables are terms, {', '.join(_TABLES)}"))


def settings_of(profile: Profile, *tables: str) -> dict[str, Any]:
    """The named tables as one flat dictionary `{"sft.max_steps": 100, …}`, as `done.json` records them."""
    return {f"{table}.{key}": value for table in tables for key, value in asdict(getattr(profile, table)).items()}


def _names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


def _refusal(error: ErrorDetails, name: str, overrides: Sequence[str]) -> str:
    """What is wrong with a value: a sentence about the override that set it, or else about the profile's file."""
    *table, key = map(str, error["loc"])
    where = ", ".join([f"profile '{name}'", *(f"table [{part}]" for part in table)])
    if error["type"] == "unexpected_keyword_argument":
        known = _names(_TABLES[table[0]] if table else Profile)
        return f"{where}: " + unknown("setting", key, known, f"there are {', '.join(known)}")
    kind = error["type"] if error["type"] in _MUST_BE else error["type"].partition("_")[0]
    limits = {limit: str(value).replace("'", "").replace(" or ", ", ") for limit, value in error.get("ctx", {}).items()}
    bound = _MUST_BE.get(kind, error["msg"].removeprefix("Input should be ")).format(**limits)
    origin = [override for override in overrides if override.startswith(".".join([*table, key]) + "=")]
    return (f"{origin[-1]}: " if origin else f"{where}, '{key}' is {error['input']!r}; ") + f"it must be {bound}"


def _idle(profile: Profile, overrides: Sequence[str]) -> Iterator[str]:
    """Sentences about overrides of a base model or a reward model that the run does not train."""
    model, reward = profile.model.name, profile.reward.model
    for override in overrides:
        if override.startswith("base.") and model != "builtin":
            yield f"{override} has no effect on the model '{model}'; it is for the embedded base"
        if override.startswith("reward.") and reward is not None and not override.startswith(SCORING):
            yield f"{override} has no effect beside reward.model={reward}, which trains nothing"


def _contradictions(profile: Profile) -> Iterator[str]:
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
