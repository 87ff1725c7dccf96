"""The decoder families that people use, at toy size: every stage takes its steps on each, in 4-bit and in full precision."""

import json

import pytest
import torch
from conftest import SHORTEST, main, tiny_tokenizer
from families import FAMILIES
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, T5Config

from rlrecipes.model.loading import load_causal
from rlrecipes.model.sampling import sample
from rlrecipes.model.tokens import load_tokenizer, pad_left
from rlrecipes.profile import ModelSettings, load_profile


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path_factory):
    """A random checkpoint of one family."""
    tokenizer = tiny_tokenizer()
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = AutoConfig.for_model(
        request.param, vocab_size=len(tokenizer), max_position_embeddings=128, **special, **FAMILIES[request.param]
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # at toy size the usual initialisation says the same whatever it reads
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_every_stage_takes_its_steps(family, quantization, home):
    run = f"{family.name}-{quantization}"
    settings = ("--data", "pairs.jsonl", "--model", str(family), f"model.quantization={quantization}", "lora.r=4")
    assert main(["run", "translation", "--run", run, *SHORTEST, *settings]) == 0
    folder = home / "runs" / run / "translation"
    first = json.loads((folder / "ppo" / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert first["policy/grad_norm"] > 0.1
    sft, ppo = (load_file(folder / stage / "adapter" / "adapter_model.safetensors") for stage in ("sft", "ppo"))
    step = load_profile("tiny").ppo.learning_rate
    assert all((ppo[name] - weight).abs().max() > step / 2 for name, weight in sft.items() if "lora_" in name)


def test_answers_to_prompts_of_different_lengths_are_those_of_transformers(family):
    tokenizer = load_tokenizer(family)
    model = load_causal(str(family), ModelSettings(quantization="none"), tokenizer).eval()
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    queries = pad_left([tokenizer(text)["input_ids"] for text in ("a", "some longer text", "short")], pad)
    found = sample(model, queries, pad, (eos,), 12, 0.0).tokens.tolist()
    for query, answer in zip(queries, found, strict=True):
        prompt = query[query != pad][None]
        expected = model.generate(
            input_ids=prompt, max_new_tokens=12, do_sample=False, eos_token_id=eos, pad_token_id=pad
        )
        alone = expected[0, prompt.shape[1] :].tolist()
        assert answer[: len(alone)] == alone


def test_an_encoder_decoder_is_refused(home, tmp_path, capsys):
    T5Config().save_pretrained(tmp_path)
    assert (
        main(["run", "translation", "--run", "t5", "--model", str(tmp_path), "--data", "pairs.jsonl", *SHORTEST]) == 2
    )
    error = capsys.readouterr().err
    assert "encoder-decoder (t5)" in error
    assert len(error.strip().splitlines()) == 1
