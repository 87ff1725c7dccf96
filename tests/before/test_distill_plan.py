"""The plan counts the answers that `distill` draws and scores, and the steps that it takes on the best of them."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from peft import PeftModel
from products import Products

from benchmarks import models
from benchmarks.work import Model, Work
from rlrecipes.before.durations import passes
from rlrecipes.before.learning import Plan
from rlrecipes.before.needs import moments
from rlrecipes.before.passes import Sizes
from rlrecipes.before.plan import largest_batch, plan
from rlrecipes.before.shape import read_shape, shape_of
from rlrecipes.before.workload import Workload
from rlrecipes.model.adapters import add_in_place
from rlrecipes.policy.best_answers import best_answers
from rlrecipes.profile import DistillSettings, LoraSettings, ModelSettings, Profile, RunSettings, load_profile
from rlrecipes.recipe import Example, Reward, Term, user
from rlrecipes.run.checkpoint import PartsCheckpoints
from rlrecipes.run.folder import Run
from rlrecipes.run.stages import POLICIES

PROMPT, ANSWER, PROMPTS, EACH = 40, 8, 12, 3
WORK = Workload(
    **{"demonstrations": 8, "compared": 8, "pairwise": True, "held_out_compared": 0, "judged": (0, 0)},
    **{"prompts": PROMPTS, "held_out": 8, "asked": [PROMPT], "rows": [(PROMPT, ANSWER)], "texts": [PROMPT + ANSWER]},
    **{"longest": ANSWER, "source": ""},
)
DISTILL = "run.algorithms=distill"


def found(*settings, work=WORK, learned=True):
    profile = load_profile("tiny", [DISTILL, *settings])
    return passes(Plan(Sizes(read_shape(profile), profile, "cpu"), work, learned, POLICIES))


def test_a_prompt_is_read_once_for_all_its_answers_which_are_all_scored():
    many = dataclasses.replace(WORK, prompts=1000)
    settings = ("distill.num_generations=4", "distill.local_rollout_forward_batch_size=40", "distill.limit=600")
    reading, drawing, scoring = found(*settings, work=many)["distill rollout"]
    assert reading.times == 600 / 10
    assert reading.tokens == 10 * PROMPT
    assert drawing.times == 60 * ANSWER
    assert drawing.tokens == 40
    assert scoring.times == 60 * 2, "32 of 40 answers are scored together"
    assert [each.what for each in found(learned=False)["distill rollout"]] == ["reading prompts", "sampling"]


def test_its_steps_are_those_of_sft_on_as_many_rows_as_there_are_prompts():
    many = dataclasses.replace(WORK, prompts=1000, demonstrations=1000)
    taught = found("distill.max_steps=20", "sft.max_steps=20", "distill.limit=0", work=many)
    assert taught["distill"] == taught["sft"]
    few = found("distill.limit=300", work=many)["distill"]
    assert [each.times for each in few if each.what == "rows set aside"] == [10 * -(-30 // 8)]


def test_the_passes_are_the_products_that_the_drawing_makes(tmp_path):
    shape = Model(vocabulary=512, hidden=128, layers=3, heads=4, kv_heads=2, intermediate=384)
    work = Work("t", shape, PROMPT, PROMPT, ANSWER, 4, 4, 1, 2, lora_rank=4)
    profile = Profile(
        "t",
        model=ModelSettings(quantization="none", max_length=PROMPT + ANSWER),
        lora=LoraSettings(r=4, lora_alpha=8),
        distill=DistillSettings(max_steps=1, num_generations=EACH, local_rollout_forward_batch_size=12),
        run=RunSettings(algorithms="distill"),
    )
    config = json.loads(models.config(work.model, PROMPT + ANSWER).to_json_string(use_diff=False))
    planned = passes(Plan(Sizes(shape_of(config, profile), profile, "cpu"), WORK, False, POLICIES))["distill rollout"]
    model = PeftModel(models.causal(work), models.lora(work), adapter_name="default")
    add_in_place(model, "default")
    model.set_adapter("default")
    tokenizer = models.tokenizer(work.model)
    tokenizer.eos_token_id = 511  # which is drawn next to never, so that all answers are as long
    reward = Reward(learned=0.0, terms=(Term("own", lambda *_: 1.0, weight=1.0),))
    job = SimpleNamespace(profile=profile, recipe=SimpleNamespace(reward=reward), seed=0)
    prompts = [(Example(user("x"), ("y",)), [5] * PROMPT) for _ in range(PROMPTS)]
    with Products() as products:
        best_answers(job, model, tokenizer, prompts, ANSWER, None, PartsCheckpoints(tmp_path, 1e9, None, 1))
    assert sum(each.times * each.flops for each in planned) == pytest.approx(products.count, rel=0.15)


def test_a_setting_moves_what_it_needs_and_the_largest_batch_is_told():
    plain = load_profile("single_gpu_24gb", ["run.algorithms=ppo,distill"])
    before = moments(read_shape(plain), plain)
    assert {"ppo update", "distill rollout", "distill"} <= before.keys()
    for setting, phase, role in (
        ("distill.local_rollout_forward_batch_size=16", "distill rollout", "KV cache"),
        ("distill.per_device_train_batch_size=1", "distill", "activations"),
        ("distill.optim=adamw_torch", "distill", "optimizer"),
        ("distill.gradient_checkpointing=false", "distill", "activations"),
    ):
        changed = load_profile("single_gpu_24gb", ["run.algorithms=ppo,distill", setting])
        after = moments(read_shape(changed), changed)[phase]
        assert [need.roles.get(role) for need in before[phase]] != [need.roles.get(role) for need in after], setting
    assert largest_batch(read_shape(plain), plain, "distill rollout", 24 * 2**30) > 64
    assert "distill rollout" not in moments(read_shape(load_profile("tiny")), load_profile("tiny"))
    alone = load_profile("single_gpu_24gb", [DISTILL])
    assert "read once more" not in plan(alone, True, "24", Run("planned", "translation"))
