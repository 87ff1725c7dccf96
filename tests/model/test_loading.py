"""Adapters of one base behave as models of their own."""

import shutil
from contextlib import nullcontext

import pytest
import torch
from conftest import changed, scatter, tiny_tokenizer
from gradients import assert_alike, gradients
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
)

from rlrecipes.errors import UserError
from rlrecipes.model.adapters import adapter, add_lora, load_adapter
from rlrecipes.model.forward import hidden_states, needed_states_only, next_token_logits, states_at, trunk
from rlrecipes.model.loading import check_model, load_causal, load_scorer, prompt_window, window
from rlrecipes.model.tokens import answer_length, encode, encode_prompt, load_tokenizer, open_tokenizer, pad_right
from rlrecipes.profile import LoraSettings, ModelSettings
from rlrecipes.recipe import Example, user
from rlrecipes.reward.head import load_score_head
from rlrecipes.reward.model import score_answers
from rlrecipes.run.resume import record_drops

PLAIN = ModelSettings(quantization="none")
NF4 = ModelSettings(quantization="nf4")
PROMPTS = [user("Say"), user("Say it again")]


@pytest.fixture
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint.model)


@pytest.fixture(params=[PLAIN, NF4], ids=["plain", "nf4"])
def stack(request, checkpoint, tokenizer):
    """Base, `policy` and `reference` as PPO holds them."""
    model = load_adapter(
        load_causal(str(checkpoint.model), request.param, tokenizer), checkpoint.sft / "adapter", "policy"
    )
    model = load_adapter(model, checkpoint.sft / "adapter", "reference")
    model = load_adapter(model, checkpoint.reward / "adapter", "reward")
    model.set_adapter("policy")
    return model.eval()


def logits(model, tokenizer, prompt=PROMPTS[1]):
    ids = torch.tensor([encode_prompt(tokenizer, prompt)])
    with torch.no_grad():
        return next_token_logits(model, hidden_states(model, ids))


def test_an_adapter_on_the_shared_base_is_the_model_that_was_saved(checkpoint, tokenizer):
    shared = load_adapter(
        load_causal(str(checkpoint.model), PLAIN, tokenizer), checkpoint.sft / "adapter", "policy"
    ).eval()
    alone = AutoModelForCausalLM.from_pretrained(checkpoint.model)
    alone = PeftModel.from_pretrained(alone, checkpoint.sft / "adapter").eval()
    ids = torch.tensor([encode_prompt(tokenizer, PROMPTS[1])])
    with torch.no_grad():
        assert torch.allclose(logits(shared, tokenizer), alone(ids).logits, atol=1e-4)


def test_switching_roles_switches_what_the_model_says_and_back(stack, tokenizer):
    scatter(stack, "policy", size=0.5)
    policy = logits(stack, tokenizer)
    with adapter(stack, "reference"):
        reference = logits(stack, tokenizer)
    with adapter(stack, None):
        bare = logits(stack, tokenizer)
    assert not torch.allclose(policy, reference)
    assert not torch.allclose(policy, bare)
    assert not torch.allclose(reference, bare)
    assert torch.equal(logits(stack, tokenizer), policy)


def test_the_policy_stays_trainable_whatever_was_switched_to_and_however_the_block_ended(stack):
    before = {name for name, parameter in stack.named_parameters() if parameter.requires_grad}
    assert before
    assert all(".policy." in name for name in before)
    for role in ("reference", "reward", None):
        with pytest.raises(RuntimeError, match="in the block"), adapter(stack, role):
            raise RuntimeError("in the block")
        assert stack.active_adapter == "policy"
        assert {name for name, parameter in stack.named_parameters() if parameter.requires_grad} == before


def test_there_are_no_gradients_under_another_role(stack, tokenizer):
    ids = torch.tensor([encode_prompt(tokenizer, PROMPTS[0])])
    with adapter(stack, "reference"):
        assert not hidden_states(stack, ids).requires_grad
    assert hidden_states(stack, ids).requires_grad


@pytest.mark.parametrize(
    ("saved", "told"), [("q_proj", "q_proj,v_proj"), ("q_proj,v_proj", "q_proj"), ("q_proj", "v_proj")]
)
def test_an_adapter_of_another_shape_is_refused(checkpoint, tokenizer, tmp_path, saved, told):
    for targets, folder in ((told, tmp_path / "told"), (saved, tmp_path / "saved")):
        base = load_causal(str(checkpoint.model), PLAIN, tokenizer)
        add_lora(base, LoraSettings(target_modules=targets), "CAUSAL_LM").save_pretrained(folder)
    shutil.copyfile(tmp_path / "told" / "adapter_config.json", tmp_path / "saved" / "adapter_config.json")
    with pytest.raises(UserError, match="does not fit the base model"):
        load_adapter(load_causal(str(checkpoint.model), PLAIN, tokenizer), tmp_path / "saved", "policy")


def test_padding_on_the_right_changes_nothing(stack, tokenizer):
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    with torch.no_grad():
        together = hidden_states(stack, pad_right(rows, tokenizer.pad_token_id))
        for i, row in enumerate(rows):
            alone = hidden_states(stack, torch.tensor([row]))[0]
            assert torch.allclose(together[i, : len(row)], alone, atol=1e-4)


@pytest.mark.parametrize("scaling", [1.1, 8.0])
def test_a_model_that_makes_its_logits_in_another_way_is_refused(tokenizer, tmp_path, scaling):
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, logits_scaling=scaling, initializer_range=0.5,
    )  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"granite.*choose another model"):
        load_causal(str(tmp_path), PLAIN, tokenizer)


def test_a_4_bit_model_says_the_same_in_training_and_evaluation(checkpoint, tokenizer):
    model = load_adapter(load_causal(str(checkpoint.model), NF4, tokenizer), checkpoint.sft / "adapter", "policy")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    training = logits(model.train(), tokenizer)
    assert torch.equal(logits(model.eval(), tokenizer), training)
    assert torch.equal(logits(model.train(), tokenizer), training)


def test_4_bit_layers_are_not_repacked_whatever_the_processor(checkpoint, tokenizer, monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = load_causal(str(checkpoint.model), NF4, tokenizer)
    repacked = [getattr(module, "support_avx512bf16_for_cpu", None) for module in model.modules()]
    assert False in repacked
    assert True not in repacked


def test_4_bit_is_4_bit_and_its_heads_are_not(checkpoint, tokenizer):
    model = load_causal(str(checkpoint.model), NF4, tokenizer)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.quant_state.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    assert model.lm_head.weight.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("attention", "used"), [("eager", "eager"), ("sdpa", "sdpa"), ("auto", "sdpa")])
def test_attention_is_the_kind_that_the_settings_name(checkpoint, tokenizer, attention, used):
    model = load_causal(str(checkpoint.model), ModelSettings(quantization="none", attention=attention), tokenizer)
    assert model.config._attn_implementation == used


@pytest.mark.parametrize("load", [load_causal, load_scorer])
def test_a_new_pad_token_needs_no_embedding(checkpoint, tmp_path, load):
    """Each row is what it is alone, whatever pads it, and an adapter holds nothing but itself."""
    tiny_tokenizer(pad_token="<end>").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token_id == len(tokenizer) - 1
    model = load(str(checkpoint.model), PLAIN, tokenizer)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) - 1
    assert model.config.pad_token_id == tokenizer.pad_token_id
    rows = [encode(tokenizer, prompt, "It.").ids for prompt in PROMPTS[:2]]
    batch = pad_right(rows, tokenizer.pad_token_id)
    mask = pad_right([[1] * len(row) for row in rows], 0)
    with torch.no_grad():
        together = model(input_ids=batch, attention_mask=mask).logits
        for row, logits in zip(rows, together, strict=True):
            alone = model(input_ids=torch.tensor([row])).logits[0]
            assert torch.allclose(logits[: len(row)] if load is load_causal else logits, alone, atol=1e-4)
    adapted = add_lora(model, LoraSettings(r=2), "CAUSAL_LM" if load is load_causal else "SEQ_CLS")
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in key or key.endswith("score.weight") for key in saved)


@pytest.mark.parametrize("load", [load_causal, load_scorer])
def test_a_token_of_every_chat_without_an_embedding_is_refused(checkpoint, tmp_path, load):
    """Each stage would draw another one for it."""
    made = tiny_tokenizer(chat_template="{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}<|turn|>")
    made.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|image|>"]})
    made.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"no embedding for the token '<\|turn\|>' of its own chats; add one with resize"
    ):
        load(str(checkpoint.model), PLAIN, load_tokenizer(tmp_path))
    made.chat_template = None  # tokens that no chat holds need none
    (tmp_path / "chat_template.jinja").unlink()
    made.save_pretrained(tmp_path)
    load(str(checkpoint.model), PLAIN, load_tokenizer(tmp_path))


@pytest.mark.parametrize("load", [load_causal, load_scorer])
def test_a_token_of_text_without_an_embedding_is_refused_unless_it_is_read_as_plain_text(checkpoint, tmp_path, load):
    """The first row that holds it would end in the model's IndexError."""
    made = load_tokenizer(checkpoint.model)
    made.add_tokens(["zzzz"])
    made.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no embedding for the token 'zzzz' that a text may hold; add one with resize"):
        load(str(checkpoint.model), PLAIN, load_tokenizer(tmp_path))
    shutil.copy(checkpoint.model / "config.json", tmp_path)
    load(str(checkpoint.model), PLAIN, load_tokenizer(tmp_path))


def test_soft_capped_logits_are_those_of_the_model(tokenizer):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5, initializer_range=0.5,
    )  # fmt: skip
    model = add_lora(Gemma2ForCausalLM(config), LoraSettings(r=2), "CAUSAL_LM").eval()
    ids = torch.tensor([encode_prompt(tokenizer, PROMPTS[1])])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    assert expected.abs().max() <= 0.5
    assert torch.allclose(logits(model, tokenizer), expected, atol=1e-4)


def test_scores_are_the_reward_models_own_standardised_and_do_not_depend_on_the_batch(checkpoint, tokenizer):
    base = load_causal(str(checkpoint.model), PLAIN, tokenizer)
    model = load_adapter(base, checkpoint.sft / "adapter", "policy")
    model = load_adapter(model, checkpoint.reward / "adapter", "reward").eval()
    model.set_adapter("policy")
    pairs = [(PROMPTS[0], "a"), (PROMPTS[1], "a longer one"), (PROMPTS[1], "")]
    head = load_score_head(checkpoint.reward)
    scores = score_answers(model, head, tokenizer, pairs, batch_size=3)
    alone = AutoModelForSequenceClassification.from_pretrained(checkpoint.model, num_labels=1)
    alone.config.pad_token_id = tokenizer.pad_token_id
    alone = PeftModel.from_pretrained(alone, checkpoint.reward / "adapter").eval()
    for (prompt, answer), score in zip(pairs, scores, strict=True):
        with torch.no_grad():
            raw = alone(torch.tensor([encode(tokenizer, prompt, answer).ids])).logits.item()
        assert score == pytest.approx((raw - 0.25) / 0.5, abs=1e-3)
    assert scores == pytest.approx(score_answers(model, head, tokenizer, pairs, batch_size=1), abs=1e-4)
    assert model.active_adapter == "policy"


def test_the_window_is_the_lower_of_the_profiles_and_the_models(checkpoint):
    assert window(str(checkpoint.model), ModelSettings(max_length=100)) == 100
    assert window(str(checkpoint.model), ModelSettings(max_length=4000)) == 128


def test_a_prompt_has_the_room_that_the_answer_leaves_it(checkpoint):
    assert prompt_window(str(checkpoint.model), ModelSettings(max_length=100), 30) == 70
    assert prompt_window(str(checkpoint.model), ModelSettings(max_length=100), 99) == 1
    with pytest.raises(UserError, match=r"answers of 100 tokens leave no room .*raise model\.max_length"):
        prompt_window(str(checkpoint.model), ModelSettings(max_length=100), 100)
    with pytest.raises(
        UserError, match=r"prompt in 128 of the model itself; .* or choose a model with a longer window"
    ):
        prompt_window(str(checkpoint.model), ModelSettings(max_length=4000), 128)


@pytest.mark.parametrize(
    ("most", "asked", "told"),
    [
        (128, 128, "longer than 128 tokens; raise model.max_length or shorten the rows"),
        (128, 1024, "that the model's own window has room for; name a model with a longer window or shorten the rows"),
    ],
)
def test_rows_that_are_all_too_long_are_told_with_what_would_make_room(most, asked, told):
    assert sentence(record_drops, "demonstrations", 47, 0, most, asked).endswith(told)


def test_an_encoder_decoder_is_refused_and_a_decoder_is_not(checkpoint, tmp_path):
    check_model(str(checkpoint.model), PLAIN)
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is an encoder-decoder \(t5\)"):
        check_model(str(tmp_path), PLAIN)


def test_answers_are_as_long_as_nearly_all_demonstrations_or_as_asked(tokenizer):
    demonstrations = [Example(user("?"), ("a" * 4,))] * 199 + [Example(user("?"), ("a" * 50,))]
    assert answer_length(tokenizer, demonstrations, 0) == 5
    assert answer_length(tokenizer, demonstrations, 17) == 17


def test_a_tokenizer_without_eos_is_refused(tmp_path):
    tiny_tokenizer(eos_token=None).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no EOS token"):
        open_tokenizer(str(tmp_path))


def test_a_missing_tokenizer_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        open_tokenizer(str(tmp_path))


# What is damaged is told in one sentence that names it.


def sentence(call, *arguments) -> str:
    """What a call refuses with."""
    with pytest.raises(UserError) as told:
        call(*arguments)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.fixture
def damaged(checkpoint, tmp_path):
    """A model's folder of one's own, to be damaged."""
    return shutil.copytree(checkpoint.model, tmp_path / "damaged")


@pytest.mark.parametrize(
    "values", [{"hidden_size": None}, {"num_attention_heads": "many"}, {"model_type": "banana"}, {"model_type": [1]}]
)
def test_a_damaged_configuration_is_told(damaged, values):
    changed(damaged / "config.json", **values)
    for call in (lambda: check_model(str(damaged), PLAIN), lambda: window(str(damaged), PLAIN)):
        assert sentence(call).startswith(f"cannot read the model '{damaged}': ")
        assert "; mend its config.json, fetch it anew, or choose another model" in sentence(call)


@pytest.mark.parametrize("file", ["{", "[" * 100_000])
def test_a_configuration_that_is_no_json_is_told(damaged, file):
    (damaged / "config.json").write_text(file)
    assert sentence(check_model, str(damaged), PLAIN).startswith(f"cannot read the model '{damaged}': ")


@pytest.mark.parametrize("weights", [None, b"", b"version https://git-lfs.github.com/spec/v1\nsize 269060552\n"])
@pytest.mark.parametrize("load", [load_causal, load_scorer])
def test_weights_that_are_missing_or_damaged_are_told(damaged, tokenizer, load, weights):
    path = damaged / "model.safetensors"
    path.unlink() if weights is None else path.write_bytes(weights)
    assert sentence(load, str(damaged), PLAIN, tokenizer).startswith(f"cannot load the model '{damaged}': ")


def test_memory_that_runs_out_is_no_damage(checkpoint, tokenizer, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_causal(str(checkpoint.model), PLAIN, tokenizer)


@pytest.mark.parametrize("content", [None, b"", b"\x10" + 7 * b"\0" + b"cut"])
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_adapter_is_told_with_the_stage_that_makes_it(checkpoint, tokenizer, tmp_path, file, content):
    stage = shutil.copytree(checkpoint.sft, tmp_path / "sft")
    path = stage / "adapter" / file
    path.unlink() if content is None else path.write_bytes(content)
    said = sentence(load_adapter, load_causal(str(checkpoint.model), PLAIN, tokenizer), path.parent, "policy")
    assert said.startswith(f"{path} is damaged (")
    assert said.endswith(f"delete the folder {stage} and make the stage again")


@pytest.mark.parametrize("content", [None, "{}", "[1]", "{", '{"mean": "low", "std": 1}'])
def test_a_damaged_scale_is_told_with_the_stage_that_makes_it(checkpoint, tmp_path, content):
    stage = shutil.copytree(checkpoint.reward, tmp_path / "reward")
    path = stage / "scale.json"
    path.unlink() if content is None else path.write_text(content)
    assert sentence(load_score_head, stage).startswith(f"{path} is damaged (")


def test_an_adapter_without_a_score_head_is_told(checkpoint, tmp_path):
    stage = shutil.copytree(checkpoint.reward, tmp_path / "reward")
    shutil.copytree(checkpoint.sft / "adapter", stage / "adapter", dirs_exist_ok=True)
    assert "adapter_model.safetensors is damaged (" in sentence(load_score_head, stage)


@pytest.mark.parametrize("settings", [PLAIN, NF4], ids=["plain", "nf4"])
def test_an_adapter_that_is_added_in_place_says_and_learns_the_same(checkpoint, tokenizer, settings):
    ids = torch.tensor([encode_prompt(tokenizer, PROMPTS[1])])
    found = []
    for in_place in (True, False):
        model = load_adapter(
            load_causal(str(checkpoint.model), settings, tokenizer), checkpoint.sft / "adapter", "policy"
        )
        for module in model.modules():
            if not in_place and hasattr(module, "lora_variant"):
                module.lora_variant.clear()
        states = hidden_states(model.eval(), ids)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found.append((states.detach(), gradients(states, parameters)))
    (states, learned), (plain_states, plainly_learned) = found
    assert torch.allclose(states, plain_states, atol=1e-5)
    assert_alike(learned, plainly_learned, size=1)


@pytest.mark.parametrize("role", ["policy", "reference", "reward"])
def test_every_adapter_is_added_to_the_output_where_it_lies(stack, tokenizer, role):
    stack.set_adapter(role)
    layers, added = [module for module in stack.modules() if isinstance(module, LoraLayer)], []
    for layer in layers:
        layer.register_forward_hook(lambda _, given, output: added.append(type(output.grad_fn).__name__))
    hidden_states(stack, torch.tensor([encode_prompt(tokenizer, PROMPTS[0])]))
    assert added == ["_AddProductBackward"] * len(layers)


@pytest.mark.parametrize(("load", "task"), [(load_causal, "CAUSAL_LM"), (load_scorer, "SEQ_CLS")])
def test_a_fresh_adapter_has_the_settings_rank_scale_and_dropout_and_trains_a_head_only_where_there_is_one(
    checkpoint, tokenizer, load, task
):
    settings = LoraSettings(r=3, lora_alpha=12, lora_dropout=0.25, target_modules="q_proj, up_proj")
    model = add_lora(load(str(checkpoint.model), PLAIN, tokenizer), settings, task)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj", "up_proj"}
    for layer in layers.values():
        assert layer.lora_A["default"].weight.shape[0] == 3
        assert layer.scaling["default"] == 12 / 3
        assert layer.lora_dropout["default"].p == 0.25
        assert "default" in layer.lora_variant
    assert (model.peft_config["default"].modules_to_save is None) == (task == "CAUSAL_LM")
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trainable if "lora_" not in name} == (
        {"base_model.model.score.modules_to_save.default.weight"} if task == "SEQ_CLS" else set()
    )


def test_an_adapter_may_be_on_all_linear_layers(checkpoint, tokenizer):
    base = load_causal(str(checkpoint.model), PLAIN, tokenizer)
    model = add_lora(base, LoraSettings(target_modules="all-linear"), "CAUSAL_LM")
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    attention, feed_forward = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert names == attention | feed_forward


def test_an_adapter_on_the_output_layer_is_refused(checkpoint, tokenizer):
    base = load_causal(str(checkpoint.model), PLAIN, tokenizer)
    with pytest.raises(UserError, match="output layer"):
        add_lora(base, LoraSettings(target_modules="q_proj,lm_head"), "CAUSAL_LM")


def fed(model, reading):
    """What the last layer's feed-forward network is given inside `reading`, the states at `READ` and their gradients."""
    seen = []
    hook = trunk(model).layers[-1].mlp.gate_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with reading:
        states = hidden_states(model, IDS)[READ]
    hook.remove()
    return seen, states.detach(), gradients(states, parameters)


IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]])
READ = torch.tensor([[False, True, True, True], [True, False, True, False]])


def test_states_that_nobody_reads_cost_no_feed_forward_in_the_last_layer(stack):
    torch.manual_seed(0)
    scatter(stack, "policy", size=0.3)
    seen, states, learned = fed(stack, needed_states_only(stack, READ))
    seen_whole, whole, wholly_learned = fed(stack, nullcontext())
    assert seen[0].shape[:2] == (1, 5)
    assert seen_whole[0].shape[:2] == (2, 4)
    assert torch.allclose(states, whole, atol=1e-5)
    assert_alike(learned, wholly_learned, size=0.1)


def test_outside_of_its_block_the_model_is_whole_again_whatever_happened_inside(stack):
    expected = hidden_states(stack, IDS)
    with pytest.raises(RuntimeError, match="inside"), needed_states_only(stack, READ):
        raise RuntimeError("inside")
    assert torch.equal(hidden_states(stack, IDS), expected)


def test_a_forward_that_another_library_put_into_the_last_layer_is_there_again_afterwards(stack):
    block = trunk(stack).layers[-1].mlp
    usual = block.forward

    def own(states):
        return 2 * usual(states)

    block.forward = own
    expected = hidden_states(stack, IDS)
    with needed_states_only(stack, READ):
        assert torch.allclose(hidden_states(stack, IDS)[READ], expected[READ], atol=1e-5)
    assert block.forward is own
    assert torch.equal(hidden_states(stack, IDS), expected)


def test_a_model_whose_feed_forward_has_another_name_is_read_all_the_same():
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=32, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16,
        max_position_embeddings=16, init_std=0.5,
    )  # fmt: skip
    model = OPTForCausalLM(config).eval()
    assert not any("mlp" in name for name, _ in model.named_modules())
    places = torch.tensor([[1, 3], [0, 2]])
    expected = torch.stack([hidden_states(model, IDS)[row, places[row]] for row in range(2)])
    assert torch.equal(states_at(model, IDS, places), expected)


def test_no_cache_is_filled_where_states_are_read(stack):
    kept = []
    trunk(stack).register_forward_hook(lambda _, given, output: kept.append(output.past_key_values))
    with torch.no_grad():
        states_at(stack.eval(), IDS, torch.tensor([[1], [2]]))
    assert kept == [None]


def test_states_are_read_where_they_are_asked_for_even_twice(stack):
    places = torch.tensor([[1, 2, 3], [2, 3, 3]])
    expected = torch.stack([hidden_states(stack, IDS)[row, places[row]] for row in range(2)])
    assert torch.allclose(states_at(stack, IDS, places), expected, atol=1e-5)
