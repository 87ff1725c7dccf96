"""Checkpoints that come quantized are held as the profile says, or refused."""

import json

import pytest
import torch
from test_trial import GROUPED, made
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

from rlrecipes.__main__ import main
from rlrecipes.errors import UserError
from rlrecipes.model.loading import check_model, load_causal, load_scorer
from rlrecipes.model.tokens import load_tokenizer
from rlrecipes.profile import ModelSettings

NF4, PLAIN = ModelSettings(quantization="nf4"), ModelSettings(quantization="none")
BITS = {"quant_method": "bitsandbytes"}
AS_NF4 = BITS | {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
IDS = torch.arange(3, 12)[None]


def marked(folder, found, part=None):
    """A checkpoint of plain weights whose configuration, or a part of it, says that they are quantized."""
    name = made(folder, "gemma3", AutoModelForImageTextToText) if part else made(folder, "llama", **GROUPED)
    config = json.loads((folder / "config.json").read_text())
    (config[part] if part else config)["quantization_config"] = found
    (folder / "config.json").write_text(json.dumps(config))
    return name


def saved(folder, **bits):
    """A checkpoint that bitsandbytes quantized, with its tokenizer, and the plain one."""
    plain = made(folder / "plain", "llama", **GROUPED)
    options = BitsAndBytesConfig(**bits)
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=options, device_map={"": "cpu"})
    model.save_pretrained(folder / "bits")
    load_tokenizer(plain).save_pretrained(folder / "bits")
    return plain, str(folder / "bits")


@pytest.mark.parametrize("settings", [NF4, PLAIN], ids=["nf4", "none"])
@pytest.mark.parametrize("part", [None, "text_config", "vision_config"])
@pytest.mark.parametrize(
    ("found", "kind"),
    [
        *[({"quant_method": name}, name) for name in ("gptq", "awq", "fp8", "mxfp4", "compressed-tensors")],
        (BITS | {"load_in_8bit": True}, "bitsandbytes, 8-bit"),
        (BITS | {"load_in_4bit": True}, "bitsandbytes, fp4"),
        (AS_NF4 | {"bnb_4bit_quant_storage": "bfloat16"}, "bitsandbytes, nf4 stored as bfloat16"),
        ({"load_in_4bit": True}, "bitsandbytes, fp4"),
        ({}, "no method, no number of bits"),
    ],
)
def test_a_base_that_is_quantized_in_another_way_is_refused_wherever_it_says_so(tmp_path, found, kind, part, settings):
    name = marked(tmp_path, found, part)
    with pytest.raises(UserError) as told:
        check_model(name, settings)
    assert f"is quantized already ({kind})" in str(told.value)
    assert "choose the checkpoint with plain weights" in str(told.value)
    assert ("take quantization_config out" in str(told.value)) == ("quant_method" not in found)


def test_a_base_in_8_bit_is_refused_before_sft(home, tmp_path, capsys):
    name = marked(tmp_path, BITS | {"load_in_8bit": True})
    road = ["sft", "translation", "--run", "bits", "--data", "pairs.jsonl", "--model", name]
    assert main([*road, "model.quantization=none", "track.wandb=off"]) == 2
    assert "is quantized already (bitsandbytes, 8-bit)" in capsys.readouterr().err
    assert not (home / "runs" / "bits" / "translation" / "sft").exists()


def test_a_base_in_nf4_asks_for_that_quantization(tmp_path):
    with pytest.raises(
        UserError, match=r"\(bitsandbytes, nf4\), and .* is none; set model.quantization=nf4, or choose"
    ):
        check_model(marked(tmp_path, AS_NF4), PLAIN)
    check_model(str(tmp_path), NF4)


@pytest.mark.parametrize("load", [load_causal, load_scorer])
def test_weights_that_are_plain_whatever_their_configuration_says_are_told(tmp_path, load):
    name = marked(tmp_path, AS_NF4)
    with pytest.raises(UserError, match="in 4 bits, and they are plain; take quantization_config out"):
        load(name, NF4, load_tokenizer(name))


@pytest.mark.parametrize("skipped", [None, ["lm_head"]])
@pytest.mark.parametrize("double", [True, False])
def test_a_base_that_was_saved_in_nf4_says_what_its_plain_weights_say_in_nf4(tmp_path, double, skipped):
    plain, bits = saved(
        tmp_path, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=skipped,
    )  # fmt: skip
    check_model(bits, NF4)
    model, own = (load_causal(name, NF4, load_tokenizer(plain)) for name in (bits, plain))
    with torch.no_grad():
        said, expected = model(input_ids=IDS).logits, own(input_ids=IDS).logits
    assert torch.allclose(said, expected, atol=0 if double else 0.02 * expected.abs().max().item())
    scorer = load_scorer(bits, NF4, load_tokenizer(plain))
    assert type(scorer.score) is torch.nn.Linear
    assert {module.compute_dtype for module in scorer.modules() if hasattr(module, "compute_dtype")} == {torch.float32}
