"""Outside reward models of every kind give a text in a padded batch the score that Transformers gives it alone."""

import copy

import pytest
import torch
import transformers
from conftest import changed, tiny_tokenizer
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rlrecipes.errors import UserError
from rlrecipes.profile import ModelSettings
from rlrecipes.recipe import Message, user
from rlrecipes.reward.model import load_beside
from rlrecipes.reward.source import find_reward_model

PLAIN = ModelSettings(quantization="none")
TEXTS = [
    (user("Name a colour"), "red"),
    (user("Name as many colours as you can"), "red and green and blue"),
    (user("Why"), "since red is a colour"),
]
SPECIAL = {"bert": ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "roberta": ["<s>", "<pad>", "</s>", "<unk>"]}
ENCODER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": None, "eos_token_id": 1}
LLAMA = {**ENCODER, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 1}
XLNET = {"d_model": 32, "d_inner": 32, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
KINDS = {
    "bert": ("Bert", "bert", ENCODER | {"max_position_embeddings": 32, "pad_token_id": 0}, 32),
    "roberta": ("Roberta", "roberta", ENCODER | {"max_position_embeddings": 34, "pad_token_id": 1}, 32),
    "roberta with pad -1": ("Roberta", "roberta", ENCODER | {"max_position_embeddings": 34, "pad_token_id": -1}, 34),
    "deberta": ("DebertaV2", "bert", ENCODER | {"max_position_embeddings": 32, "relative_attention": True}, 32),
    "electra": ("Electra", "bert", ENCODER | {"max_position_embeddings": 32, "type_vocab_size": 1}, 32),
    "mpnet": ("MPNet", "roberta", ENCODER | {"max_position_embeddings": 34}, 32),
    "convbert": ("ConvBert", "bert", ENCODER | {"max_position_embeddings": 32, "embedding_size": 16}, 32),
    "xlnet": ("XLNet", "bert", XLNET, 99),
    "gpt2": ("GPT2", "bytes", GPT2 | {"pad_token_id": 0}, 64),
    "gpt2 whose pad ends texts": ("GPT2", "bytes", GPT2 | {"pad_token_id": 1}, 64),
    "gpt2 without pad": ("GPT2", "bytes", GPT2 | {"pad_token_id": None}, 64),
    "gpt2 with pad beyond its embeddings": ("GPT2", "bytes", GPT2 | {"pad_token_id": 5000}, 64),
    "llama": ("Llama", "bytes", LLAMA | {"pad_token_id": 0}, 64),
    "llama with pad -1": ("Llama", "bytes", LLAMA | {"pad_token_id": -1}, 64),
}
"""Family, tokenizer, configuration, and the tokens that fit. Where the configuration has no limit, the tokenizer has: 99."""
ENDING = "{% for m in messages %}<user>{{ m.content }}<end>{% endfor %}"
"""Each turn, and so the whole text, ends with the token that some of the kinds pad with."""


def word_tokenizer(special):
    """Whole words, in pairs as the family with the special tokens writes them; only BERT's has segments."""
    words = sorted({w for p, a in TEXTS for text in (p[0].content, a) for w in text.split()})
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=special[3]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pad, cls, sep = (special[i] for i in ((0, 1, 2) if special[0] == "[PAD]" else (1, 0, 2)))
    kind = processors.BertProcessing if pad == "[PAD]" else processors.RobertaProcessing
    made.post_processor = kind((sep, vocabulary[sep]), (cls, vocabulary[cls]))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        **{"pad_token": pad, "cls_token": cls, "sep_token": sep, "unk_token": special[3], "model_max_length": 99},
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def classifier(folder, family, tokenizer, config):
    """A random sequence classifier with one output, and its tokenizer."""
    made = word_tokenizer(SPECIAL[tokenizer]) if tokenizer in SPECIAL else tiny_tokenizer(chat_template=ENDING)
    torch.manual_seed(1)
    settings = getattr(transformers, f"{family}Config")(
        vocab_size=len(made), num_labels=1, initializer_range=0.3, **config
    )
    getattr(transformers, f"{family}ForSequenceClassification")(settings).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_scores_in_a_padded_batch_what_transformers_gives_it_alone(tmp_path, kind):
    family, tokenizer, config, longest = KINDS[kind]
    folder = classifier(tmp_path / "rm", family, tokenizer, config)
    found = load_beside(find_reward_model(str(folder)), PLAIN)
    rows = [found.encode(*text) for text in TEXTS]
    assert len({len(row["input_ids"]) for row in rows}) == len(rows)
    alone = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **config).eval()
    with torch.no_grad():
        expected = [alone(**{name: torch.tensor([ids]) for name, ids in row.items()}).logits.item() for row in rows]
    assert len({round(score, 3) for score in expected}) == len(rows)
    assert found.scores(rows, len(rows)) == pytest.approx(expected, abs=1e-4)
    long = found.cut(found.encode(user("Name " + "a colour and " * 60), "red"))
    assert found.max_tokens == len(long["input_ids"]) == longest
    assert len(found.scores([rows[0], long], 2)) == 2


ADAPTERS = {
    "lora": (LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "q_proj"]), 0),
    "ia3": (IA3Config(task_type="SEQ_CLS", target_modules=["query", "q_proj"], feedforward_modules=[]), 0),
    "prompt": (PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3), 3),
    "prefix": (PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3), 3),
}
"""Kinds of adapters and the tokens that they put in front of a text."""


@pytest.mark.parametrize("base", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_text_scores_in_a_padded_batch_what_peft_gives_it_alone(tmp_path, kind, base):
    family, tokenizer, config, longest = KINDS[base]
    folder = classifier(tmp_path / "base", family, tokenizer, config)
    settings, virtual = ADAPTERS[kind]
    model = get_peft_model(
        transformers.AutoModelForSequenceClassification.from_pretrained(folder), copy.deepcopy(settings)
    )
    model.eval().save_pretrained(tmp_path / "adapter")
    found = load_beside(find_reward_model(str(tmp_path / "adapter")), PLAIN)
    rows = [found.encode(*text) for text in TEXTS]
    with torch.no_grad():
        inputs = [{name: torch.tensor([ids]) for name, ids in row.items()} for row in rows]
        expected = [model(**i, attention_mask=torch.ones_like(i["input_ids"])).logits.item() for i in inputs]
    assert found.scores(rows, len(rows)) == pytest.approx(expected, abs=1e-4)
    assert found.max_tokens == longest - virtual
    long = found.cut(found.encode(user("Name " + "a colour and " * 60), "red"))
    assert len(found.scores([rows[0], long], 2)) == 2


def head_alone(folder, base, layers, keep):
    """A LoRA adapter of a bare encoder, saved with the layers of which the name says so."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query_proj"], modules_to_save=layers)
    get_peft_model(model, config).save_pretrained(folder)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if keep in k}, folder / "adapter_model.safetensors")
    changed(folder / "adapter_config.json", base_model_name_or_path=str(base))
    return folder


@pytest.fixture
def bare(tmp_path):
    """A DeBERTa that no task was trained into: it has neither the pooling layer nor the head of a classifier."""
    family, tokenizer, config, _ = KINDS["deberta"]
    folder = classifier(tmp_path / "bare", family, tokenizer, config)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k.startswith("deberta")}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def test_an_adapter_with_all_that_its_encoder_lacks_scores_the_same_at_every_load(tmp_path, bare):
    place = head_alone(tmp_path / "adapter", bare, ["classifier", "pooler"], keep="")
    scores = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found = load_beside(find_reward_model(str(place)), PLAIN)
        scores.append(found.scores([found.encode(*text) for text in TEXTS], len(TEXTS)))
    assert scores[0] == scores[1]
    assert len(set(scores[0])) == len(TEXTS)


def test_weights_that_no_file_has_are_told_instead_of_drawn_at_random(tmp_path, bare):
    places = {
        "classifier.bias and 3 more": bare,
        "pooler.dense.bias and 1 more": head_alone(tmp_path / "no pooler", bare, ["classifier"], keep=""),
        "classifier.bias": head_alone(tmp_path / "no head", bare, ["classifier", "pooler"], keep="lora_"),
    }
    for lacked, place in places.items():
        with pytest.raises(UserError, match=rf"^reward\.model=\S.* lacks the weights {lacked}\b[^\n]*random"):
            load_beside(find_reward_model(str(place)), PLAIN)


def test_a_head_with_more_outputs_than_its_configuration_says_is_told_before_it_is_loaded(tmp_path):
    family, tokenizer, config, _ = KINDS["roberta"]
    folder = classifier(tmp_path / "rm", family, tokenizer, config)
    weights = load_file(folder / "model.safetensors")
    head = weights["classifier.out_proj.weight"]
    save_file({**weights, "classifier.out_proj.weight": torch.cat([head, head])}, folder / "model.safetensors")
    with pytest.raises(UserError, match="has 2 outputs; a reward model has one"):
        find_reward_model(str(folder))


def test_a_decoder_that_separates_pairs_by_bos_alone_reads_a_transcript(tmp_path):
    family, tokenizer, config, _ = KINDS["llama"]
    folder = classifier(tmp_path / "rm", family, tokenizer, config)
    made = tiny_tokenizer(chat_template=None)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<user> $A", pair="<user> $A <user> $B", special_tokens=[("<user>", 2)]
    )
    (folder / "chat_template.jinja").unlink()
    made.save_pretrained(folder)
    found = load_beside(find_reward_model(str(folder)), PLAIN)
    assert made.decode(found.encode(*TEXTS[0])["input_ids"]).startswith("User: Name a colour\nAssistant:")


def test_a_decoder_with_nothing_that_says_how_it_reads_an_answer_is_told(tmp_path):
    family, tokenizer, config, _ = KINDS["gpt2"]
    folder = classifier(tmp_path / "rm", family, tokenizer, config)
    (folder / "chat_template.jinja").unlink()
    tiny_tokenizer(chat_template=None, eos_token=None).save_pretrained(folder)
    with pytest.raises(UserError, match="neither a chat template nor an EOS token"):
        load_beside(find_reward_model(str(folder)), PLAIN)


def test_a_template_that_leaves_a_system_turn_out_gets_it_in_the_first_user_turn(tmp_path):
    template = "{% for m in messages if m.role != 'system' %}<user>{{ m.content }}{% endfor %}<end>"
    family, tokenizer, config, _ = KINDS["gpt2"]
    folder = classifier(tmp_path / "rm", family, tokenizer, config)
    tiny_tokenizer(chat_template=template).save_pretrained(folder)
    found = load_beside(find_reward_model(str(folder)), PLAIN)
    read = found.encode((Message("system", "Be kind."), *user("Hi")), "Hello")["input_ids"]
    assert tiny_tokenizer().decode(read) == "<user>Be kind.\n\nHi<user>Hello<end>"
