"""The plan: what the models' shapes give, what is alive on a device, and what the person asking is told."""

import copy
import dataclasses
import json

import pytest
import torch
from alive import Alive
from conftest import Checkpoint, main
from families import FAMILIES, gpt2
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig
from transformers.integrations import replace_with_bnb_linear
from transformers.pytorch_utils import Conv1D
from trl.trainer import sft_trainer

from benchmarks import models, ours
from benchmarks.plan import Shape, planned_mb, profile
from benchmarks.work import Model, Work
from rlrecipes.before import checks
from rlrecipes.before.cards import gib
from rlrecipes.before.config import KNOWN, read_config
from rlrecipes.before.dense import with_copy
from rlrecipes.before.needs import AT_ONCE, READ_AT_ONCE, ROLES, SFT_AT_ONCE, Lengths, fullest, moments
from rlrecipes.before.parts import GIB, RESERVE, Parts
from rlrecipes.before.plan import largest_batch
from rlrecipes.before.shape import read_shape, shape_of
from rlrecipes.errors import UserError
from rlrecipes.model import likelihood, sampling
from rlrecipes.model.loading import HEADS
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

MIXTURES = {
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**GROUPED, "moe_intermediate_size": 128, "num_experts": 8, "num_experts_per_tok": 4},
    "qwen2_moe": {**GROUPED, "moe_intermediate_size": 128, "shared_expert_intermediate_size": 320, "num_experts": 8},
    "gpt_oss": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {**GROUPED, "num_experts": 8},
}
"""Mixtures of experts, which lie together in one tensor for each half of their network."""

GPU_PROFILES = [name for name in profile_names() if name.startswith("single_gpu")]
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLAIN = ["model.quantization=none", "lora.lora_dropout=0"]
ATTENTION = "lora.target_modules=q_proj,k_proj,v_proj,o_proj"


def plain(config):
    """A configuration as its file has it."""
    return json.loads(config.to_json_string(use_diff=False))


def shape(config, *settings):
    return shape_of(config, load_profile("tiny", [*PLAIN, *settings], "a/model"))


def sizes(config, settings=PLAIN):
    settings = load_profile("tiny", settings, "a/model")
    return Parts(shape_of(config, settings), settings, Lengths(8, 8), "cpu", True)


# Sizes.


@pytest.mark.parametrize(("family", "settings"), [*COUNTED, *MIXTURES.items()])
def test_weights_are_those_of_a_built_model(family, settings):
    config = AutoConfig.for_model(family, vocab_size=1000, **SPECIAL, **settings)
    found = sizes(plain(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert found.base() == 4 * sum(weight.numel() for weight in model.parameters())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert found.base() - found.base(head=False) == (0 if tied else 4 * model.get_output_embeddings().weight.numel())
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    replace_with_bnb_linear(model, [*HEADS, *(model._keep_in_fp32_modules or ())], four_bit)
    linears = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    assert found.shape.linear == sum(layer.in_features * layer.out_features for layer in linears)


@pytest.mark.parametrize(("family", "settings"), COUNTED)
def test_adapters_are_on_every_linear_layer_but_the_output(family, settings):
    config = AutoConfig.for_model(family, vocab_size=1000, **SPECIAL, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linears = [module.weight.shape for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    head = model.get_output_embeddings().weight.shape
    assert shape(plain(config)).adapter == load_profile("tiny").lora.r * (sum(map(sum, linears)) - sum(head))


@pytest.mark.parametrize(("family", "settings"), [*COUNTED[:-1], *MIXTURES.items()])
def test_keys_and_values_are_those_that_the_cache_holds(family, settings):
    config = AutoConfig.for_model(family, vocab_size=50, **SPECIAL, **settings)
    with torch.no_grad():
        held = AutoModelForCausalLM.from_config(config)(torch.ones(1, 3, dtype=torch.long), use_cache=True)
    planned = sizes(plain(config)).cache(1, 3)  # all but Falcon's last, which keeps its keys once for every query
    assert planned == 4 * sum(layer.keys.numel() + layer.values.numel() for layer in held.past_key_values.layers)


def test_experts_stay_in_the_models_precision_and_have_adapters_where_peft_puts_them():
    config = {"model_type": "mixtral", "vocab_size": 1000, **MIXTURES["mixtral"]}
    experts = 2 * 4 * 3 * 256 * 512  # layers, experts, matrices
    found = shape(config)
    assert found.other > experts > found.linear
    assert found.blocks[0].networks[-1].stack == experts / 2
    assert shape(config, ATTENTION).blocks[0].networks[-1].stack == 0
    assert shape(config, ATTENTION).adapter < found.adapter
    dense = shape({**LLAMA, "vocab_size": 1000}, ATTENTION)
    assert shape(config, ATTENTION).adapter == dense.adapter


def test_the_embedded_base_is_planned_as_it_is_trained(base):
    made, planned = json.loads((base / "config.json").read_text()), read_config(load_profile("tiny"))
    assert planned["tie_word_embeddings"] == made["tie_word_embeddings"]
    assert planned["model_type"] == made["model_type"]


@pytest.mark.parametrize(
    ("name", "base_gib", "lora_millions"),
    [("Qwen/Qwen3-1.7B", 1.26, 17.4), ("Qwen/Qwen3-4B-Instruct-2507", 2.47, 33.0), ("Qwen/Qwen3-8B", 5.66, 43.7)],
)
def test_4_bit_bases_have_the_sizes_that_building_them_gives(name, base_gib, lora_millions):
    found = sizes(KNOWN[name], ["model.quantization=nf4", "model.dtype=bfloat16"])
    assert found.base() / GIB == pytest.approx(base_gib, abs=0.01)
    assert found.shape.adapter / 1e6 == pytest.approx(lora_millions, abs=0.1)


def test_what_is_held_at_a_time_is_what_the_code_holds():
    assert AT_ONCE == likelihood.AT_ONCE
    assert READ_AT_ONCE == sampling.READ_AT_ONCE
    assert SFT_AT_ONCE == sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE


TINY = Model(vocabulary=512, hidden=128, layers=3, heads=4, kv_heads=2, intermediate=384)


def peak(work, step, folder, base=None):
    """The most bytes alive at once in a step of PPO."""
    peaks = []
    with Alive() as alive:
        trainer = ours.build(work, models.tokenizer(work.model), folder, base() if base else None)
        inner = getattr(trainer, step)

        def watched(*arguments):
            alive.peak = alive.now
            result = inner(*arguments)
            peaks.append(alive.peak)
            return result

        setattr(trainer, step, watched)
        trainer.train()
    return max(peaks)


STEPS = [
    ("ppo rollout", "roll_out", {}),
    ("ppo rollout", "roll_out", {"dense_rollout": "always"}),
    ("ppo update", "update", {}),
    ("ppo update", "update", {"gradient_checkpointing": True}),
    ("ppo update", "update", {"value": "adapter"}),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("phase", "step", "changes"), STEPS)
def test_the_plan_is_what_is_alive_at_the_peak(phase, step, changes, dtype, tmp_path):
    model = dataclasses.replace(TINY, dtype=dtype)
    work = Work("t", model, 80, 80, 16, batch=16, micro_batch=8, epochs=1, updates=2, lora_rank=4, **changes)
    planned = planned_mb(Shape(phase, work), "cuda") * 1e6 - RESERVE["cuda"]
    assert planned == pytest.approx(peak(work, step, tmp_path), rel=0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("targets", ["q_proj,k_proj,v_proj,o_proj", "all-linear"])
@pytest.mark.parametrize(("phase", "step", "changes"), STEPS[:4])
def test_so_it_is_of_a_mixture_of_experts(phase, step, changes, targets, dtype, tmp_path, monkeypatch):
    tiny = dataclasses.replace(TINY, dtype=dtype)
    work = Work("t", tiny, 80, 80, 16, batch=16, micro_batch=8, epochs=1, updates=2, lora_rank=4, **changes)
    settings = profile(work)
    settings = dataclasses.replace(settings, lora=dataclasses.replace(settings.lora, target_modules=targets))
    config = {
        **{"vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "intermediate_size": 96, "num_local_experts": 8, "num_experts_per_tok": 4},
    }

    def base():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **config, **SPECIAL))
        model.to(getattr(torch, dtype))
        models._never_pad(model)
        return model

    lora = models.lora(work)
    lora.target_modules = targets if targets == "all-linear" else targets.split(",")
    monkeypatch.setattr(models, "lora", lambda work: copy.deepcopy(lora))
    found = moments(shape_of({"model_type": "mixtral", **config}, settings), settings, Lengths(80, 16, False))[phase]
    planned = fullest(found).total - RESERVE["cuda"]
    assert planned == pytest.approx(peak(work, step, tmp_path, base), rel=0.1)


# What fits.


@pytest.mark.parametrize("name", GPU_PROFILES)
def test_a_gpu_profile_fits_its_card_with_room_to_spare(name):
    settings = load_profile(name)
    for phase, found in moments(read_shape(settings), settings).items():
        assert fullest(found).total < 0.85 * float(settings.memory.card) * GIB, phase


@pytest.fixture(scope="module")
def settings():
    return load_profile("single_gpu_24gb")


@pytest.fixture(scope="module")
def planned(settings):
    return read_shape(settings)


@pytest.mark.parametrize("phase", ["sft", "reward", "ppo update", "answers", "evaluate"])
def test_the_largest_batch_is_the_largest_that_fits(phase, settings, planned):
    found = largest_batch(planned, settings, phase, 24 * GIB)
    rows, answers = "per_device_train_batch_size", ("evaluate", "batch_size")
    table, key = {"ppo update": ("ppo", rows), "answers": answers, "evaluate": answers}.get(phase, (phase, rows))

    def need(batch):
        changed = dataclasses.replace(getattr(settings, table), **{key: batch})
        return fullest(moments(planned, dataclasses.replace(settings, **{table: changed}))[phase]).total

    assert need(found) <= 24 * GIB < need(found + 1)
    assert largest_batch(planned, settings, phase, 1 * GIB) == 0


def test_a_rollout_is_never_larger_than_a_batch(settings, planned):
    batch = settings.ppo.per_device_train_batch_size * settings.ppo.gradient_accumulation_steps
    assert largest_batch(planned, settings, "ppo rollout", 1000 * GIB) == batch


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
        ("reward.seeds=3", "ppo rollout", "adapters"),
        ("reward.seeds=3", "evaluate", "adapters"),
        ("ppo.judge=false", "ppo rollout", "adapters"),
        ("ppo.judge=false", "ppo update", "adapters"),
        ("ppo.dense_rollout=always", "ppo rollout", "copy"),
        ("model.max_length=2048", "ppo rollout", "KV cache"),
        ("ppo.local_rollout_forward_batch_size=4", "ppo rollout", "KV cache"),
        ("model.attention=eager", "sft", "activations"),
    ],
)
def test_a_setting_moves_what_it_governs(setting, phase, role, settings, planned):
    changed = load_profile("single_gpu_24gb", [setting])
    before, after = moments(planned, settings)[phase], moments(read_shape(changed), changed)[phase]
    assert [need.roles.get(role) for need in before] != [need.roles.get(role) for need in after]


def test_without_a_learned_reward_there_is_no_reward_stage(settings, planned):
    with_one, without = moments(planned, settings), moments(planned, settings, learned=False)
    assert without.keys() == with_one.keys() - {"reward"}
    assert without["evaluate"][0].roles["adapters"] < with_one["evaluate"][0].roles["adapters"]


def test_a_judge_that_watches_ppo_holds_an_adapter_and_scores_in_its_rollout(settings, planned):
    watched = moments(planned, settings)["ppo rollout"]
    without = moments(planned, load_profile("single_gpu_24gb", ["ppo.judge=false"]))["ppo rollout"]
    assert [need.at for need in watched] == [*(need.at for need in without), "judge"]
    assert watched[0].roles["adapters"] - without[0].roles["adapters"] == 4 * planned.adapter


def test_prompts_that_are_read_in_parts_take_no_more_memory_where_they_are_more(planned):
    def reading(rows):
        profile = load_profile("single_gpu_24gb", [f"evaluate.batch_size={rows}"])
        return moments(planned, profile)["answers"][0].roles

    few, many = reading(32), reading(64)
    assert many["activations"] == few["activations"]
    assert many["KV cache"] == 2 * few["KV cache"]


# What is said.


def test_the_table_has_every_role_and_the_largest_batches(capsys):
    assert main(["plan", "translation", "--profile", "single_gpu_24gb"]) == 0
    said = capsys.readouterr().out
    assert all(role in said for role in ROLES if role not in ("beside", "copy"))
    assert "beside" not in said
    assert "Qwen/Qwen3-4B-Instruct-2507" in said
    assert "largest batch in 24 GiB" in said
    assert "ppo.local_rollout_forward_batch_size=64 (now 64)" in said


def test_the_plan_counts_one_draw_for_each_update_and_says_where_there_may_be_more(capsys):
    drawing = ["run.algorithms=rloo,grpo", "grpo.dynamic_sampling=true"]
    assert main(["plan", "translation", "--profile", "single_gpu_24gb", "--card", "24", *drawing]) == 0
    said = capsys.readouterr().out
    assert "grpo.dynamic_sampling: planned is one draw for each update; there may be 10" in said
    assert "rloo.dynamic_sampling" not in said


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("16", "the card has no room for a dense copy of the policy"),
        ("24", "answers are drawn from a dense copy of the policy"),
    ],
)
def test_a_dense_copy_is_drawn_from_where_a_card_has_room_for_it(card, said, settings, planned, capsys):
    assert main(["plan", "translation", "--profile", "single_gpu_24gb", "--card", card]) == 0
    assert f"ppo.dense_rollout=auto: {said}" in capsys.readouterr().out
    whole = load_profile("single_gpu_24gb", ["ppo.dense_rollout=always"])
    most = fullest(moments(planned, whole)["ppo rollout"]).total / GIB
    assert with_copy(settings, "ppo", planned, most + 0.01, True).ppo.dense_rollout == "always"
    assert with_copy(settings, "ppo", planned, most - 0.01, True).ppo.dense_rollout == "never"


@pytest.mark.parametrize("card", ["t4", "Tesla T4", "v100", "Tesla V100-SXM2-32GB", "NVIDIA V100 16GB"])
def test_a_card_without_bfloat16_is_refused_as_a_run_on_it_is(card, monkeypatch, capsys):
    command = ["plan", "translation", "--profile", "single_gpu_16gb"]
    assert main([*command, "--card", card]) == 2
    said = capsys.readouterr().err.strip().removeprefix("error: ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
    with pytest.raises(UserError) as refused:
        checks._check_bfloat16()
    assert said == str(refused.value)
    assert f"which {card} does not; set model.dtype=float32" in said
    assert main([*command, f"memory.card={card}"]) == 2
    assert main([*command, "--card", card, "model.dtype=float32"]) == 0


@pytest.mark.parametrize("card", ["16", "rtx4080", "A10", "L4", "a100-40", "L40S"])
def test_any_other_card_is_planned_for_in_bfloat16(card, capsys):
    assert main(["plan", "translation", "--profile", "single_gpu_16gb", "--card", card]) == 0
    assert ", bfloat16, on a card of " in capsys.readouterr().out


def test_a_card_that_is_too_small_is_said_to_be(capsys):
    assert main(["plan", "translation", "--profile", "single_gpu_80gb", "--card", "rtx3060"]) == 0
    assert " NO " in capsys.readouterr().out


def test_a_local_model_is_planned_from_its_config_alone(checkpoint: Checkpoint, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((checkpoint.model / "config.json").read_bytes())
    assert main(["plan", "translation", "--model", str(tmp_path)]) == 0
    assert "llama" in capsys.readouterr().out


LLAMA = {**GROUPED, "model_type": "llama", "vocab_size": 1000, "max_position_embeddings": 128}


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_of_experts_is_planned(kind, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **MIXTURES[kind], "model_type": kind}))
    assert main(["plan", "translation", "--model", str(tmp_path)]) == 0
    assert f", {kind}, nf4," in capsys.readouterr().out


@pytest.mark.parametrize("key", ["head_dim", "num_key_value_heads"])
def test_null_stands_for_what_is_left_to_the_kind(key):
    left = {name: value for name, value in LLAMA.items() if name != key}
    assert shape({**LLAMA, key: None}) == shape({**left, "num_key_value_heads": 4} if key[0] == "n" else left)


@pytest.mark.parametrize(
    ("config", "arguments", "said"),
    [
        ({**LLAMA, "model_type": "banana"}, [], "Transformers knows no model_type 'banana'"),
        ({**LLAMA, "model_type": "vit"}, [], "its config.json makes no vit (Unrecognized configuration class"),
        (
            {**LLAMA, **MIXTURES["mixtral"], "model_type": "mixtral"},
            ["lora.lora_dropout=0.1"],
            "its experts take adapters with lora.lora_dropout=0 alone",
        ),
        ({**LLAMA, "quantization_config": {"quant_method": "awq"}}, [], "its weights are quantized already"),
        *(({**LLAMA, "model_type": kind}, [], "no model_type that is a text") for kind in (None, ["llama"], 3)),
        *(
            ({**LLAMA, key: value}, [], f"has {key} {json.dumps(value)[:9]}")
            for key in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "num_key_value_heads")
            for value in (0, -4, True, "32", 4.5, [], 10**400)
        ),
        ({**LLAMA, "max_position_embeddings": -1}, [], "has max_position_embeddings -1"),
        ({**LLAMA, "num_attention_heads": 512}, [], "(256) is not a multiple of the number of attention heads (512)"),
        ({**LLAMA, "num_hidden_layers": 10**9}, [], "has 1000000000 layers, and 1000 are the most"),
        ({**LLAMA, "hidden_size": 1 << 40, "intermediate_size": 1 << 40}, [], "its config.json makes no llama"),
        ({**LLAMA, "intermediate_size": None}, [], "its config.json makes no llama"),
        ({**LLAMA, "text_config": [1]}, [], "has text_config [1] where an object belongs"),
        ({**LLAMA, "text_config": "llama"}, [], 'has text_config "llama" where an object belongs'),
        ({**LLAMA, "max_position_embeddings": 1}, [], "the model's max_position_embeddings is 1"),
        (LLAMA, ["model.max_length=1"], "model.max_length is 1"),
        ("[" * 100_000, [], "config.json is no JSON object"),
        ({"model_type": "t5", "is_encoder_decoder": True}, [], "is an encoder-decoder (t5)"),
        (
            {"model_type": "mamba", "num_hidden_layers": 2},
            [],
            "(mamba): its layers have no attention that can be counted",
        ),
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
    planned = moments(read_shape(settings), settings)
    (scoring,) = planned["reward"]  # nothing is trained there, and the policy's base is not loaded
    assert scoring.at == "scoring"
    assert "base" not in scoring.roles
    assert any(need.at == "scoring" for need in planned["ppo update"])
    found = {phase: fullest(needs).roles.get("beside", 0) for phase, needs in planned.items()}
    assert found["sft"] == 0
    assert found["reward"] == found["ppo update"] == found["evaluate"] == size
    assert main(given) == 0
    assert "beside" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("card", "size"),
    [
        ("24", 24),
        ("24gb", 24),
        ("24 GiB", 24),
        ("7.5G", 7.5),
        ("RTX 4090", 24),
        ("4090", 24),
        ("NVIDIA GeForce RTX 4060 Ti", 16),
        ("RTX A6000", 48),
        ("A100", 80),
        ("A100 80GB", 80),
        ("NVIDIA A100-SXM4-40GB", 40),
        ("NVIDIA H100 80GB", 79.6),
        ("Tesla T4", 15),
    ],
)
def test_a_card_may_be_written_as_shops_and_drivers_do(card, size):
    assert gib(card) == size
