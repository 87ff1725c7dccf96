"""The plan counts DPO's bytes and passes as its stage makes them, and every check before it knows its table."""

import dataclasses
import json
import math

import pytest
import torch
from alive import Alive
from peft import PeftModel
from products import Products

from benchmarks import models
from benchmarks.work import Model, Work
from rlrecipes.before.durations import passes
from rlrecipes.before.learning import Plan
from rlrecipes.before.needs import Lengths, fullest, moments
from rlrecipes.before.parts import RESERVE
from rlrecipes.before.passes import Sizes
from rlrecipes.before.shape import read_shape, shape_of
from rlrecipes.before.workload import Workload
from rlrecipes.model.adapters import add_in_place
from rlrecipes.policy import dpo_trainer as stage
from rlrecipes.profile import DPOSettings, LoraSettings, ModelSettings, Profile, RunSettings, load_profile
from rlrecipes.run.checkpoint import PartsCheckpoints
from rlrecipes.run.stages import POLICIES

TINY = Model(vocabulary=512, hidden=128, layers=3, heads=4, kv_heads=2, intermediate=384)
PROMPT, ANSWER, PAIRS = 3, 93, 8
WORK = Workload(
    **{"demonstrations": 8, "compared": PAIRS, "pairwise": True, "held_out_compared": 0, "judged": (0, 0)},
    **{"prompts": 8, "held_out": 8, "asked": [PROMPT], "rows": [(PROMPT, ANSWER)], "texts": [PROMPT + ANSWER]},
    **{"longest": ANSWER, "source": ""},
)


def work_of(dtype):
    return Work("t", dataclasses.replace(TINY, dtype=dtype), PROMPT, PROMPT, ANSWER, 4, 4, 1, 2, lora_rank=4)


def profile(work, **settings):
    rows = {"per_device_train_batch_size": 4, "max_steps": 2, **settings}
    length = work.longest + work.answer
    return Profile(
        "t",
        model=ModelSettings(quantization="none", dtype=work.model.dtype, max_length=length),
        lora=LoraSettings(r=4, lora_alpha=8),
        dpo=DPOSettings(**rows),
        run=RunSettings(algorithms="dpo"),
    )


def shape(work, settings):
    config = models.config(work.model, work.longest + work.answer)
    return shape_of(json.loads(config.to_json_string(use_diff=False)), settings)


def trained(work, settings, folder):
    """Makes the stage's trainer on random comparisons, and trains it when it is called."""
    model = PeftModel(models.causal(work), models.lora(work), adapter_name="default")
    add_in_place(model, "default")
    model.set_adapter("default")
    tokenizer = models.tokenizer(work.model)
    torch.manual_seed(0)
    sides = torch.randint(2, 500, (PAIRS, 2, ANSWER)).tolist()
    rows = [{"prompt_ids": [5] * PROMPT, "chosen_ids": a, "rejected_ids": b} for a, b in sides]
    checkpoints = PartsCheckpoints(folder, math.inf, None, 1)

    def train():
        size = settings.dpo.per_device_train_batch_size
        reference = stage.reference_logprobs(model, rows, size, tokenizer.pad_token_id, checkpoints)
        whole = stage.with_reference(rows, reference)
        trainer = stage.dpo_trainer(settings.dpo, 0, model, tokenizer, whole, (), folder, [])
        trainer.train_from(checkpoints, "dpo")

    return train


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_plan_is_what_is_alive_at_the_peak_of_dpo(checkpointed, dtype, tmp_path):
    work = work_of(dtype)
    settings = profile(work, gradient_checkpointing=checkpointed)
    needs = moments(shape(work, settings), settings, Lengths(PROMPT, ANSWER), "cuda")
    assert "ppo update" not in needs
    planned = fullest(needs["dpo"]).total - RESERVE["cuda"]
    with Alive() as alive:
        trained(work, settings, tmp_path)()
    assert planned == pytest.approx(alive.peak, rel=0.1)


def test_the_passes_are_the_products_that_the_stage_makes(tmp_path):
    work = work_of("float32")
    settings = profile(work, keep="last")
    found = passes(Plan(Sizes(shape(work, settings), settings, "cpu"), WORK, True, POLICIES))["dpo"]
    assert [each.what for each in found] == ["reference", "forward and backward", "optimizer"]
    assert [each.times for each in found] == [PAIRS / 4, 2, 2]
    run = trained(work, settings, tmp_path)
    with Products() as products:
        run()
    assert sum(each.times * each.flops for each in found) == pytest.approx(products.count, rel=0.1)


def test_a_tenth_of_the_comparisons_is_looked_at_ten_times(tmp_path):
    settings = load_profile("tiny", ["run.algorithms=dpo", "dpo.max_steps=20", "dpo.gradient_accumulation_steps=2"])
    many = dataclasses.replace(WORK, compared=1000)
    found = passes(Plan(Sizes(read_shape(settings), settings, "cpu"), many, True, POLICIES))["dpo"]
    assert {each.what: each.times for each in found} == {
        **{"reference": math.ceil(1000 / 32), "forward and backward": 40, "optimizer": 20},
        "rows set aside": 10 * math.ceil(100 / 8),
    }


def test_a_setting_moves_what_dpo_needs():
    plain = load_profile("single_gpu_24gb", ["run.algorithms=ppo,dpo"])
    before = moments(read_shape(plain), plain)
    assert {"ppo update", "dpo"} <= before.keys()
    for setting, role in (
        ("dpo.per_device_train_batch_size=1", "activations"),
        ("dpo.optim=adamw_torch", "optimizer"),
        ("dpo.gradient_checkpointing=false", "activations"),
    ):
        changed = load_profile("single_gpu_24gb", ["run.algorithms=ppo,dpo", setting])
        after = moments(read_shape(changed), changed)["dpo"]
        assert [need.roles.get(role) for need in before["dpo"]] != [need.roles.get(role) for need in after], setting
