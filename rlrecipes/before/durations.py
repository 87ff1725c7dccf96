"""The passes of every phase of a stage, counted from the stages' code, the settings and the rows.

    passes(sizes, work, learned)["ppo update"]
    -> [Pass("forward and backward", times=64, tokens=2112, …), Pass("optimizer", times=64, …)]

Not counted: the reward's own terms and the metrics, endpoints, loading, checkpoints, and stages that end early.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlrecipes.before.groups import Rows, in_mini_batch, in_rows
from rlrecipes.before.passes import Pass, Sizes, rounded_up
from rlrecipes.before.workload import Workload, aside, mean, padded
from rlrecipes.data.split import SAMPLES, SLICE
from rlrecipes.profile import (
    SFT,
    DistillSettings,
    PolicySettings,
    Profile,
    RewardSettings,
    TrainingSettings,
    algorithms,
    sampling_algorithms,
)
from rlrecipes.run.policies import kinds
from rlrecipes.run.stages import Policy

LOOKS, LOOKED = 10, 8
"""Times that SFT and the reward model take their loss on the rows set aside (`run.best.SHARE`), and rows that Transformers
then reads together."""
SCALED_ON = 512
"""Demonstrations that scale the reward model (`reward.agreement.SCALED_ON`)."""
SHOWN = 50
"""Held-out prompts whose answers are scored once more for W&B's table (`stages.evaluate.SHOWN`)."""


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


def passes(plan: Plan) -> dict[str, list[Pass]]:
    """The passes of each phase; those phases alone that the plan has."""
    work = plan.work
    found = {}
    if plan.profile.run.start == SFT:
        found["sft"] = _imitation(plan, plan.profile.sft, work.demonstrations, work.rows)
    if plan.learned:
        found["reward"] = _reward(plan)
    if plan.judged:
        found["judge"] = _judge(plan)
    for table in sampling_algorithms(plan.profile):
        settings = getattr(plan.profile, table)
        found |= {f"{table} rollout": _rollout(plan, settings), f"{table} update": _update(plan, settings)}
    if "dpo" in algorithms(plan.profile):
        found["dpo"] = _dpo(plan)
    if "distill" in algorithms(plan.profile):
        settings = plan.profile.distill
        answered = [(prompt, min(answer, work.longest)) for prompt, answer in work.rows]
        learned = _imitation(plan, settings, _drawn_for(plan), answered)
        found |= {"distill rollout": _drawing(plan, settings), "distill": learned}
    found |= {"answers": _answers(plan), "evaluate": _evaluate(plan)}
    return {phase: [each for each in counted if each.times] for phase, counted in found.items()}


# The stages that Transformers' trainers run.


def steps(settings: TrainingSettings, rows: int) -> int:
    """Optimizer steps of a stage on so many rows."""
    if settings.max_steps > 0:
        return settings.max_steps
    batches = math.ceil(rows / settings.per_device_train_batch_size)
    return math.ceil(float(settings.num_train_epochs or 0) * math.ceil(batches / settings.gradient_accumulation_steps))


def _imitation(plan: Plan, settings: TrainingSettings, count: int, tokens: Sequence[tuple[int, int]]) -> list[Pass]:
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


def _reward(plan: Plan) -> list[Pass]:
    settings, work = plan.profile.reward, plan.work
    texts = work.held_out_compared * (2 if work.pairwise else 1)
    if settings.model is None:
        return _trained(plan, settings, work.compared, texts, settings.seeds)
    return _measured(plan, plan.scorer, settings, texts, 1)


def _judge(plan: Plan) -> list[Pass]:
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


def _dpo(plan: Plan) -> list[Pass]:
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


def _drawn_for(plan: Plan) -> int:
    """Prompts that `distill` draws answers to."""
    return min(plan.profile.distill.limit or plan.work.prompts, plan.work.prompts)


def _drawing(plan: Plan, settings: DistillSettings) -> list[Pass]:
    """As `policy.best_answers` draws several answers to each prompt, which it reads once, and scores them all."""
    prompts, each = _drawn_for(plan), settings.num_generations
    together = min(settings.together, prompts)
    batches, micro = math.ceil(prompts / together), min(settings.per_device_train_batch_size, together * each)
    reading, drawing = _generation(plan, "sampling", batches, together * each, prompts * each)
    read = replace(plan.sizes.read("sampling", batches, together, reading.tokens / (together * each), states=together))
    return [read, drawing, *_scoring(plan, batches * math.ceil(together * each / micro), micro)]


# PPO.


def _generation(
    plan: Plan, what: str, times: float, rows: float, pool: float, copied: bool = False, each: int = 1
) -> list[Pass]:
    """`times` generations of `rows` prompts, neighbours among `pool` that are ordered by length.

    Each runs until its longest answer has ended; the rows that end before it are read along. The policy may be `copied` into
    plain matrices for each. A prompt is read once for all its answers, of which there are so many for `each`.
    """
    prompt, answer = padded(plan.work.asked, rows, pool), padded(plan.work.answers, rows)
    prompts = max(1.0, rows / each)
    mask = prompts > 1 and len(set(plan.work.asked)) > 1
    sizes = plan.sizes.copied if copied else plan.sizes
    return [
        *([plan.sizes.copy("dense copy", times)] if copied else []),
        sizes.read("reading prompts", times, prompts, prompt, states=prompts, padded=mask, adapted=not copied),
        sizes.draw(what, times * answer, rows, prompt + answer / 2, mask, adapted=not copied),
    ]


def _updates(settings: PolicySettings) -> int:
    return math.ceil(settings.total_episodes / settings.batch)


def _scoring(plan: Plan, times: float, rows: float, shared: Rows | None = None) -> list[Pass]:
    """The learned score of answers, where the reward has a learned part; each of several reward models reads them.

    An adapter of the base reads them as they stand in `shared` rows.
    """
    if not plan.seeds:
        return []
    tokens = padded(plan.work.answered, rows)
    if plan.sizes.shape.beside:
        return [plan.scorer.read("scoring", times, rows, tokens)]
    read = shared or Rows(rows, tokens)
    return [plan.sizes.read("scoring", times * plan.seeds, read.count, read.tokens, states=rows, padded=read.masked)]


def _rollout(plan: Plan, settings: PolicySettings) -> list[Pass]:
    """As `Sampler.roll_out` takes its passes, and as the trainer looks at the policy."""
    sizes, work = plan.sizes, plan.work
    batch, updates = settings.batch, _updates(settings)
    rows = min(settings.local_rollout_forward_batch_size, batch)
    micro = min(settings.per_device_train_batch_size, rows)
    chunks, times = updates * math.ceil(batch / rows), updates * math.ceil(batch / micro)
    asked, answer = padded(work.asked, rows), padded(work.answers, rows)
    read, states = in_rows(sizes.shape, settings, micro, asked, answer), micro * answer
    if not read.masked:
        read = Rows(micro, padded(work.answered, rows))
    once_more = plan.profile.model.dtype == "bfloat16"  # `Sampler.rounds`
    found = _generation(
        plan, "sampling", chunks, rows, batch, copied=settings.dense_rollout == "always", each=settings.answers_each
    )
    for what in (*(["policy once more"] if once_more else []), "reference"):
        found.append(sizes.read(what, times, read.count, read.tokens, states=states, padded=read.masked))
        found.append(sizes.logprobs(what, chunks, rows * mean(work.answers)))
    if _has_value_adapter(settings):
        found.append(sizes.read("values", times, read.count, read.tokens, states=states))
    return [
        *found,
        *_scoring(plan, times, micro, read),
        *_looks(plan, settings, rows, micro),
        *_samples(plan, settings),
    ]


def _has_value_adapter(settings: PolicySettings) -> bool:
    return getattr(settings, "value", "") == "adapter"


def _looks(plan: Plan, settings: PolicySettings, rows: int, micro: int) -> list[Pass]:
    """Looks at the policy: before the first update, every few and after the last, greedy and at temperature 1."""
    prompts, copied = min(SLICE, plan.work.prompts // 10), settings.dense_rollout == "always"
    if not settings.eval_every or not aside(plan.work.prompts):
        return []
    looks, parts = 1 + math.ceil(_updates(settings) / settings.eval_every), math.ceil(prompts / rows)
    scored, together = 2 * looks * math.ceil(prompts / micro), min(micro, prompts)
    found = [
        *_generation(plan, "looks", looks * parts, prompts / parts, prompts, copied=copied),
        *_generation(plan, "looks", looks * parts, prompts / parts, prompts, copied=copied),
        *_scoring(plan, scored, together),
    ]
    if plan.judged and settings.judge:
        tokens = padded(plan.work.answered, together)
        found.append(plan.sizes.read("looks", scored, together, tokens, states=together))
    return [replace(each, what="looks") for each in found]


def _samples(plan: Plan, settings: PolicySettings) -> list[Pass]:
    """Answers for the log, as often as TRL says."""
    updates, wanted = _updates(settings), settings.num_sample_generations
    if not wanted:
        return []
    shown = math.ceil(updates / max(1, updates // wanted))
    copied = settings.dense_rollout == "always"
    found = _generation(plan, "samples", shown, SAMPLES, SAMPLES, copied=copied)
    found += _scoring(plan, shown, SAMPLES)
    return [replace(each, what="samples") for each in found]


def _update(plan: Plan, settings: PolicySettings) -> list[Pass]:
    """As `PolicyTrainer.update` passes over a batch."""
    sizes, work, batch, micro = plan.sizes, plan.work, settings.batch, settings.per_device_train_batch_size
    times = _updates(settings) * settings.passes
    rows = times * (batch // micro)
    each, states = in_mini_batch(settings), micro * padded(work.answers, micro)
    read = in_rows(sizes.shape, settings, micro, padded(work.asked, micro), mean(work.answers), each)
    if not read.masked:
        read = Rows(micro, padded(work.answered, micro, batch / settings.mini_batches))
    taken = times * settings.mini_batches
    policy = sizes.train(
        "forward and backward",
        rows,
        read.count,
        read.tokens,
        states=states,
        logits=micro * mean(work.answers),
        padded=read.masked,
        checkpointed=settings.gradient_checkpointing,
    )
    value = sizes.train(
        "values", rows, read.count, read.tokens, states=states, checkpointed=settings.gradient_checkpointing
    )
    trained = [policy, value] if _has_value_adapter(settings) else [policy]
    return [*trained, *(sizes.step("optimizer", taken, settings) for _ in trained)]


# Evaluation.


def _asked(plan: Plan) -> int:
    return min(plan.profile.evaluate.limit or plan.work.held_out, plan.work.held_out)


def _answers(plan: Plan) -> list[Pass]:
    """As `policy.answers.answer`: each policy's greedy answers, its sampled ones, and those to take the best of."""
    asked, found = _asked(plan), list[Pass]()
    rows = min(plan.profile.evaluate.batch_size, asked)
    batches = math.ceil(asked / rows)
    wanted = kinds(plan.policies, plan.profile.evaluate.pass_at)
    every = [kind for given in wanted.values() for kind in given]
    greedy = every.count("greedy")
    for times, drawn in ((greedy, "greedy answers"), (len(every) - greedy, "sampled answers")):
        found += _generation(plan, drawn, times * batches, rows, asked)
    apart = sum(plan.policies[name].role not in (None, "reference") for name in wanted if name in plan.policies)
    tokens, states = padded(plan.work.answered, rows, asked), rows * mean(plan.work.answers)
    found.append(plan.sizes.read("divergence", apart * batches, rows, tokens, states=states, logits=states))
    return found


def _evaluate(plan: Plan) -> list[Pass]:
    """As `policy.scores.score_all`, and the perplexity of the greedy answers."""
    asked, compared = _asked(plan), len(plan.policies)
    rows = min(plan.profile.evaluate.batch_size, asked)
    batches = math.ceil(asked / rows)
    draws = max((policy.best_of for policy in plan.policies.values()), default=0)
    turns = draws + compared * (2 if plan.seeds > 1 else 1)
    found = _scoring(plan, turns * batches, rows)
    if plan.seeds and plan.profile.track.wandb != "off":
        found += [
            replace(each, what="table") for each in _scoring(plan, compared * math.ceil(SHOWN / rows), min(SHOWN, rows))
        ]
    tokens, states = padded(plan.work.answered, rows), rows * mean(plan.work.answers)
    if plan.judged:
        found.append(plan.sizes.read("judge", compared * batches, rows, tokens, states=rows))
    tokens = padded(plan.work.answered, rows, asked)
    found.append(
        plan.sizes.read("perplexity", compared * batches, rows, tokens, states=states, logits=states, adapted=False)
    )
    return found
