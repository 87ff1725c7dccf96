"""Prompts and answers meet at the same token everywhere, and padding is never mistaken for an end."""

import pytest
from conftest import tiny_tokenizer

from rlrecipes.encoding import (
    PLAIN_TEMPLATE,
    decode,
    encode,
    encode_prompt,
    fitting_comparisons,
    fitting_examples,
    fitting_prompts,
    load_tokenizer,
    pad_left,
    pad_right,
)
from rlrecipes.recipe import Comparison, Example, Message, user

CHAT = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye"))


@pytest.fixture
def load(tmp_path):
    """The tokenizer as a stage would load it, saved with other special tokens or template."""

    def saved(**special):
        tiny_tokenizer(**special).save_pretrained(tmp_path)
        return load_tokenizer(tmp_path)

    return saved


def test_an_answer_is_its_prompt_then_its_text_then_one_eos(load):
    tokenizer = load()
    encoded = encode(tokenizer, user("Say it"), "It.")
    assert encoded.prompt == encode_prompt(tokenizer, user("Say it"))
    assert encoded.ids == encoded.prompt + encoded.answer
    assert encoded.answer.count(tokenizer.eos_token_id) == 1
    assert encoded.answer[-1] == tokenizer.eos_token_id
    assert decode(tokenizer, encoded.answer) == "It."


def test_the_boundary_does_not_depend_on_the_answer(load):
    tokenizer = load()
    prompts = {tuple(encode(tokenizer, CHAT, answer).prompt) for answer in ("yes", " yes", "", "\n", "真")}
    assert len(prompts) == 1


def test_a_prompt_ends_where_the_assistant_begins(load):
    tokenizer = load()
    ids = encode_prompt(tokenizer, user("Hi"))
    assert tokenizer.convert_ids_to_tokens(ids) == ["<user>", "H", "i", "<assistant>"]


@pytest.mark.parametrize("special", [{"pad_token": "<end>"}, {"pad_token": None}])
def test_a_missing_or_shared_pad_token_becomes_one_of_its_own(load, special):
    tokenizer = load(**special)
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) == len(tiny_tokenizer()) + 1


def test_the_unknown_token_pads_where_there_is_one(load):
    tokenizer = load(pad_token=None, unk_token="<pad>")
    assert tokenizer.pad_token_id == tokenizer.unk_token_id
    assert len(tokenizer) == len(tiny_tokenizer())


def test_an_unknown_token_that_is_the_end_does_not_pad(load):
    tokenizer = load(pad_token=None, unk_token="<end>")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_tokenizer_with_a_pad_token_is_left_alone(load):
    tokenizer = load()
    assert tokenizer.pad_token == "<pad>"
    assert len(tokenizer) == len(tiny_tokenizer())


def test_a_tokenizer_without_template_gets_a_plain_one(load):
    tokenizer = load(chat_template=None)
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    text = tokenizer.decode(encode_prompt(tokenizer, CHAT))
    assert text == "System: Be kind.\nUser: Hi\nAssistant: Hello\nUser: Bye\nAssistant: "


def test_bos_stands_before_the_plain_template_alone(load):
    plain = load(chat_template=None, bos_token="<user>")
    assert encode_prompt(plain, user("Hi"))[0] == plain.bos_token_id
    own = load(bos_token="<assistant>")
    assert encode_prompt(own, user("Hi"))[0] != own.bos_token_id


def test_special_tokens_are_no_part_of_an_answers_text(load):
    tokenizer = load()
    ids = [*tokenizer("It.")["input_ids"], tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert decode(tokenizer, ids) == "It."


def test_padding_stands_on_its_side():
    assert pad_left([[1, 2], [3]], 0).tolist() == [[1, 2], [0, 3]]
    assert pad_right([[1, 2], [3]], 0).tolist() == [[1, 2], [3, 0]]


def test_rows_that_do_not_fit_are_left_out(load):
    tokenizer = load()
    short, long = Example(user("Hi"), ("a",)), Example(user("Hi"), ("a" * 9,))
    longest = len(encode(tokenizer, short.prompt, "a").ids)
    assert [example for example, _ in fitting_examples(tokenizer, [short, long], longest)] == [short]
    assert fitting_examples(tokenizer, [short], longest - 1) == []
    assert len(fitting_prompts(tokenizer, [short, long], longest - 2)) == 2
    assert fitting_prompts(tokenizer, [short], longest - 3) == []
    pairs = [
        Comparison(user("Hi"), "a", "b"),
        Comparison(user("Hi"), "a", "b" * 9),
        Comparison(user("Hi"), "a" * 9, "b"),
    ]
    assert [pair for pair, _, _ in fitting_comparisons(tokenizer, pairs, longest)] == pairs[:1]
