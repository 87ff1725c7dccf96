"""The tables of the algorithms that sample answers, PPO, RLOO and GRPO, and the names of all.

What they share stands in `PolicySettings`; names are TRL's where it has them, and each says so where it is ours.
"""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rlrecipes.errors import UserError
from rlrecipes.profile.distill import DistillSettings
from rlrecipes.profile.dpo import DPOSettings
from rlrecipes.profile.values import (
    CONFIG,
    LOWEST_TEMPERATURE,
    NONE,
    Count,
    CountOrZero,
    Number,
    Positive,
    Rate,
    Share,
    Switch,
    ZeroOrMore,
)
from rlrecipes.recipe import unknown

MOST_DRAWS = 10
"""Batches that `dynamic_sampling` draws for one update at most."""


@dataclass(frozen=True, config=CONFIG)
class PolicySettings:
    """What every algorithm that samples answers is told."""

    table: ClassVar[str]
    """The name of the profile's table, and of the stage."""
    kl_weight: ClassVar[str]
    """The name of the setting that weighs the KL divergence from the reference."""
    passes_name: ClassVar[str]
    """The name of the setting that says how often a batch is passed over."""

    total_episodes: Count = 1024
    """Answers sampled in all, rounded up to whole batches; the console says when it rounds. Not in TRL's RLOO and GRPO."""
    per_device_train_batch_size: Count = 32
    """Micro-batch: answers in one forward and backward."""
    gradient_accumulation_steps: Count = 2
    """Micro-batches in a batch of episodes: a batch is this times `per_device_train_batch_size`."""
    local_rollout_forward_batch_size: Count = 64
    """Answers generated and scored together, without gradients. Not in TRL's RLOO and GRPO."""
    dense_rollout: Literal["auto", "always", "never"] = "auto"
    """Ours: answers are drawn from a copy of the policy whose layers are whole matrices, the adapter added, in `model.dtype`.
    `auto`: on a GPU that has room for it by the plan."""
    temperature: Annotated[Number, Field(ge=LOWEST_TEMPERATURE)] = 1.0
    learning_rate: Rate = 1e-5
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: CountOrZero = 0
    weight_decay: ZeroOrMore = 0.0
    adam_epsilon: Positive = 1e-5
    """As in the original implementation of PPO (arXiv 2403.17031)."""
    max_grad_norm: Positive = 1.0
    """TRL's PPO never clips; our update does."""
    optim: str = "adamw_torch"
    gradient_checkpointing: Switch = False
    kl_target: ZeroOrMore = 0.0
    """Ours: KL per answer that its weight is adapted to (arXiv 1909.08593, section 2.2); 0 keeps the weight fixed."""
    kl_horizon: Count = 10000
    """Ours: episodes over which the adaptation acts; refused while `kl_target` is 0."""
    kl_stop: ZeroOrMore = 0.0
    """Ours: training ends when a batch's mean KL per answer exceeds this, and leaves the last policy whose batch did not;
    0: never."""
    missing_eos_penalty: ZeroOrMore = 1.0
    """Taken from the score of an answer that does not end by itself; 0: nothing. Not in TRL's RLOO and GRPO."""
    reward_clip: ZeroOrMore = 10.0
    """Ours: the summed score is cut to plus or minus this; 0: not at all."""
    eval_every: CountOrZero = 4
    """Ours: updates between two looks at the headline and the reward of answers, greedy and at temperature 1, to at most 64
    training prompts that are set aside for it; fewer than 200 prompts have none to spare. 0: never."""
    keep: Literal["best", "last"] = "best"
    """Ours. `best`: the policy with the highest mean headline at these looks, the SFT policy among them."""
    patience: CountOrZero = 5
    """Ours: how many looks in a row may find nothing better before training stops; 0: any."""
    judge: Switch = True
    """Ours: the stage `judge`, where it was made, scores the answers of these looks too. It has no say in what is kept;
    training stops where over `patience` looks its score lies below its best and the reward above that look's."""
    anyway: Switch = False
    """Ours: it runs even on a reward model that is not shown, on held-out rows, to beat guessing and the longer answer."""
    num_sample_generations: CountOrZero = 5
    """How often held-out samples are written to the log while training; 0: never. Not in TRL's RLOO and GRPO."""

    @property
    def title(self) -> str:
        """The algorithm's name in sentences."""
        return self.table.upper()

    @property
    def batch(self) -> int:
        """Answers in a batch."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def answers_each(self) -> int:
        """Answers to each prompt of a batch."""
        return 1

    @property
    def mini_batches(self) -> int:
        """Optimizer steps in one pass over a batch."""
        raise NotImplementedError

    @property
    def passes(self) -> int:
        """Passes over a batch."""
        return int(getattr(self, self.passes_name))

    @property
    def beta_or_kl_coef(self) -> float:
        """The weight of the KL divergence as training begins."""
        return float(getattr(self, self.kl_weight))

    def learns(self, name: str) -> bool:
        """Whether a parameter of the model, by its full name, is trained."""
        return ".policy." in name


@dataclass(frozen=True, config=CONFIG)
class PPOSettings(PolicySettings):
    """`trl.experimental.ppo.PPOConfig`, plus what our update adds to it (marked: ours)."""

    table: ClassVar[str] = "ppo"
    kl_weight: ClassVar[str] = "kl_coef"
    passes_name: ClassVar[str] = "num_ppo_epochs"

    num_mini_batches: Count = 1
    """Optimizer steps in one pass over a batch."""
    num_ppo_epochs: Count = 4
    response_length: CountOrZero = 0
    """Most tokens in an answer, in every algorithm and in evaluation; 0: as long as 99 % of the demonstrations' answers."""
    kl_coef: ZeroOrMore = 0.05
    """Weight of the KL penalty against the SFT policy, per token."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    value: Literal["trunk", "adapter"] = "trunk"
    """Ours: where the value function stands. `trunk`: a head on the policy's hidden states, so that one forward and backward
    serve both; `adapter`: a LoRA adapter of its own, started from the reward model's, with its head."""
    cliprange: Positive = 0.2
    cliprange_value: Positive = 0.2
    vf_coef: ZeroOrMore = 0.1
    gamma: Share = 1.0
    lam: Share = 0.95
    whiten_rewards: Switch = False

    @property
    def mini_batches(self) -> int:
        return self.num_mini_batches

    def learns(self, name: str) -> bool:
        return super().learns(name) or (self.value == "adapter" and ".value." in name)


@dataclass(frozen=True, config=CONFIG)
class GroupSettings(PolicySettings):
    """What RLOO and GRPO share: several answers to each prompt, whose scores are set against each other."""

    kl_weight: ClassVar[str] = "beta"
    passes_name: ClassVar[str] = "num_iterations"

    gradient_accumulation_steps: Count = 2
    """Micro-batches in an optimizer step."""
    steps_per_generation: Annotated[Count | None, NONE] = None
    """Micro-batches in a batch of episodes; `none`: as in an optimizer step, so that a pass over a batch is one step."""
    num_generations: Annotated[Count, Field(ge=2)] = 4
    """Answers to each prompt."""
    num_iterations: Count = 1
    """Passes over a batch."""
    epsilon: Positive = 0.2
    """How far below 1 a ratio counts, and above it without `epsilon_high`."""
    epsilon_high: Annotated[Positive | None, NONE] = None
    """How far above 1 a ratio counts (0.28 in DAPO, arXiv 2503.14476); `none`: as far as below."""
    mask_truncated_completions: Switch = False
    """Answers that do not end by themselves are not learned from (arXiv 2503.14476)."""
    dynamic_sampling: Switch = False
    """Ours: prompts whose answers all score the same are not learned from, and others are drawn in their place, a batch at a
    time, until a batch is full or ten were drawn (arXiv 2503.14476, section 3.2); then the rest of it is of those. What a
    draw has beyond a full batch is left. `total_episodes` counts the answers of full batches, the log's `episode` all."""

    @property
    def steps(self) -> int:
        """Micro-batches in a batch of episodes."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def batch(self) -> int:
        return self.per_device_train_batch_size * self.steps

    @property
    def answers_each(self) -> int:
        return self.num_generations

    @property
    def mini_batches(self) -> int:
        return self.steps // self.gradient_accumulation_steps


@dataclass(frozen=True, config=CONFIG)
class RLOOSettings(GroupSettings):
    """`trl.RLOOConfig`, plus what our loop adds to it (marked: ours).

    An answer's advantage is its reward, less the mean of the other answers to its prompt (arXiv 2402.14740).
    """

    table: ClassVar[str] = "rloo"

    beta: ZeroOrMore = 0.05
    """Weight of the KL penalty against the SFT policy, per token; it is part of the reward."""
    normalize_advantages: Switch = False
    """Advantages are brought to mean 0 and standard deviation 1 over a batch."""


@dataclass(frozen=True, config=CONFIG)
class GRPOSettings(GroupSettings):
    """`trl.GRPOConfig`, plus what our loop adds to it (marked: ours).

    An answer's advantage is its reward, less the mean of all answers to its prompt (arXiv 2402.03300).
    """

    table: ClassVar[str] = "grpo"

    beta: ZeroOrMore = 0.04
    """Weight of the KL divergence from the SFT policy, per token; it is part of the loss. 0.04: arXiv 2402.03300."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """What a token weighs. `grpo`: every answer the same, and its tokens share that (arXiv 2402.03300); `dapo`: all tokens of
    a batch the same (arXiv 2503.14476); `bnpo`: all tokens of an optimizer step the same; `dr_grpo`: as if each answer had
    the most tokens that it may have (arXiv 2503.20783)."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the standard deviation of a prompt's rewards, that of a batch's (arXiv 2508.08221), or
    nothing (arXiv 2503.20783)."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Whether each token has a ratio, or each answer the geometric mean of its tokens' (GSPO, arXiv 2507.18071)."""


SAMPLING = tuple(kind.table for kind in (PPOSettings, RLOOSettings, GRPOSettings))
"""The tables of the algorithms that sample answers and climb the reward, batch by batch."""

ALGORITHMS = (*SAMPLING, DPOSettings.table, DistillSettings.table)
"""The tables of a profile that are an algorithm's, which are named as their stages."""


def named_algorithms(names: str) -> tuple[str, ...]:
    """The algorithms that `run.algorithms` names, in the order of their tables.

    Raises:
        UserError: one is unknown, or there is none.
    """
    known = f"there are {', '.join(ALGORITHMS)}"
    given = [name for name in re.split(r"[,\s]+", names) if name]
    for name in given:
        if name not in ALGORITHMS:
            raise UserError(f"run.algorithms: {unknown('algorithm', name, list(ALGORITHMS), known)}")
    if not given:
        raise UserError(f"run.algorithms names none; {known}")
    return tuple(name for name in ALGORITHMS if name in given)
