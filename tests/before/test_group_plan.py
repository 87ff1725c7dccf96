"""The plan counts RLOO's and GRPO's passes and bytes with each prompt once for all its answers, as they are made."""

import dataclasses
import json
from functools import partial

import pytest
from alive import Alive
from products import Products

from benchmarks import models, ours
from benchmarks.plan import profile as of_ppo
from benchmarks.work import Model, Work
from rlrecipes.before.durations import passes
from rlrecipes.before.groups import Rows, in_mini_batch, in_rows
from rlrecipes.before.learning import Plan
from rlrecipes.before.needs import Lengths, fullest, moments
from rlrecipes.before.parts import RESERVE
from rlrecipes.before.passes import Sizes
from rlrecipes.before.shape import shape_of
from rlrecipes.before.workload import Workload
from rlrecipes.profile import RunSettings
from rlrecipes.run.stages import POLICIES

TINY = Model(vocabulary=512, hidden=128, layers=3, heads=4, kv_heads=2, intermediate=384)
PROMPT, ANSWER, EACH = 64, 12, 4
ROLLOUT = ("reading prompts", "sampling", "policy once more", "reference", "scoring")
WORKS = [{}, {"algorithm": "rloo"}, {"micro_batch": 4}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}]


def work_of(dtype="float32", algorithm="grpo", micro_batch=8, **changes):
    model, prompts = dataclasses.replace(TINY, dtype=dtype), {"shortest": PROMPT, "longest": PROMPT, "answer": ANSWER}
    rows = {"batch": 16, "micro_batch": micro_batch, "epochs": 2, "updates": 2, "lora_rank": 4, "answers_each": EACH}
    return Work("t", model, **prompts, **rows, algorithm=algorithm, **changes)


def profile(work):
    plain = of_ppo(work)
    settings = dataclasses.replace(ours._settings(work), num_sample_generations=0, eval_every=0)
    run = RunSettings(algorithms=work.algorithm)
    return dataclasses.replace(plain, run=run, **{work.algorithm: settings})


def shape(work, settings):
    config = models.config(work.model, work.longest + work.answer)
    return shape_of(json.loads(config.to_json_string(use_diff=False)), settings)


def rows_of(work):
    count = work.batch * (work.updates + 1)
    return Workload(
        **{"demonstrations": count, "compared": count, "pairwise": True, "held_out_compared": 0, "judged": (0, 0)},
        **{"prompts": count, "held_out": count, "asked": [PROMPT], "rows": [(PROMPT, ANSWER)], "source": ""},
        **{"texts": [PROMPT + ANSWER], "longest": ANSWER},
    )


@pytest.mark.parametrize("changes", WORKS)
def test_the_passes_are_the_products_that_the_trainer_makes(changes, tmp_path):
    work = work_of(**changes)
    settings, made = profile(work), dict.fromkeys(("roll_out", "update"), 0)
    trainer = ours.build(work, models.tokenizer(work.model), tmp_path)
    assert trainer.sampler.shares

    def count(name, step, *given):
        with Products() as products:
            result = step(*given)
        made[name] += products.count
        return result

    for name in made:
        setattr(trainer, name, partial(count, name, getattr(trainer, name)))
    trainer.train()
    found = passes(Plan(Sizes(shape(work, settings), settings, "cpu"), rows_of(work), True, POLICIES))
    rollout = [each for each in found[f"{work.algorithm} rollout"] if each.what in ROLLOUT]
    assert sum(each.times * each.flops for each in rollout) == pytest.approx(made["roll_out"], rel=0.1)
    update = found[f"{work.algorithm} update"]
    assert sum(each.times * each.flops for each in update) == pytest.approx(made["update"], rel=0.1)


@pytest.mark.parametrize("step", ["roll_out", "update"])
@pytest.mark.parametrize("changes", WORKS)
def test_the_plan_is_what_is_alive_at_the_peak_of_groups(step, changes, tmp_path):
    work, peaks = work_of(**changes), []
    settings = profile(work)
    phase = f"{work.algorithm} {step.replace('_', '')}"
    needs = moments(shape(work, settings), settings, Lengths(PROMPT, ANSWER, False), "cuda")
    with Alive() as alive:
        trainer = ours.build(work, models.tokenizer(work.model), tmp_path)
        inner = getattr(trainer, step)

        def watched(*given):
            alive.peak = alive.now
            result = inner(*given)
            peaks.append(alive.peak)
            return result

        setattr(trainer, step, watched)
        trainer.train()
    assert fullest(needs[phase]).total - RESERVE["cuda"] == pytest.approx(max(peaks), rel=0.1)


def test_answers_share_their_prompt_as_far_as_they_stand_together():
    work = work_of()
    settings = profile(work)
    made = partial(in_rows, shape(work, settings))
    grpo = settings.grpo
    assert made(grpo, 8, PROMPT, ANSWER) == Rows(2, PROMPT + 4 * ANSWER, True)
    assert made(grpo, 6, PROMPT, ANSWER) == Rows(2, PROMPT + 4 * ANSWER, True), "four and two, or two and four"
    assert made(grpo, 2, PROMPT, ANSWER) == Rows(1, PROMPT + 2 * ANSWER, True)
    assert made(grpo, 8, PROMPT, ANSWER, each=1) == Rows(8, PROMPT + ANSWER)
    assert made(settings.ppo, 8, PROMPT, ANSWER) == Rows(8, PROMPT + ANSWER)
    assert made(grpo, 8, 4, 500) == Rows(8, 504), "attention over all answers would cost more than the prompt"
    parts = dataclasses.replace(grpo, steps_per_generation=4)
    assert in_mini_batch(grpo) is None
    assert in_mini_batch(parts) == pytest.approx(2 / (1 - 0.5**4)), "two mini-batches of a batch"
    windows = dataclasses.replace(shape(work, settings), shares=False)
    assert in_rows(windows, grpo, 8, PROMPT, ANSWER) == Rows(8, PROMPT + ANSWER)
