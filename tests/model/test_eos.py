"""An EOS that pretraining never showed the model gives way to a token that it can produce."""

import pytest
import torch
from conftest import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from rlrecipes.model.eos import use_producible_eos
from rlrecipes.model.tokens import encode, open_tokenizer, open_with_note
from rlrecipes.recipe import user

PAD, EOS, USER, ASSISTANT = range(4)
BOS = 4
"""A byte of the tiny tokenizer that plays the part."""


@pytest.fixture
def save(tmp_path):
    """Writes a random checkpoint whose `untaught` tokens all have one and the same row in the output matrix."""

    def write(untaught=(), tied=True, shards=False, dtype=torch.float32, **special) -> str:
        bos = tiny_tokenizer().convert_ids_to_tokens(BOS)
        tokenizer = tiny_tokenizer(**{"bos_token": bos} | special)
        tokenizer.save_pretrained(tmp_path)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.get_output_embeddings().weight[list(untaught)] = 1.0
        model.to(dtype).save_pretrained(tmp_path, max_shard_size="30KB" if shards else "1GB")
        return str(tmp_path)

    return write


def note(name):
    return open_with_note(name)[1]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [False, True])
def test_an_eos_that_was_never_taught_gives_way_to_bos(save, tied, shards):
    name = save(untaught=(PAD, EOS, 200, 201), tied=tied, shards=shards)
    tokenizer = open_tokenizer(name)
    assert tokenizer.eos_token_id == BOS
    assert encode(tokenizer, user("Hi"), "there").ids[-1] == BOS
    assert "'<end>'" in note(name)
    assert tokenizer.eos_token in note(name)


def test_an_eos_that_was_taught_stays(save):
    name = save(untaught=(PAD, 200, 201))
    assert open_tokenizer(name).eos_token_id == EOS
    assert note(name) is None


def test_another_special_token_serves_where_bos_was_not_taught_either(save):
    name = save(untaught=(PAD, EOS, BOS, 200))
    assert open_tokenizer(name).eos_token_id in (USER, ASSISTANT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_eos_that_was_never_taught_is_seen_in_half_precision_too(save, dtype):
    assert open_tokenizer(save(untaught=(PAD, EOS, 200), dtype=dtype)).eos_token_id == BOS
    assert open_tokenizer(save(untaught=(PAD, 200, 201), dtype=dtype)).eos_token_id == EOS


def test_a_model_without_bos_ends_with_another_special_token_wherever_it_stands(save):
    name = save(untaught=(PAD, EOS, 200), bos_token=None, pad_token="<assistant>")
    assert open_tokenizer(name).eos_token_id == USER


def test_the_padding_token_never_becomes_the_eos(save):
    name = save(untaught=(EOS, USER, ASSISTANT, BOS))
    assert open_tokenizer(name).eos_token_id == EOS
    assert "choose another model" in note(name)


def test_where_no_special_token_was_taught_it_is_said_and_the_eos_stays(save):
    name = save(untaught=(PAD, EOS, USER, ASSISTANT, BOS))
    assert open_tokenizer(name).eos_token_id == EOS
    assert "choose another model" in note(name)


def test_a_model_without_safetensors_is_taken_as_it_is(tmp_path):
    tokenizer = tiny_tokenizer()
    assert use_producible_eos(tokenizer, str(tmp_path)) is None
    assert tokenizer.eos_token_id == EOS


def header(text):
    """A safetensors file with such a header and no numbers."""
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    "damaged",
    [
        lambda whole: b"",
        lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:4a1e\nsize 269060552\n",
        lambda whole: whole[:100],
        lambda whole: whole[:20_000],
        lambda whole: header("no JSON"),
        lambda whole: header("[1]"),
        lambda whole: header('{"lm_head.weight": {"dtype": "F32"}}'),
        lambda whole: header('{"lm_head.weight": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 7]}}'),
    ],
)
def test_weights_that_are_damaged_leave_the_eos_as_it_is(save, tmp_path, damaged):
    save(untaught=(PAD, EOS, 200))
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged(path.read_bytes()))
    assert use_producible_eos(tiny_tokenizer(), str(tmp_path)) is None


@pytest.mark.parametrize("index", ["{", "[1]", "{}", '{"weight_map": [1]}', '{"weight_map": {"lm_head.weight": 3}}'])
def test_an_index_that_is_damaged_leaves_the_eos_as_it_is(save, tmp_path, index):
    save(untaught=(PAD, EOS, 200))
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert use_producible_eos(tiny_tokenizer(), str(tmp_path)) is None
