"""Reward models from elsewhere score as they do in Transformers alone, whatever they are and however they read."""

import json
import shutil

import pytest
import torch
from conftest import changed, scatter, tiny_tokenizer
from families import gpt2
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from rlrecipes.errors import UserError
from rlrecipes.model.adapters import add_lora, load_adapter
from rlrecipes.model.loading import load_causal, load_scorer
from rlrecipes.model.tokens import encode, load_tokenizer
from rlrecipes.profile import LoraSettings, ModelSettings
from rlrecipes.recipe import Message, user
from rlrecipes.reward.head import load_score_head
from rlrecipes.reward.model import RewardModel, load_beside, load_sharing, score_answers
from rlrecipes.reward.source import find_reward_model

PLAIN = ModelSettings(quantization="none")
TEXTS = [
    (user("Say it"), "it"),
    (user("Say it again and again"), "no"),
    ((Message("system", "Be kind."), *user("Hi")), "Hi!"),
]


def bert(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[UNK]",
        *sorted({w for p, a in TEXTS for m in p for w in (m.content + " " + a).split()}),
    ]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, **names, model_input_names=["input_ids", "token_type_ids", "attention_mask"]
    )
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    torch.manual_seed(1)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def scores(model: RewardModel) -> list[float]:
    return model.scores([model.encode(prompt, answer) for prompt, answer in TEXTS], batch_size=2)


def test_a_decoder_beside_reads_whole_chats_with_its_own_template_and_tokenizer(tmp_path):
    template = "{% for m in messages %}<user>{{ m.role }}: {{ m.content }}<end>{% endfor %}"
    folder = gpt2(tmp_path / "rm", chat_template=template)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for prompt, answer in TEXTS:
        text = "".join(f"<user>{m.role}: {m.content}<end>" for m in (*prompt, Message("assistant", answer)))
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        expected.append(model(ids).logits.item())
    assert len({round(score, 3) for score in expected}) == len(TEXTS)
    assert scores(load_beside(find_reward_model(str(folder)), PLAIN)) == pytest.approx(expected, abs=1e-4)


def test_a_decoder_beside_reads_the_same_every_day_and_takes_a_system_turn_that_its_template_refuses(tmp_path):
    template = (
        "{{ strftime_now('%d %b %Y') }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}<user>{{ m.content }}{% endfor %}<end>"
    )
    folder = gpt2(tmp_path / "rm", chat_template=template)
    model = load_beside(find_reward_model(str(folder)), PLAIN)
    read = AutoTokenizer.from_pretrained(folder).decode(model.encode(*TEXTS[2])["input_ids"])
    assert read == "26 Jul 2024<user>Be kind.\n\nHi<user>Hi!<end>"


@pytest.mark.parametrize("kind", ["chat", "pair", "transcript"])
def test_special_tokens_that_a_text_spells_are_plain_text_to_every_reader(tmp_path, kind):
    template = "{% for m in messages %}<user>{{ m.content }}{% endfor %}" if kind == "chat" else None
    folder = bert(tmp_path / "rm") if kind == "pair" else gpt2(tmp_path / "rm", chat_template=template)
    spelled = "[SEP]" if kind == "pair" else "<end>"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_beside(find_reward_model(str(folder)), PLAIN)
    token = tokenizer.convert_tokens_to_ids(spelled)
    usual, row = model.encode(user("it"), "it"), model.encode(user(f"it {spelled}"), f"{spelled} it")
    assert row["input_ids"].count(token) == usual["input_ids"].count(token)
    assert row.keys() == usual.keys()
    assert {len(ids) for ids in row.values()} == {len(row["input_ids"])}
    if kind != "pair":  # this toy of an encoder knows whole words alone
        assert tokenizer.decode(row["input_ids"]).count(spelled) == 2 + usual["input_ids"].count(token)


def test_an_added_token_without_an_embedding_is_plain_text_to_a_model_beside(tmp_path):
    folder = gpt2(tmp_path / "rm", chat_template="{% for m in messages %}<user>{{ m.content }}{% endfor %}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zzzz"])
    tokenizer.save_pretrained(folder)
    model = load_beside(find_reward_model(str(folder)), PLAIN)
    row = model.encode(user("zzzz"), "it")
    assert tokenizer.decode(row["input_ids"]) == "<user>zzzz<user>it"
    assert len(model.scores([row], batch_size=1)) == 1


def test_a_decoders_template_that_refuses_the_turns_is_told(tmp_path):
    folder = gpt2(tmp_path / "rm", chat_template="{{ raise_exception('never') }}")
    model = load_beside(find_reward_model(str(folder)), PLAIN)
    with pytest.raises(UserError, match="refuses the prompt 'it' with the turns user, assistant: never"):
        model.encode(*TEXTS[0])


@pytest.mark.parametrize(
    "template", [None, "{% for m in messages %}<user>{{ m.content }}<end>\n{% endfor %}<assistant>"]
)
def test_an_adapter_of_ours_on_another_base_reads_answers_as_it_was_trained_to(tmp_path, checkpoint, template):
    """Its tokenizer lies beside it, and an answer ends with EOS, whatever its template puts behind one."""
    base = shutil.copytree(checkpoint.model, tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    tiny_tokenizer(chat_template=template).save_pretrained(base)
    place = shutil.copytree(checkpoint.reward / "adapter", tmp_path / "adapter")
    changed(place / "adapter_config.json", base_model_name_or_path=str(base))
    tokenizer = load_tokenizer(base)
    tokenizer.save_pretrained(place)
    model = load_beside(find_reward_model(str(place)), PLAIN)
    assert [model.encode(*row)["input_ids"] for row in TEXTS] == [encode(tokenizer, *row).ids for row in TEXTS]


def test_a_decoder_without_a_template_reads_a_plain_transcript(tmp_path):
    folder = gpt2(tmp_path / "rm", chat_template=None)
    model = load_beside(find_reward_model(str(folder)), PLAIN)
    read = model.encode(*TEXTS[0])["input_ids"]
    assert AutoTokenizer.from_pretrained(folder).decode(read) == "User: Say it\nAssistant: it<end>"


def test_a_decoder_beside_scores_a_short_text_in_a_batch_as_it_does_alone_whatever_pads_it(tmp_path):
    model = load_beside(find_reward_model(str(gpt2(tmp_path / "rm", pad_token="<assistant>"))), PLAIN)
    assert model.pad != 0
    rows = [model.encode(prompt, answer) for prompt, answer in TEXTS]
    assert len({len(row["input_ids"]) for row in rows}) == len(rows)
    alone = [score for row in rows for score in model.scores([row], 1)]
    assert model.scores(rows, len(rows)) == pytest.approx(alone, abs=1e-4)


def test_a_decoder_whose_tokenizer_begins_each_text_with_a_token_reads_its_template_alone(tmp_path):
    from tokenizers.processors import TemplateProcessing

    folder = gpt2(tmp_path / "rm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 1)])
    tokenizer.save_pretrained(folder)
    read = load_beside(find_reward_model(str(folder)), PLAIN).encode(*TEXTS[0])["input_ids"]
    assert tokenizer.decode(read) == "<user>Say it<user>it"
    assert tokenizer("Say it")["input_ids"][0] == tokenizer.eos_token_id


def test_an_encoder_reads_prompt_and_answer_as_a_pair(tmp_path):
    folder = bert(tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [
        model(**tokenizer("\n".join(m.content for m in prompt), answer, return_tensors="pt")).logits.item()
        for prompt, answer in TEXTS
    ]
    found = load_beside(find_reward_model(str(folder)), PLAIN)
    assert sum(found.encode(*TEXTS[0])["token_type_ids"]) == 2  # the answer and its [SEP]
    assert scores(found) == pytest.approx(expected, abs=1e-4)


def test_a_model_beside_may_be_in_4_bit_with_its_head_in_full_precision(tmp_path):
    folder = str(gpt2(tmp_path / "rm"))
    full, small = (load_beside(find_reward_model(folder), ModelSettings(quantization=q)) for q in ("none", "nf4"))
    assert small.model.score.weight.dtype == torch.float32
    assert scores(small) != pytest.approx(scores(full), abs=1e-4)


def test_an_adapter_on_another_base_brings_that_base(tmp_path, checkpoint):
    tokenizer = load_tokenizer(checkpoint.model)
    found = load_beside(find_reward_model(str(checkpoint.reward)), PLAIN)
    same = load_sharing(find_reward_model(str(checkpoint.reward)), str(checkpoint.model), PLAIN, tokenizer)
    rows = [same.encode(prompt, answer) for prompt, answer in TEXTS]
    assert found.scores(rows, 2) == pytest.approx(same.scores(rows, 2), abs=1e-5)


def test_an_adapter_on_the_policys_base_scores_as_it_does_among_the_others(checkpoint):
    tokenizer = load_tokenizer(checkpoint.model)
    source = find_reward_model(str(checkpoint.reward))
    assert source.shares(str(checkpoint.model))
    found = scores(load_sharing(source, str(checkpoint.model), PLAIN, tokenizer))
    model = load_adapter(load_causal(str(checkpoint.model), PLAIN, tokenizer), checkpoint.sft / "adapter", "policy")
    model = load_adapter(model, checkpoint.reward / "adapter", "reward").eval()
    head = load_score_head(checkpoint.reward)
    standardised = score_answers(model, head, tokenizer, TEXTS, 2)
    assert found == pytest.approx([head.mean + head.std * score for score in standardised], abs=1e-4)


def test_the_front_of_a_long_text_is_cut_but_not_its_first_token(tmp_path):
    model = load_beside(find_reward_model(str(gpt2(tmp_path / "rm"))), PLAIN)
    long = model.encode(user("Say " + "it " * 100), "end.")
    cut = model.cut(long)
    assert len(cut["input_ids"]) == model.max_tokens == 64
    assert cut["input_ids"][0] == long["input_ids"][0]
    assert cut["input_ids"][1:] == long["input_ids"][-63:]
    assert model.cut(cut) == cut
    assert len(model.scores([cut], 1)) == 1


def test_an_adapter_that_does_not_fit_its_base_is_told(tmp_path, checkpoint):
    tokenizer = load_tokenizer(checkpoint.model)
    model = add_lora(load_scorer(str(checkpoint.model), PLAIN, tokenizer), LoraSettings(r=2), "SEQ_CLS")
    scatter(model, "default")
    model.save_pretrained(tmp_path / "adapter")
    other = str(gpt2(tmp_path / "rm"))
    config = (tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    config = config.replace(str(checkpoint.model), other)
    (tmp_path / "adapter" / "adapter_config.json").write_text(config, encoding="utf-8")
    with pytest.raises(UserError, match=r"^cannot use reward[.]model="):
        load_beside(find_reward_model(str(tmp_path / "adapter")), PLAIN)


@pytest.mark.parametrize("changed", [{"r": "x"}, {"peft_type": "NO_SUCH"}, {"target_modules": 3}])
def test_an_adapter_that_the_libraries_cannot_read_is_told_in_one_sentence(tmp_path, checkpoint, changed):
    place = shutil.copytree(checkpoint.reward / "adapter", tmp_path / "adapter")
    config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
    (place / "adapter_config.json").write_text(json.dumps(config | changed), encoding="utf-8")
    with pytest.raises(UserError, match=r"^cannot use reward[.]model=[^\n]+; choose another model$"):
        load_beside(find_reward_model(str(place)), PLAIN)


def test_what_is_encoded_for_the_policys_base_is_what_the_policy_writes(checkpoint):
    tokenizer = load_tokenizer(checkpoint.model)
    source = find_reward_model(str(checkpoint.reward))
    model = load_sharing(source, str(checkpoint.model), PLAIN, tokenizer)
    assert model.encode(*TEXTS[0]) == {"input_ids": encode(tokenizer, *TEXTS[0]).ids}
