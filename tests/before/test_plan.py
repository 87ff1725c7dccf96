"""The plan: what the models' shapes give, what is alive on a device, and what the person asking is told."""

import dataclasses
import json
import math
import re
import weakref

import pytest
import torch
from conftest import Checkpoint
from families import FAMILIES, gpt2
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D
from trl.trainer import sft_trainer

from benchmarks import models, ours
from benchmarks.plan import Shape, planned_mb, profile
from benchmarks.work import Model, Work
from rlrecipes.__main__ import main
from rlrecipes.before.decoder import _EXPERTS, _GATED, _PLAIN, _TIED, KNOWN, decoder, read_config
from rlrecipes.before.plan import (
    AT_ONCE,
    GIB,
    RESERVE,
    ROLES,
    SFT_AT_ONCE,
    Lengths,
    _Sizes,
    largest_batch,
    moments,
    needs,
)
from rlrecipes.model import likelihood
from rlrecipes.profile import load_profile, profile_names

SIZED = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZED, "num_key_value_heads": 2}
OLDER = {"n_embd": 256, "n_layer": 2, "n_head": 4, "n_inner": 512}
FALCON = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
COUNTED = [
    *FAMILIES.items(),
    *((kind, GROUPED) for kind in ("olmo", "olmo2", "olmo3", "granite", "smollm3", "stablelm", "cohere")),
    *((kind, GROUPED) for kind in ("cohere2", "exaone4", "seed_oss", "ernie4_5", "starcoder2", "gemma3_text")),
    ("ministral", {**GROUPED, "head_dim": 64}),
    ("gptj", {**OLDER, "rotary_dim": 16}),
    ("gpt_bigcode", OLDER),
    ("gpt_bigcode", {**OLDER, "multi_query": False}),
    ("bloom", {"hidden_size": 256, "n_layer": 2, "n_head": 4}),
    ("falcon", FALCON),
    ("falcon", {**FALCON, "multi_query": False}),
    ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
]
"""Kinds with sizes at which every linear layer has a shape of its own."""

GPU_PROFILES = [name for name in profile_names() if name != "tiny"]
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LARGER = {"hidden_size": 256, "n_embd": 256, "intermediate_size": 512, "ffn_dim": 512, "word_embed_proj_dim": 128}
"""Sizes at which biases and positions are a small part."""


def sizes(config, profile=None, device="cpu"):
    profile = profile or load_profile("tiny", ["model.quantization=none"])
    return _Sizes(decoder(config, "a model"), profile, Lengths(8, 8), device, True)


# Sizes.


@pytest.mark.parametrize(("family", "settings"), COUNTED)
def test_weights_and_adapters_are_counted_in_every_family(family, settings):
    settings = {key: LARGER.get(key, value) for key, value in settings.items()}
    settings |= {"head_dim": 128} if "head_dim" in settings else {}
    config = AutoConfig.for_model(family, vocab_size=1000, **SPECIAL, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = sizes(json.loads(config.to_json_string(use_diff=False)))
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert found.base() == pytest.approx(weights, rel=0.05 if family not in ("gpt2", "opt", "gpt_bigcode") else 0.4)
    linears = [
        module.weight.shape
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and re.search(r"\.(layers|h)\.\d", name)
    ]
    r = load_profile("tiny").lora.r
    assert found.adapter == sum(r * sum(shape) for shape in linears)
    assert found.shape.layers * found.shape.linear == sum(math.prod(shape) for shape in linears)
    assert found.shape.known


def test_every_kind_that_counts_as_known_is_compared_with_a_built_model():
    assert {*_GATED, *_PLAIN} == {family for family, _ in COUNTED}
    assert set(_TIED) == {kind for kind in (*_GATED, *_PLAIN) if AutoConfig.for_model(kind).tie_word_embeddings}


def test_the_embedded_base_is_planned_as_it_is_trained(finished):
    (trained,) = (finished.parent.parent / ".base").glob("[!.]*/config.json")
    made, planned = json.loads(trained.read_text()), read_config(load_profile("tiny"))
    assert planned["tie_word_embeddings"] == made["tie_word_embeddings"]
    assert planned["model_type"] == made["model_type"]


@pytest.mark.parametrize(
    ("name", "base_gib", "lora_millions"),
    [("Qwen/Qwen3-1.7B", 1.26, 17.4), ("Qwen/Qwen3-4B-Instruct-2507", 2.47, 33.0), ("Qwen/Qwen3-8B", 5.66, 43.7)],
)
def test_4_bit_bases_have_the_sizes_that_building_them_gives(name, base_gib, lora_millions):
    settings = load_profile("tiny", ["model.quantization=nf4", "model.dtype=bfloat16"])
    found = sizes(KNOWN[name], settings)
    assert found.base() / GIB == pytest.approx(base_gib, abs=0.01)
    assert found.adapter / 1e6 == pytest.approx(lora_millions, abs=0.1)


def test_what_is_held_at_a_time_is_what_the_code_holds():
    assert AT_ONCE == likelihood.AT_ONCE
    assert SFT_AT_ONCE == sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE


class Alive(TorchDispatchMode):
    """Counts the bytes of live tensors, as `torch.cuda.max_memory_allocated` does on a GPU."""

    def __init__(self):
        super().__init__()
        self.held, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.held:
                storage = tensor.untyped_storage()
                self.held[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.freed, storage._cdata)
        return result

    def freed(self, key):
        self.now -= self.held.pop(key, 0)


TINY = Model(vocabulary=512, hidden=128, layers=3, heads=4, kv_heads=2, intermediate=384)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("phase", "step", "changes"),
    [
        ("ppo rollout", "roll_out", {}),
        ("ppo update", "update", {}),
        ("ppo update", "update", {"gradient_checkpointing": True}),
        ("ppo update", "update", {"value": "adapter"}),
    ],
)
def test_the_plan_is_what_is_alive_at_the_peak(phase, step, changes, dtype, tmp_path):
    model = dataclasses.replace(TINY, dtype=dtype)
    work = Work("t", model, 80, 80, 16, batch=16, micro_batch=8, epochs=1, updates=2, lora_rank=4, **changes)
    peaks = []
    with Alive() as alive:
        trainer = ours.build(work, models.tokenizer(model), tmp_path)
        inner = getattr(trainer, step)

        def watched(*arguments):
            alive.peak = alive.now
            result = inner(*arguments)
            peaks.append(alive.peak)
            return result

        setattr(trainer, step, watched)
        trainer.train()
    planned = planned_mb(Shape(phase, work), "cuda") - RESERVE["cuda"] / 1e6
    assert planned == pytest.approx(max(peaks) / 1e6, rel=0.1)


# What fits.


@pytest.mark.parametrize("name", GPU_PROFILES)
def test_a_gpu_profile_fits_its_card_with_room_to_spare(name):
    settings = load_profile(name)
    for need in needs(read_config(settings), settings):
        assert need.total < 0.85 * float(settings.memory.card) * GIB, need.phase


@pytest.mark.parametrize("phase", ["sft", "reward", "ppo update", "evaluate"])
def test_the_largest_batch_is_the_largest_that_fits(phase):
    settings, config = load_profile("single_gpu_24gb"), KNOWN["Qwen/Qwen3-4B-Instruct-2507"]
    found = largest_batch(config, settings, phase, 24 * GIB)
    table, key = {"ppo update": ("ppo", "per_device_train_batch_size"), "evaluate": ("evaluate", "batch_size")}.get(
        phase, (phase, "per_device_train_batch_size")
    )

    def need(batch):
        changed = dataclasses.replace(getattr(settings, table), **{key: batch})
        rows = needs(config, dataclasses.replace(settings, **{table: changed}))
        return next(row.total for row in rows if row.phase == phase)

    assert need(found) <= 24 * GIB < need(found + 1)
    assert largest_batch(config, settings, phase, 1 * GIB) == 0


def test_a_rollout_is_never_larger_than_a_batch():
    settings, config = load_profile("single_gpu_24gb"), KNOWN["Qwen/Qwen3-4B-Instruct-2507"]
    batch = settings.ppo.per_device_train_batch_size * settings.ppo.gradient_accumulation_steps
    assert largest_batch(config, settings, "ppo rollout", 1000 * GIB) == batch


@pytest.mark.parametrize(
    ("setting", "phase", "role"),
    [
        ("model.quantization=none", "sft", "base"),
        ("model.dtype=float32", "sft", "activations"),
        ("lora.r=64", "sft", "adapters"),
        ("lora.lora_dropout=0", "reward", "activations"),
        ("reward.per_device_train_batch_size=2", "reward", "activations"),
        ("lora.target_modules=q_proj", "sft", "optimizer"),
        ("sft.optim=adamw_torch", "sft", "optimizer"),
        ("sft.gradient_checkpointing=false", "sft", "activations"),
        ("ppo.gradient_checkpointing=false", "ppo update", "activations"),
        ("ppo.value=adapter", "ppo update", "adapters"),
        ("model.max_length=2048", "ppo rollout", "KV cache"),
        ("ppo.local_rollout_forward_batch_size=4", "ppo rollout", "KV cache"),
        ("model.attention=eager", "sft", "activations"),
    ],
)
def test_a_setting_moves_what_it_governs(setting, phase, role):
    config = KNOWN["Qwen/Qwen3-4B-Instruct-2507"]
    before, after = (
        moments(config, load_profile("single_gpu_24gb", overrides))[phase] for overrides in ([], [setting])
    )
    assert [need.roles.get(role) for need in before] != [need.roles.get(role) for need in after]


def test_without_a_learned_reward_there_is_no_reward_stage():
    settings, config = load_profile("single_gpu_24gb"), KNOWN["Qwen/Qwen3-4B-Instruct-2507"]
    with_one, without = needs(config, settings), needs(config, settings, learned=False)
    assert "reward" not in [need.phase for need in without]
    assert without[-1].roles["adapters"] < with_one[-1].roles["adapters"]


# What is said.


def test_the_table_has_every_role_and_the_largest_batches(capsys):
    assert main(["plan", "translation", "--profile", "single_gpu_24gb"]) == 0
    said = capsys.readouterr().out
    assert all(role in said for role in ROLES if role != "beside")
    assert "beside" not in said
    assert "Qwen/Qwen3-4B-Instruct-2507" in said
    assert "largest batch in 24 GiB" in said
    assert "ppo.local_rollout_forward_batch_size=64 (now 32)" in said


def test_a_card_that_is_too_small_is_said_to_be(capsys):
    assert main(["plan", "translation", "--profile", "single_gpu_80gb", "--card", "rtx3060"]) == 0
    assert " NO " in capsys.readouterr().out


def test_a_local_model_is_planned_from_its_config_alone(checkpoint: Checkpoint, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((checkpoint.model / "config.json").read_bytes())
    assert main(["plan", "translation", "--model", str(tmp_path)]) == 0
    assert "llama" in capsys.readouterr().out


LLAMA = {**GROUPED, "model_type": "llama", "vocab_size": 1000, "max_position_embeddings": 128}


@pytest.mark.parametrize("kind", ["banana", "bert"])
def test_a_kind_that_is_not_known_is_said_to_be_taken_for_a_llama(kind, tmp_path, capsys):
    for name, told in ((kind, True), ("llama", False)):
        (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "model_type": name}))
        assert main(["plan", "translation", "--model", str(tmp_path)]) == 0
        assert (f"taken for a Llama: how '{kind}' is built" in capsys.readouterr().out) == told


@pytest.mark.parametrize("key", ["head_dim", "num_key_value_heads", "intermediate_size", "tie_word_embeddings"])
def test_null_stands_for_what_is_left_to_the_kind(key):
    left = {name: value for name, value in LLAMA.items() if name != key}
    assert decoder({**LLAMA, key: None}, "a model") == decoder(left, "a model")


@pytest.mark.parametrize(
    ("config", "arguments", "said"),
    [
        *(({**LLAMA, experts: 8}, [], f"a mixture of experts ({experts} 8)") for experts in _EXPERTS),
        ({**LLAMA, "quantization_config": {"quant_method": "awq"}}, [], "its weights are quantized already"),
        *(({**LLAMA, "model_type": kind}, [], "no model_type that is a text") for kind in (None, ["llama"], 3)),
        *(
            ({**LLAMA, key: value}, [], f"has {key} {json.dumps(value)[:9]}")
            for key in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "num_key_value_heads")
            for value in (0, -4, True, "32", 4.5, [], 10**400)
        ),
        ({**LLAMA, "max_position_embeddings": -1}, [], "has max_position_embeddings -1"),
        ({**LLAMA, "num_attention_heads": 512}, [], "no head_dim"),
        ({**LLAMA, "text_config": [1]}, [], "has text_config [1] where an object belongs"),
        ({**LLAMA, "text_config": "llama"}, [], 'has text_config "llama" where an object belongs'),
        ({**LLAMA, "max_position_embeddings": 1}, [], "the model's max_position_embeddings is 1"),
        (LLAMA, ["model.max_length=1"], "model.max_length is 1"),
        ("[" * 100_000, [], "config.json is no JSON object"),
        ({"model_type": "t5", "is_encoder_decoder": True}, [], "is an encoder-decoder (t5)"),
        ({"model_type": "mamba"}, [], "its config.json has no hidden_size"),
        ("[1]", [], "config.json is no JSON object"),
        (None, [], "no config.json"),
        ({}, ["--model", "a b/c d"], "neither a folder nor a hub id"),
        ({}, ["--card", "rtx4091"], "did you mean 'rtx4090'?"),
        ({}, ["--card", "0"], "give a number above 0"),
        ({}, ["lora.r=few"], "whole number"),
        ({}, ["lora.target_modules=q_proj,v_porj"], "there is no linear layer 'v_porj'; did you mean 'v_proj'?"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(config, arguments, said, tmp_path, capsys):
    if config is not None:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    model = ["--model", str(tmp_path)] if config != {} else []
    assert main(["plan", "translation", *model, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_the_bench_describes_a_work_as_the_profile_that_a_user_would_write():
    work = Work("t", TINY, 48, 48, 48, batch=16, micro_batch=8, epochs=1, updates=2, gradient_checkpointing=True)
    settings = profile(work)
    assert settings.ppo.gradient_accumulation_steps == 2
    assert settings.sft.gradient_checkpointing
    assert settings.model.max_length == 96


def test_a_reward_model_beside_the_base_is_counted_from_the_reward_stage_on(checkpoint, tmp_path, capsys):
    beside = gpt2(tmp_path / "rm")
    given = ["plan", "translation", "--model", str(checkpoint.model), "model.quantization=none"]
    assert main([*given, f"reward.model={beside}"]) == 0
    assert "beside" in capsys.readouterr().out
    settings = load_profile("tiny", ["model.quantization=none", f"reward.model={beside}"], str(checkpoint.model))
    weights = AutoModelForSequenceClassification.from_pretrained(beside)
    size = sum(4 * parameter.numel() for parameter in weights.parameters())
    planned = moments(read_config(settings), settings)
    (scoring,) = planned["reward"]  # nothing is trained there, and the policy's base is not loaded
    assert scoring.at == "scoring"
    assert "base" not in scoring.roles
    assert any(need.at == "scoring" for need in planned["ppo update"])
    found = {need.phase: need.roles.get("beside", 0) for need in needs(read_config(settings), settings)}
    assert found["sft"] == 0
    assert found["reward"] == found["ppo update"] == found["evaluate"] == pytest.approx(size, rel=0.15)
    assert main(given) == 0
    assert "beside" not in capsys.readouterr().out
