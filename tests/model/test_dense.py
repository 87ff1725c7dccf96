"""Answers from the dense copy are the policy's, and afterwards the model is what it was."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import scatter, tiny_tokenizer
from families import FAMILIES
from peft.tuners.lora.layer import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM

from rlrecipes.model.adapters import add_lora
from rlrecipes.model.dense import dense
from rlrecipes.model.forward import hidden_states, next_token_logits
from rlrecipes.model.loading import load_causal
from rlrecipes.model.tokens import load_tokenizer
from rlrecipes.profile import LoraSettings, ModelSettings


@pytest.fixture
def build(tmp_path):
    """Builds a random model of a family with an adapter that has learned something."""

    def built(family, quantization="none", dtype="float32", targets="all-linear"):
        tokenizer = tiny_tokenizer()
        tokenizer.save_pretrained(tmp_path)
        special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **special, **FAMILIES[family])
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        settings = ModelSettings(quantization=quantization, dtype=dtype)
        base = load_causal(str(tmp_path), settings, load_tokenizer(tmp_path))
        model = add_lora(base, LoraSettings(r=4, lora_dropout=0.5, target_modules=targets), "CAUSAL_LM")
        scatter(model, "default", 0.5)
        return model.eval()

    return built


@torch.no_grad()
def logits(model):
    return next_token_logits(model, hidden_states(model, torch.arange(4, 16).view(2, 6)))


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2", "gemma2", "gpt_neox"])
def test_a_dense_copy_computes_what_base_and_adapter_do_together(build, family, quantization):
    model = build(family, quantization)
    expected = logits(model)
    with model.disable_adapter():
        assert (logits(model) - expected).abs().max() > 0.01, "the adapter does something"
    with dense(model):
        assert torch.allclose(logits(model), expected, atol=1e-4)
    assert torch.equal(logits(model), expected)


def test_no_adapter_and_no_4_bit_layer_computes_inside(build, monkeypatch):
    model = build("llama", "nf4", targets="q_proj,down_proj")
    for kind in (Linear4bit, LoraLayer):
        for module in (module for module in model.modules() if isinstance(module, kind)):
            monkeypatch.setattr(type(module), "forward", lambda *_, **__: pytest.fail("it computes"))
    with dense(model):
        logits(model)


def test_the_copy_is_made_of_the_adapter_as_it_is_when_it_is_made(build):
    model = build("llama", "nf4")
    with dense(model):
        before = logits(model)
    scatter(model, "default", 0.5)
    expected = logits(model)
    assert (expected - before).abs().max() > 0.01
    with dense(model):
        assert torch.allclose(logits(model), expected, atol=1e-4)


def test_an_error_inside_leaves_the_model_as_it_was(build):
    model = build("llama")
    expected = logits(model)
    with pytest.raises(KeyError), dense(model):
        raise KeyError
    assert torch.equal(logits(model), expected)


def test_in_bfloat16_the_sum_is_rounded_once(build):
    model = build("llama", dtype="bfloat16")
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    whole = layer.get_base_layer().weight.float() + layer.scaling["default"] * up @ down
    eye = torch.eye(whole.shape[1], dtype=torch.bfloat16)
    with dense(model), torch.no_grad():
        assert torch.equal(layer(eye).T, whole.bfloat16())
