"""The stages of a recipe and the policies that they make, a row each; every other module reads these two tables.

    STAGES["ppo"].stands_on -> ("sft", "reward")
    POLICIES["ppo"].over -> "sft"

A new stage is a row here and `stages/<name>.py`, with the names of its files in `WRITTEN`; a new policy is a row here and the
stage that makes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Policy:
    """Something that answers prompts."""

    title: str
    """Its name in tables and sentences."""
    stage: str | None = None
    """The stage that leaves its adapter; None: the base as it is."""
    role: str | None = None
    """Its adapter's name on the shared base."""
    over: str | None = None
    """The policy that evaluation compares it with."""
    best_of: int = 0
    """It is no model of its own: of so many sampled answers of `over` it takes the one with the highest reward. 0: it is."""
    place: str = ""
    """The folder of a policy from elsewhere: an adapter with a role, or a whole model without one."""
    training: str = ""
    """How it was trained, for the model card."""


@dataclass(frozen=True)
class Phase:
    """A part of a stage in which the device's memory may run out."""

    batch: str
    """The setting that says how many rows it holds at once."""
    lower: tuple[str, ...] = ("model.max_length",)
    """The other settings that its need of memory grows with."""


@dataclass(frozen=True)
class Stage:
    """A step of a run, which leaves a folder behind."""

    help: str
    stands_on: tuple[str, ...] = ()
    """The stages whose folders it reads."""
    brings: tuple[str, ...] = ()
    """The stages below that a command which asks for this one makes too, where they are not there."""
    tables: tuple[str, ...] = ()
    """The profile's tables, or single settings of one, that decide its output, beside those of the stages below; `terms` are
    the reward's weights."""
    phases: Mapping[str, Phase] = field(default_factory=dict)
    """By name, as `plan` lists them; work outside the named phases counts as the last of them."""
    for_learned_reward: bool = False
    """Whether only a reward with a learned part needs it."""
    algorithm: bool = False
    """Whether it trains a policy from the SFT policy: a run has those that `run.algorithms` names. Its table of the profile
    has its name."""

    @property
    def climbs(self) -> bool:
        """Whether what it trains climbs the reward, so that the reward's weights and code decide its output."""
        return self.algorithm and "terms" in self.tables


_SFT = "by supervised fine-tuning (SFT) "
_TRAINED = _SFT + "and then by {} against the recipe's reward"

POLICIES: dict[str, Policy] = {
    "base": Policy("base"),
    "sft": Policy("SFT", "sft", "reference", over="base", training=f"{_SFT}on the demonstrations"),
    "best4": Policy("best of 4", over="sft", best_of=4),
    "best16": Policy("best of 16", over="sft", best_of=16),
    "rloo": Policy("RLOO", "rloo", "rloo", over="sft", training=_TRAINED.format("RLOO")),
    "grpo": Policy("GRPO", "grpo", "grpo", over="sft", training=_TRAINED.format("GRPO")),
    "dpo": Policy(
        "DPO",
        "dpo",
        "dpo",
        over="sft",
        training="by supervised fine-tuning (SFT) and then by DPO on the comparisons",
    ),
    "distill": Policy(
        "Distill",
        "distill",
        "distill",
        over="sft",
        training=f"{_SFT}and then by SFT on the best of several of its own answers, by the recipe's reward",
    ),
    "ppo": Policy(
        "PPO",
        "ppo",
        "policy",
        over="sft",
        training=_TRAINED.format("PPO"),
    ),
}

WRITTEN = re.compile(
    r"(adapter|member-\d+|value_adapter|policy|value)(/.*)?"  # what is in them the libraries name
    r"|((begun|done|scale)\.json|index\.html)(\.part)?|README\.md|(value_head|reference)\.safetensors|(log|samples|answers)\.jsonl"
    r"|checkpoints/(trainer_state\.json(\.part)?|\.?step-\d+/.*)"
    r"|\.tmp\w{6}"  # safetensors writes aside so
)
"""The files of an unfinished stage that are the stage's own; any other is somebody's."""

_SAMPLING = ("ppo.response_length", "model.max_length")


def _algorithm(name: str, help: str) -> Stage:
    return Stage(
        help=help,
        stands_on=("sft", "reward"),
        tables=(name, "ppo.response_length", "terms"),
        phases={
            f"{name} rollout": Phase(f"{name}.local_rollout_forward_batch_size", _SAMPLING),
            f"{name} update": Phase(f"{name}.per_device_train_batch_size", _SAMPLING),
        },
        algorithm=True,
    )


STAGES: dict[str, Stage] = {
    "sft": Stage(
        help="supervised fine-tuning on the demonstrations",
        tables=("model", "lora", "sft"),
        phases={"sft": Phase("sft.per_device_train_batch_size")},
    ),
    "reward": Stage(
        help="the reward model, from comparisons or ratings; one for several recipes: translation+dialogue",
        stands_on=("sft",),
        tables=("reward",),
        phases={"reward": Phase("reward.per_device_train_batch_size")},
        for_learned_reward=True,
    ),
    "judge": Stage(
        help="a second reward model, from held-out preferences, which judges the policies",
        stands_on=("sft",),
        tables=("reward",),
        phases={"judge": Phase("reward.per_device_train_batch_size")},
    ),
    "ppo": _algorithm("ppo", help="PPO against the reward"),
    "rloo": _algorithm(
        "rloo", help="RLOO against the reward: of several answers to a prompt, each is set against the others"
    ),
    "grpo": _algorithm("grpo", help="GRPO against the reward: of several answers to a prompt, each is set against all"),
    "dpo": Stage(
        help="DPO on the comparisons: the chosen answer becomes likelier than the rejected one, without sampling",
        stands_on=("sft",),
        tables=("dpo",),
        phases={"dpo": Phase("dpo.per_device_train_batch_size")},
        algorithm=True,
    ),
    "distill": Stage(
        help="SFT on the best of several answers of the policy's own to each training prompt, by the reward",
        stands_on=("sft", "reward"),
        tables=("distill", "ppo.response_length", "terms"),
        phases={
            "distill rollout": Phase("distill.local_rollout_forward_batch_size", _SAMPLING),
            "distill": Phase("distill.per_device_train_batch_size"),
        },
        algorithm=True,
    ),
    "answers": Stage(
        help="every policy's answers to the held-out prompts",
        stands_on=("sft", "ppo", "rloo", "grpo", "dpo", "distill"),
        tables=(
            "ppo.response_length",
            "evaluate.limit",
            "evaluate.batch_size",
            "evaluate.policies",
            "evaluate.pass_at",
        ),
        phases={"answers": Phase("evaluate.batch_size", _SAMPLING)},
    ),
    "evaluate": Stage(
        help="their scores, and the policies compared",
        stands_on=("judge", "answers"),
        brings=("answers",),
        tables=("evaluate",),
        phases={"evaluate": Phase("evaluate.batch_size", _SAMPLING)},
    ),
    "report": Stage(help="one page on what came out", stands_on=("evaluate",)),
}
"""In the order in which they run."""


def with_brought(stages: Sequence[str]) -> tuple[str, ...]:
    """The stages with those that they bring, in the order in which they run."""
    brought = {name for stage in stages for name in STAGES[stage].brings}
    return tuple(stage for stage in STAGES if stage in stages or stage in brought)


def below(stage: str) -> list[str]:
    """The stages that a stage stands on, directly or through others, in the order in which they run."""
    needed = set(STAGES[stage].stands_on)
    for name in reversed(STAGES):
        if name in needed:
            needed |= set(STAGES[name].stands_on)
    return [name for name in STAGES if name in needed]


def above(stage: str) -> list[str]:
    """The stages that stand on a stage, directly or through others, in the order in which they run."""
    return [name for name in STAGES if stage in below(name)]


def policies(start: str = "sft") -> dict[str, Policy]:
    """The policies of a run that begins at `run.start`: from the bare base there is no SFT, and all stand against that; at an
    adapter from elsewhere, that takes the place of SFT."""
    if start == "sft":
        return POLICIES
    if start != "base":
        own = f"{_SFT}and then", "begun at an adapter from elsewhere,"
        begun = {name: replace(policy, training=policy.training.replace(*own)) for name, policy in POLICIES.items()}
        return begun | {"sft": replace(POLICIES["sft"], training="which took it from elsewhere as it was")}
    return {
        name: replace(policy, over="base", training=policy.training.removeprefix(f"{_SFT}and then "))
        if policy.over == "sft"
        else policy
        for name, policy in POLICIES.items()
        if name != "sft"
    }


def models(start: str = "sft") -> dict[str, Policy]:
    """The policies of `policies` that are a model of their own, with which one can talk."""
    return {name: policy for name, policy in policies(start).items() if not policy.best_of}


def phases() -> dict[str, Phase]:
    """The phases of all stages, by name."""
    return {name: phase for stage in STAGES.values() for name, phase in stage.phases.items()}
