"""The passes of the stages that learn from rows by Transformers' trainers: SFT, the reward models, DPO.

imitation(plan, settings, 600, [(14, 7), (15, 8)])
-> [Pass("forward and backward", times=100, tokens=704, …), Pass("optimizer", times=100, …), Pass("rows set aside", …)]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlrecipes.before.passes import Pass, Sizes, rounded_up
from rlrecipes.before.workload import Workload, aside, mean, padded
from rlrecipes.profile import Profile, RewardSettings, TrainingSettings
from rlrecipes.run.stages import Policy

LOOKS, LOOKED = 10, 8
"""Times that SFT and the reward model take their loss on the rows set aside (`run.best.SHARE`), and rows that Transformers
then reads together."""
SCALED_ON = 512
"""Demonstrations that scale the reward model (`reward.agreement.SCALED_ON`)."""


@dataclass(frozen=True)
class Plan:
    """What the passes depend on."""

    sizes: Sizes
    work: Workload
    learned: bool
    policies: Mapping[str, Policy]
    """Those that are evaluated."""

    @property
    def profile(self) -> Profile:
        return self.sizes.profile

    @property
    def seeds(self) -> int:
        """Reward models that score together."""
        return self.profile.reward.seeds if self.learned else 0

    @property
    def judged(self) -> bool:
        return self.work.judged[0] > 0

    @property
    def scorer(self) -> Sizes:
        """The sizes of what scores, where that is a model beside the base."""
        return replace(self.sizes, shape=self.sizes.shape.beside or self.sizes.shape)


def steps(settings: TrainingSettings, rows: int) -> int:
    """Optimizer steps of a stage on so many rows."""
    if settings.max_steps > 0:
        return settings.max_steps
    batches = math.ceil(rows / settings.per_device_train_batch_size)
    return math.ceil(float(settings.num_train_epochs or 0) * math.ceil(batches / settings.gradient_accumulation_steps))


def imitation(plan: Plan, settings: TrainingSettings, count: int, tokens: Sequence[tuple[int, int]]) -> list[Pass]:
    """SFT on `count` rows, of which a sample have so many `tokens` of prompt and answer."""
    out, whole = aside(count, settings.keep), [prompt + answer for prompt, answer in tokens]
    rows, done = settings.per_device_train_batch_size, steps(settings, count - out)
    answer = mean([answer for _, answer in tokens])

    def logits(together: int) -> float:
        return rounded_up(together * answer, together * padded(whole, together))

    return [
        plan.sizes.train(
            "forward and backward",
            done * settings.gradient_accumulation_steps,
            rows,
            padded(whole, rows),
            logits=logits(rows),
            again=True,
            padded=rows > 1,
            checkpointed=settings.gradient_checkpointing,
            dropout=plan.profile.lora.lora_dropout,
        ),
        plan.sizes.step("optimizer", done, settings),
        plan.sizes.read(
            "rows set aside",
            LOOKS * math.ceil(out / LOOKED),
            LOOKED,
            padded(whole, LOOKED),
            logits=logits(LOOKED),
            padded=True,
        ),
    ]


def of_reward(plan: Plan) -> list[Pass]:
    settings, work = plan.profile.reward, plan.work
    texts = work.held_out_compared * (2 if work.pairwise else 1)
    if settings.model is None:
        return _trained(plan, settings, work.compared, texts, settings.seeds)
    return _measured(plan, plan.scorer, settings, texts, 1)


def of_judge(plan: Plan) -> list[Pass]:
    taught, measured = plan.work.judged
    return _trained(plan, plan.profile.reward, taught, measured * (2 if plan.work.pairwise else 1), 1)


def _trained(plan: Plan, settings: RewardSettings, rows: int, measured: int, seeds: int) -> list[Pass]:
    """`seeds` reward models from `rows` comparisons or ratings, measured on so many texts."""
    each, out = 2 if plan.work.pairwise else 1, aside(rows, settings.keep)
    together, done = each * settings.per_device_train_batch_size, steps(settings, rows - out)
    looked = LOOKED * each
    return [
        plan.sizes.train(
            "forward and backward",
            seeds * done * settings.gradient_accumulation_steps,
            together,
            padded(plan.work.texts, together),
            padded=together > 1,
            checkpointed=settings.gradient_checkpointing,
            dropout=plan.profile.lora.lora_dropout,
        ),
        plan.sizes.step("optimizer", seeds * done, settings),
        plan.sizes.read(
            "rows set aside",
            seeds * LOOKS * math.ceil(out / LOOKED),
            looked,
            padded(plan.work.texts, looked),
            padded=True,
        ),
        *_measured(plan, plan.sizes, settings, measured, seeds),
    ]


def _measured(plan: Plan, sizes: Sizes, settings: RewardSettings, texts: int, seeds: int) -> list[Pass]:
    """The texts that set the scale, and those that are measured on."""
    together = 2 * settings.per_device_train_batch_size
    return [
        sizes.read(what, seeds * math.ceil(count / together), together, padded(lengths, together), padded=True)
        for what, count, lengths in (
            ("scale", min(SCALED_ON, plan.work.demonstrations), plan.work.whole),
            ("held-out texts", texts, plan.work.texts),
        )
    ]


def of_dpo(plan: Plan) -> list[Pass]:
    """As the stage reads every comparison once under the reference, and as TRL's trainer takes its steps."""
    settings, work, sizes = plan.profile.dpo, plan.work, plan.sizes
    out = aside(work.compared, settings.keep)
    rows, done = settings.per_device_train_batch_size, steps(settings, work.compared - out)
    answer = mean([answer for _, answer in work.rows])

    def tokens(together: int, pool: float | None = None) -> float:
        return padded(work.texts, 2 * together, pool)

    return [
        sizes.read(
            "reference",
            math.ceil(work.compared / rows),
            2 * rows,
            tokens(rows, 2 * work.compared),
            states=2 * rows * answer,
            logits=2 * rows * answer,
        ),
        sizes.train(
            "forward and backward",
            done * settings.gradient_accumulation_steps,
            2 * rows,
            tokens(rows),
            states=2 * rows * answer,
            logits=2 * rows * answer,
            checkpointed=settings.gradient_checkpointing,
        ),
        sizes.step("optimizer", done, settings),
        sizes.read(
            "rows set aside",
            LOOKS * math.ceil(out / LOOKED),
            2 * LOOKED,
            tokens(LOOKED),
            states=2 * LOOKED * answer,
            logits=2 * LOOKED * answer,
        ),
    ]
