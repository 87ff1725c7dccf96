"""A profile says how big a run is: base model, quantization, LoRA, and each stage's training arguments.

Profiles are the TOML files of `recipes/profiles/`; any value can be overridden as `table.key=value`. The training tables
hold TRL's and Transformers' own argument names and pass them on verbatim. They leave out names that TRL would accept and
then ignore, so every key either takes effect or is refused.
"""

from __future__ import annotations

import os
from dataclasses import field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from rlrecipes.profile.algorithms import SAMPLING, GRPOSettings, PPOSettings, RLOOSettings, named_algorithms
from rlrecipes.profile.distill import DistillSettings
from rlrecipes.profile.dpo import DPOSettings
from rlrecipes.profile.training import TrainingSettings
from rlrecipes.profile.values import (
    AUTO,
    BASE,
    CONFIG,
    NONE,
    SFT,
    SMALLEST_VOCABULARY,
    Count,
    CountOrZero,
    Names,
    Positive,
    Rate,
    Switch,
    Whole,
    ZeroOrMore,
)


@dataclass(frozen=True, config=CONFIG)
class ModelSettings:
    """Which base model, and how memory holds it."""

    name: Annotated[str, AfterValidator(os.path.expanduser)] = "builtin"
    """Hub id or local folder; `builtin` trains the embedded base once and caches it."""
    quantization: Literal["nf4", "none"] = "nf4"
    """`nf4`: 4-bit NormalFloat with double quantization (QLoRA, arXiv 2305.14314); `none`: the weights as they are."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the unquantized weights and of every computation."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """Transformers' `attn_implementation`; `sdpa` is PyTorch's fused one, `auto` what Transformers chooses for the model."""
    max_length: Count = 512
    """Longest prompt plus answer in tokens; longer rows are left out and counted."""
    device: Annotated[CountOrZero | None, AUTO] = None
    """Ours: which of the visible GPUs, counted from 0; `auto`: the first. Not recorded: the result is to be the same."""


@dataclass(frozen=True, config=CONFIG)
class LoraSettings:
    """Size and place of every adapter (`peft.LoraConfig`)."""

    r: Count = 16
    lora_alpha: Count = 32
    lora_dropout: Annotated[ZeroOrMore, Field(lt=1)] = 0.0
    """Of SFT, the reward model and `distill`; the others set it to 0, since they need the same probabilities twice."""
    target_modules: str = "all-linear"
    """`all-linear`, or module names separated by commas."""


@dataclass(frozen=True, config=CONFIG)
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
    learning_rate: Rate = 1.5e-3
    seed: Annotated[Whole, Field(ge=0, le=2**32 - 1)] = 0
    """Of the base alone: like a downloaded base model, it does not depend on a run's SEED."""


@dataclass(frozen=True, config=CONFIG)
class SFTSettings(TrainingSettings):
    """`trl.SFTConfig`; the loss is on answers alone."""

    learn: Literal["last", "all"] = "last"
    """Ours. `last`: the demonstration's answer; `all`: the assistant's turns before it, too, each as an answer to what stands
    before it. A turn with `weight: 0` or `train: false` is never learned."""


@dataclass(frozen=True, config=CONFIG)
class RewardSettings(TrainingSettings):
    """`trl.RewardConfig`; the adapter starts from the SFT adapter, the score head from N(0, 1/(d+1)) (arXiv 2403.17031)."""

    objective: Literal["auto", "pairwise", "regression"] = "auto"
    """Ours. `pairwise`: Bradley-Terry on comparisons; `regression`: squared error on ratings; `auto`: regression where
    there are ratings and no comparisons."""
    model: Annotated[str | None, NONE] = None
    """Ours: a reward model to take instead of training one: a reward stage's folder, or a PEFT adapter or sequence
    classifier with one output, local or from the hub. Other settings of this table are then refused, but for
    `per_device_train_batch_size`: twice as many texts are scored together."""
    function: Names = ""
    """Ours: one or several functions of your own, as `rewards.py:exact`, which take (prompt, answer, example), or (prompts,
    completions, **columns) as `trl.GRPOTrainer`'s `reward_funcs` do. Each is a term of the reward by its own name, of weight
    1 (`terms.exact=2`), and a metric of the evaluation; the reward model knows nothing of it. Empty or `none`: none."""
    center_rewards_coefficient: Annotated[Positive | None, NONE] = None
    """Weight of the squared sum of the two scores (arXiv 2312.09244); the scores are standardised afterwards in any case."""
    seeds: Annotated[Count, Field(le=32)] = 1
    """Ours: how many reward models to train on the same rows, from the run's seed and those after it. All score together."""
    combine: Literal["mean", "min", "lcb"] = "mean"
    """Ours: what PPO climbs of the scores of several: the mean, the lowest (`min`), or the mean less the standard deviation
    (`lcb`; arXiv 2310.02743)."""


@dataclass(frozen=True, config=CONFIG)
class EvaluateSettings:
    """How the policies are compared on the held-out split."""

    limit: CountOrZero = 300
    """Most held-out examples used; 0: all."""
    batch_size: Count = 100
    """Answers generated together."""
    policies: Names = "all"
    """Which policies: `all`, or some, as `["base", "sft", "ppo", "runs/other"]`: names, and folders of a run, an adapter or a
    whole model. The best of 16 draws 16 answers to every prompt."""
    pass_at: CountOrZero = 0
    """k of pass@k (arXiv 2107.03374): the chance that one of k answers at temperature 1 is right, by a headline of 0 or 1.
    Every policy gives so many to each prompt. 0: not measured."""
    judge: str = "auto"
    """Who judges beside the headline and the reward. `auto`: a second reward model, from half of the held-out preferences,
    where there are enough; `none`; or a function of your own, as `judges.py:polite`, which takes the prompt's messages, the
    answer and the references, and returns a number."""
    judge_url: str = ""
    """An OpenAI-compatible address, such as `http://localhost:8000/v1`, whose model says which of the last two policies'
    answers is better, in place of `judge`; it gets the held-out prompts and answers. Empty: none."""
    judge_model: str = ""
    """The model that `judge_url` is asked for."""
    bertscore: str = ""
    """A folder that holds an encoder, such as RoBERTa, for BERTScore against the references; empty: none."""
    comet: str = ""
    """A checkpoint of COMET, or its folder, for the command `comet-score` to score answers with; empty: none."""


@dataclass(frozen=True, config=CONFIG)
class TrackSettings:
    """Weights & Biases."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto`: as WANDB_MODE says; without it online for a user who is logged in, else offline."""
    project: str = ""
    """Empty: WANDB_PROJECT; without it `rlrecipes`."""
    artifacts: Switch = False
    """Whether adapters, the reward model and the report go to W&B as artifacts; online with what each stands on."""


@dataclass(frozen=True, config=CONFIG)
class CheckpointSettings:
    """How much an interruption may cost. Not recorded among a stage's settings: the result is the same."""

    seconds: ZeroOrMore = 30
    """Seconds between the checkpoints of a stage, which come after a step; 0: after every step."""


@dataclass(frozen=True, config=CONFIG)
class MemorySettings:
    """The device's memory. Not recorded among a stage's settings."""

    card: str = ""
    """GiB of the card, or its name (`rtx4090`), that `plan` measures against; empty: the profile is for a CPU."""
    halve_on_oom: Switch = False
    """A stage that runs out of memory goes on once with half its micro-batch at an equal batch, and says so. Results then
    differ in rounding, and PPO draws other answers where its rollouts were halved."""


@dataclass(frozen=True, config=CONFIG)
class LimitSettings:
    """How long a recipe's own code may take. Not recorded among a stage's settings: the result is the same."""

    term_seconds: ZeroOrMore = 300
    """Most seconds of a reward term's or a metric's call for one answer, after which the stage stops with it; 0: no limit."""


@dataclass(frozen=True, config=CONFIG)
class RunSettings:
    """Which of a run's stages are made, and how. Not recorded among a stage's settings."""

    algorithms: Names = "ppo"
    """Which algorithms train a policy from the SFT policy: of `ppo`, `rloo`, `grpo` and `distill`, on the same reward, and
    `dpo`, on the comparisons."""
    start: Annotated[str, AfterValidator(os.path.expanduser)] = SFT
    """Where they begin, and what they are held near. `sft`: the policy that SFT leaves; `base`: the model as it is, without
    SFT; or a folder with a LoRA adapter of the model, which takes the place of SFT's. Recorded where it is not `sft`."""
    deterministic: Switch = True
    """On a GPU, every kernel adds in a fixed order, so that a run comes out byte for byte again and goes on as if it had not
    been interrupted; one without such an order ends the stage. It costs speed, most in attention's backward pass. A CPU
    always does so. `false`: the fastest kernels, and results that differ in rounding from run to run."""


@dataclass(frozen=True, config=CONFIG)
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
    rloo: RLOOSettings = field(default_factory=RLOOSettings)
    grpo: GRPOSettings = field(default_factory=GRPOSettings)
    dpo: DPOSettings = field(default_factory=DPOSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    track: TrackSettings = field(default_factory=TrackSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    run: RunSettings = field(default_factory=RunSettings)


def takes_adapter(profile: Profile) -> bool:
    """Whether an adapter from a folder takes the place of SFT's."""
    return profile.run.start not in (SFT, BASE)


def algorithms(profile: Profile) -> tuple[str, ...]:
    """The algorithms of a run, by `run.algorithms`, in the order of their tables.

    Raises:
        UserError: one is unknown, or there is none.
    """
    return named_algorithms(profile.run.algorithms)


def sampling_algorithms(profile: Profile) -> tuple[str, ...]:
    """Those of them that sample answers and climb the reward, batch by batch.

    Raises:
        UserError: as `algorithms`.
    """
    return tuple(name for name in algorithms(profile) if name in SAMPLING)
