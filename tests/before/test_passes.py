"""Passes: their products and operations, counted again on the real code at toy size, and by hand."""

import dataclasses
import json
from functools import partial

import pytest
import torch
from products import Products
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import models, ours
from benchmarks.plan import build, profile
from benchmarks.work import Model, Work
from rlrecipes.before.durations import passes
from rlrecipes.before.learning import Plan
from rlrecipes.before.passes import Sizes
from rlrecipes.before.shape import Block, Input, Network, Shape, shape_of
from rlrecipes.before.workload import Workload
from rlrecipes.model.forward import trunk
from rlrecipes.profile import load_profile
from rlrecipes.run.stages import POLICIES

TOY = Model(vocabulary=512, hidden=64, layers=2, heads=4, kv_heads=2, intermediate=160)
QWEN = dataclasses.replace(TOY, family="qwen3", layers=3)
WORK = Work("t", TOY, 24, 24, 8, batch=8, micro_batch=4, epochs=2, updates=1, lora_rank=4)
ROLLOUT = ("reading prompts", "sampling", "reference", "scoring")


def by_hand():
    """A model of one block: 8 wide, 2 query heads of 4 and one of keys and values, 16 in the middle, 32 words; rank 2."""
    block = Block(8, 8, False, (Input(8, 3),), Input(8, 1), (Network(16, True, (Input(8, 2), Input(16, 1))),))
    linear = 8 * 16 + 8 * 8 + 3 * 8 * 16
    adapter = 2 * (3 * 8 + 16 + 8 + 8 + 3 * (8 + 16))
    return Shape("llama", 8, 2, 32, 64, linear, 0, 0, 128, adapter, False, (block,))


def counted(run):
    with Products() as products:
        run()
    return products.count


class Kernels(TorchDispatchMode):
    """Counts operations, views left out."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(each) if isinstance(x, torch.Tensor)] for each in (args, result))
        places = {x.untyped_storage().data_ptr() for x in given}
        in_place = operation.name().split(".")[0].endswith("_")
        self.count += bool(made) and (in_place or not any(x.untyped_storage().data_ptr() in places for x in made))
        return result


def sizes(work):
    config = json.loads(models.config(work.model, work.longest + work.answer).to_json_string(use_diff=False))
    return Sizes(shape_of(config, profile(work)), profile(work), "cpu")


def planned(work, phase):
    """The passes of a phase on the rows that `build` makes: all of one length, and none set aside."""
    count = work.batch * (work.updates + 1)
    rows = [(work.longest, work.answer)]
    made = Workload(
        demonstrations=count,
        compared=count,
        pairwise=True,
        held_out_compared=0,
        judged=(0, 0),
        prompts=count,
        held_out=count,
        asked=[work.longest],
        rows=rows,
        texts=[work.longest + work.answer],
        longest=work.answer,
        source="",
    )
    return passes(Plan(sizes(work), made, True, POLICIES))[phase]


def products(found, *names):
    return sum(each.times * each.flops for each in found if not names or each.what in names)


@pytest.mark.parametrize("model", [TOY, QWEN], ids=["llama", "qwen3"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_products_of_sft_are_those_that_its_steps_make(model, checkpointed, tmp_path):
    work = dataclasses.replace(WORK, model=model, gradient_checkpointing=checkpointed)
    run = build(work, tmp_path / "model", "sft")
    assert products(planned(work, "sft")) == pytest.approx(counted(run), rel=0.1)


def test_products_of_the_reward_model_are_those_of_its_steps_and_of_its_scores(tmp_path):
    run = build(WORK, tmp_path / "model", "reward")
    found = planned(WORK, "reward")
    # `build` scores all rows once, of which the stage has as many as demonstrations
    assert products(found, "forward and backward", "scale") == pytest.approx(counted(run), rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        *({}, {"value": "adapter"}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}),
        {"dense_rollout": "always"},
    ],
)
def test_products_of_ppo_are_those_of_its_rollout_and_its_update(changes, tmp_path):
    model = dataclasses.replace(TOY, dtype=changes.pop("dtype", "float32"))
    work = dataclasses.replace(WORK, model=model, **changes)
    trainer = ours.build(work, models.tokenizer(model), tmp_path)
    found = {"ppo rollout": 0, "ppo update": 0}

    def count(name, step, *given):
        result = []
        found[name] += counted(lambda: result.append(step(*given)))
        return result[0]

    trainer.roll_out = partial(count, "ppo rollout", trainer.roll_out)
    trainer.update = partial(count, "ppo update", trainer.update)
    trainer.train()
    rollout = [
        *ROLLOUT,
        "values",
        "policy once more",
        "dense copy",
    ]  # the bench looks at no policy and shows no samples
    assert products(planned(work, "ppo rollout"), *rollout) == pytest.approx(found["ppo rollout"], rel=0.1)
    assert products(planned(work, "ppo update")) == pytest.approx(found["ppo update"], rel=0.1)


@pytest.mark.parametrize("model", [TOY, QWEN], ids=["llama", "qwen3"])
def test_operations_are_as_many_as_pytorch_sees(model):
    work = dataclasses.replace(WORK, model=model)
    base = models.causal(work).requires_grad_(False)
    adapted = ours.adapters(work, base)
    for name, weight in adapted.named_parameters():
        weight.requires_grad_(".policy." in name)
    ids = torch.randint(3, model.vocabulary, (4, 16))
    with Kernels() as reading, torch.no_grad():
        states = trunk(adapted)(input_ids=ids, use_cache=False).last_hidden_state
    with Kernels() as training:
        trunk(adapted)(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
    assert states.shape == (4, 16, 64)
    assert sizes(work).read("", 1, 4, 16).kernels == pytest.approx(reading.count, rel=0.05)
    assert sizes(work).train("", 1, 4, 16).kernels == pytest.approx(training.count, rel=0.1)


# By hand.


@pytest.fixture
def small():
    settings = load_profile("tiny", ["model.quantization=none", "lora.r=2"], "a/model")
    return Sizes(by_hand(), settings, "cpu")


def test_a_tokens_products_are_twice_the_weights_that_it_meets(small):
    found = small.read("", 1, 1, 1, adapted=False)
    assert found.flops == 2 * (8 * 16 + 8 * 8 + 3 * 8 * 16) + 4 * 8  # and attention to itself
    assert found.weights == 4 * 576
    assert small.read("", 1, 1, 1).flops - found.flops == 2 * 2 * (3 * 8 + 16 + 8 + 8 + 3 * (8 + 16))


def test_logits_are_made_of_the_states_that_are_asked_for_alone(small):
    bare = small.read("", 1, 2, 6)
    with_logits = small.read("", 1, 2, 6, logits=5)
    assert with_logits.flops - bare.flops == 2 * 5 * 32 * 8
    assert with_logits.weights - bare.weights == 4 * 32 * 8
    assert with_logits.moved > bare.moved


def test_the_last_network_runs_on_the_states_that_are_read(small):
    saved = small.read("", 1, 2, 6).flops - small.read("", 1, 2, 6, states=4).flops
    assert saved == 8 * 2 * (3 * 8 * 16 + 2 * 3 * (8 + 16))


def test_a_token_step_attends_to_all_tokens_before_it(small):
    early, late = (small.draw("", 1, 3, past, padded=False) for past in (10, 20))
    assert late.flops - early.flops == 3 * 4 * 10 * 8
    assert late.moved - early.moved == 3 * 10 * 4 * 8 + 3 * 10 * 2 * 4 * 2  # keys and values; scores, there and back


def test_checkpoints_run_every_block_once_more(small):
    plain, checkpointed = (small.train("", 1, 2, 6, checkpointed=each) for each in (False, True))
    forward = small.read("", 1, 2, 6).flops
    first = 2 * 12 * 8 * (16 + 3 * 2)  # and the gradient of the embeddings, which checkpoints ask for
    assert checkpointed.flops - plain.flops == forward + first


def test_four_bit_weights_are_made_whole_there_and_back_and_on_a_gpu_for_many_tokens_alone():
    settings = load_profile("tiny", ["lora.r=2"], "a/model")
    cpu, cuda = (Sizes(by_hand(), settings, device) for device in ("cpu", "cuda"))
    assert cpu.read("", 1, 1, 1).unpacked == 576
    assert cuda.read("", 1, 64, 1).unpacked == 0
    assert cuda.read("", 1, 65, 1).unpacked == 576
    assert cpu.train("", 1, 4, 16).unpacked == 2 * 576
