"""The passes of every phase of a stage, counted from the stages' code, the settings and the rows.

    passes(sizes, work, learned)["ppo update"]
    -> [Pass("forward and backward", times=64, tokens=2112, …), Pass("optimizer", times=64, …)]

Not counted: the reward's own terms and the metrics, endpoints, loading, checkpoints, and stages that end early.
"""

from __future__ import annotations

import math
from dataclasses import replace

from rlrecipes.before.groups import Rows, in_mini_batch, in_rows
from rlrecipes.before.learning import Plan, imitation, of_dpo, of_judge, of_reward
from rlrecipes.before.passes import Pass
from rlrecipes.before.workload import aside, mean, padded
from rlrecipes.data.split import SAMPLES, SLICE
from rlrecipes.profile import (
    SFT,
    DistillSettings,
    PolicySettings,
    algorithms,
    sampling_algorithms,
)
from rlrecipes.run.policies import kinds

SHOWN = 50
"""Held-out prompts whose answers are scored once more for W&B's table (`stages.evaluate.SHOWN`)."""


def passes(plan: Plan) -> dict[str, list[Pass]]:
    """The passes of each phase; those phases alone that the plan has."""
    work = plan.work
    found = {}
    if plan.profile.run.start == SFT:
        found["sft"] = imitation(plan, plan.profile.sft, work.demonstrations, work.rows)
    if plan.learned:
        found["reward"] = of_reward(plan)
    if plan.judged:
        found["judge"] = of_judge(plan)
    for table in sampling_algorithms(plan.profile):
        settings = getattr(plan.profile, table)
        found |= {f"{table} rollout": _rollout(plan, settings), f"{table} update": _update(plan, settings)}
    if "dpo" in algorithms(plan.profile):
        found["dpo"] = of_dpo(plan)
    if "distill" in algorithms(plan.profile):
        settings = plan.profile.distill
        answered = [(prompt, min(answer, work.longest)) for prompt, answer in work.rows]
        learned = imitation(plan, settings, _drawn_for(plan), answered)
        found |= {"distill rollout": _drawing(plan, settings), "distill": learned}
    found |= {"answers": _answers(plan), "evaluate": _evaluate(plan)}
    return {phase: [each for each in counted if each.times] for phase, counted in found.items()}


# Answers that are drawn once, to learn from.


def _drawn_for(plan: Plan) -> int:
    """Prompts that `distill` draws answers to."""
    return min(plan.profile.distill.limit or plan.work.prompts, plan.work.prompts)


def _drawing(plan: Plan, settings: DistillSettings) -> list[Pass]:
    """As `policy.best_answers` draws several answers to each prompt, which it reads once, and scores them all."""
    prompts, each = _drawn_for(plan), settings.num_generations
    together = min(settings.together, prompts)
    batches, micro = math.ceil(prompts / together), min(settings.per_device_train_batch_size, together * each)
    drawn = _generation(plan, "sampling", batches, together * each, prompts * each, each=each)
    return [*drawn, *_scoring(plan, batches * math.ceil(together * each / micro), micro)]


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
