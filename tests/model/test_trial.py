"""A base whose parts do not add up, or that is no plain base, is refused in one line before anything is trained."""

import dataclasses
import json

import pytest
import torch
from conftest import SHORTEST, main, tiny_tokenizer
from families import GROUPED, LLAMA
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from rlrecipes.errors import UserError
from rlrecipes.model import trial
from rlrecipes.model.adapters import add_lora
from rlrecipes.model.loading import check_model, check_score_head, load_causal, load_scorer, window
from rlrecipes.model.tokens import load_tokenizer
from rlrecipes.profile import LoraSettings, ModelSettings, load_profile

PLAIN = ModelSettings(quantization="none")
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def made(folder, family, kind=AutoModelForCausalLM, **sizes):
    """A random checkpoint with a tokenizer; its weights are large, so that every part of it says something."""
    tokenizer = tiny_tokenizer()
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    if family == "gemma3":
        text = {"vocab_size": len(tokenizer), "max_position_embeddings": 96, **special, **GROUPED, "head_dim": 16}
        config = AutoConfig.for_model(family, text_config=text, vision_config=VISION, mm_tokens_per_image=1)
    else:
        config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **special, **sizes)
    torch.manual_seed(0)
    model = kind.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
        ("rwkv", {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}),
        ("bert-generation", {**LLAMA, "is_decoder": False}),
    ],
)
def test_a_model_whose_cache_does_not_hold_its_state_is_refused(tmp_path, family, sizes):
    name = made(tmp_path, family, **sizes)
    with pytest.raises(UserError, match=f"\\({family}\\) samples other tokens from its cache than a whole pass gives"):
        load_causal(name, PLAIN, load_tokenizer(name))


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_with_a_weight_that_is_no_number_is_refused_before_sft(home, tmp_path, capsys, value, quantization):
    name = made(tmp_path, "llama", **GROUPED)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight" if quantization == "none" else "model.norm.weight"].view(-1)[3] = (
        value
    )
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert (
        main(
            [
                "sft",
                "translation",
                "--run",
                f"nan-{value}",
                "--data",
                "pairs.jsonl",
                "--model",
                name,
                *SHORTEST,
                f"model.quantization={quantization}",
            ]
        )
        == 2
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "weights that are no numbers" in error or "logits that are no numbers" in error
    assert not (home / "runs" / f"nan-{value}" / "translation" / "sft").exists()


def test_what_a_trial_raises_is_told_in_a_line(tmp_path):
    name = made(tmp_path, "openai-gpt", n_embd=32, n_layer=2, n_head=2)
    with pytest.raises(UserError, match=r"\(openai-gpt\) cannot be run in parts here \("):
        load_causal(name, PLAIN, load_tokenizer(name))


def test_a_family_without_a_classifier_gets_the_score_head_on_its_trunk(tmp_path):
    name = made(tmp_path, "olmoe", **GROUPED, num_experts=4, num_experts_per_tok=2)
    tokenizer = load_tokenizer(name)
    check_score_head(name)
    scorer = load_scorer(name, PLAIN, tokenizer).eval()
    base = load_causal(name, PLAIN, tokenizer).eval()
    ids = torch.arange(4, 10)[None]
    with torch.no_grad():
        state = base.model(input_ids=ids).last_hidden_state[0, -1]
        assert scorer(input_ids=ids).logits[0] == pytest.approx(scorer.score(state).numpy(), abs=1e-5)


def test_a_model_that_also_sees_has_adapters_on_its_text_alone_and_the_texts_window(tmp_path):
    name = made(tmp_path, "gemma3", AutoModelForImageTextToText)
    model = add_lora(load_causal(name, PLAIN, load_tokenizer(name)), LoraSettings(r=2), "CAUSAL_LM")
    adapted = [key for key, _ in model.named_parameters() if "lora_A" in key]
    assert len(adapted) == 14
    assert not [key for key in adapted if "vision" in key or "projector" in key]
    assert window(name, PLAIN) == 96


LLAMAS = "there are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
FALCON_H1 = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2}


@pytest.mark.parametrize(
    ("family", "targets", "told"),
    [
        ("llama", "q_proj,v_porj", f"'v_porj' is no linear layer of this model's text; {LLAMAS}"),
        ("llama", "q_proj,embed_tokens", "names embeddings"),
        ("llama", "q_proj,lm_head", "names the output layer"),
        ("llama", "model", f"'model' is no linear layer of this model's text; {LLAMAS}"),
        ("llama", "q_proj,input_layernorm", f"'input_layernorm' is no linear layer of this model's text; {LLAMAS}"),
        ("gpt2", "q_proj", "'q_proj' is no linear layer of this model's text; there are c_attn, c_fc, c_proj"),
        ("gpt2", "c_attn,lm_head", "names the output layer"),
        ("gemma3", "vision_tower", f"'vision_tower' is no linear layer of this model's text; {LLAMAS}"),
        ("gemma3", "out_proj", f"'out_proj' lies outside of the model's text, which alone is trained; {LLAMAS}"),
        ("gemma3", "q_proj,fc1", f"'fc1' lies outside of the model's text, which alone is trained; {LLAMAS}"),
        ("gemma3", "lm_head", "names the output layer"),
        (
            "falcon_h1",
            "all-linear",
            "out_proj past any adapter; take others of down_proj,gate_proj,in_proj,k_proj,o_proj,",
        ),
    ],
)
def test_every_target_of_an_adapter_is_a_layer_that_it_can_stand_on(tmp_path, family, targets, told):
    sizes = {"gpt2": GPT2, "falcon_h1": GROUPED | FALCON_H1}.get(family, GROUPED)
    name = made(tmp_path, family, AutoModelForImageTextToText if family == "gemma3" else AutoModelForCausalLM, **sizes)
    with pytest.raises(UserError, match=told) as error:
        add_lora(load_causal(name, PLAIN, load_tokenizer(name)), LoraSettings(target_modules=targets), "CAUSAL_LM")
    assert str(error.value).startswith(f"lora.target_modules={'embed_tokens' if 'embed' in targets else targets}")


def test_layers_of_a_class_of_gpt2s_own_take_adapters(tmp_path):
    name = made(tmp_path, "gpt2", **GPT2)
    model = add_lora(
        load_causal(name, PLAIN, load_tokenizer(name)), LoraSettings(target_modules="c_attn,c_fc"), "CAUSAL_LM"
    )
    assert len([key for key, _ in model.named_parameters() if "lora_A" in key]) == 4


def test_an_adapter_given_as_a_base_is_told_with_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "own/base"}))
    with pytest.raises(UserError, match=r"is an adapter; give its base \('own/base'\) as"):
        check_model(str(tmp_path), PLAIN)
    made(tmp_path, "llama", **GROUPED)
    with pytest.raises(UserError, match="holds an adapter beside its weights"):
        check_model(str(tmp_path), PLAIN)


def test_an_encoder_is_no_base(tmp_path):
    made(tmp_path, "vit", AutoModel, **VISION)
    with pytest.raises(UserError, match=r"\(vit\) is no causal language model"):
        check_model(str(tmp_path), PLAIN)


def test_a_tilde_is_the_home_folder_wherever_a_path_may_stand(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert load_profile("tiny", model="~/base").model.name == "/home/ann/base"
    assert load_profile("tiny", ["model.name=~/base"]).model.name == "/home/ann/base"


SLIDING = {
    "mistral": {"sliding_window": 12},
    "gemma2": {"sliding_window": 12, "head_dim": 16},
    "gemma3_text": {"sliding_window": 12, "head_dim": 16},
    "qwen2": {"sliding_window": 12, "use_sliding_window": True, "max_window_layers": 1},
    "gpt_oss": {"sliding_window": 12, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
}


@pytest.mark.parametrize("family", SLIDING)
def test_a_family_whose_layers_look_back_on_a_window_is_tried_beyond_it_and_passes(tmp_path, monkeypatch, family):
    tried = []
    sample = trial.sample
    monkeypatch.setattr(
        trial,
        "sample",
        lambda model, ids, *others, **named: (tried.append(ids.shape[1]), sample(model, ids, *others, **named))[1],
    )
    name = made(tmp_path, family, **GROUPED, **SLIDING[family])
    load_causal(name, PLAIN, load_tokenizer(name))
    assert tried == [trial.IDS, 13]


MOSHI = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "ffn_dim": 64,
    "sliding_window": 12,
}


def test_a_model_that_samples_wrongly_beyond_its_window_is_refused_unless_the_run_stays_within(tmp_path):
    name = made(tmp_path, "moshi", **MOSHI)
    with pytest.raises(UserError, match=r"beyond the 12 tokens that its layers look back on; set model\.max_length=12"):
        load_causal(name, PLAIN, load_tokenizer(name))
    load_causal(name, dataclasses.replace(PLAIN, max_length=12), load_tokenizer(name))


def test_a_model_that_turns_to_other_positions_beyond_a_length_is_refused_unless_the_run_stays_within(tmp_path):
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [8.0] * 8, "rope_theta": 10000.0}
    sizes = {"max_position_embeddings": 96, "original_max_position_embeddings": 24}
    name = made(tmp_path, "phi3", **GROUPED, **sizes, rope_parameters=rope | {"original_max_position_embeddings": 24})
    tokenizer = load_tokenizer(name)
    with pytest.raises(UserError, match=r"otherwise once it has more than 24 tokens .* set model\.max_length=24"):
        load_causal(name, PLAIN, tokenizer)
    model = load_causal(name, dataclasses.replace(PLAIN, max_length=24), tokenizer)
    short, long = torch.arange(4, 24)[None], torch.arange(4, 64)[None]
    beside = model(input_ids=torch.cat([torch.nn.functional.pad(short, (0, 40)), long])).logits[0, :20]
    assert not torch.allclose(beside, model(input_ids=short).logits[0], atol=1e-2)
