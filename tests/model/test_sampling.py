"""Answers are those that the model alone would give, and what is taken on the way is what a forward pass says."""

import pytest
import torch
from families import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer

from rlrecipes.errors import UserError
from rlrecipes.model import sampling
from rlrecipes.model.adapters import add_lora, load_adapter
from rlrecipes.model.forward import hidden_states, next_token_logits, trunk
from rlrecipes.model.loading import load_causal
from rlrecipes.model.sampling import BLOCK, Share, _Reserved, drawn, sample
from rlrecipes.model.tokens import encode_prompt, load_tokenizer, pad_left
from rlrecipes.profile import LoraSettings, ModelSettings
from rlrecipes.recipe import user

PROMPTS = [user("Say"), user("Say it again"), user("Say it")]
LENGTH = 12


@pytest.fixture
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint.model)


@pytest.fixture
def model(checkpoint, tokenizer):
    base = load_causal(str(checkpoint.model), ModelSettings(quantization="none"), tokenizer)
    return load_adapter(base, checkpoint.sft / "adapter", "policy").eval()


@pytest.fixture
def queries(tokenizer):
    return pad_left([encode_prompt(tokenizer, prompt) for prompt in PROMPTS], tokenizer.pad_token_id)


def answers(model, tokenizer, queries, temperature, **options):
    return sample(
        model,
        queries,
        tokenizer.pad_token_id,
        (tokenizer.eos_token_id,),
        options.pop("length", LENGTH),
        temperature,
        **options,
    )


def test_greedy_answers_are_each_prompts_own_and_take_no_random_numbers(model, tokenizer, queries):
    before = torch.get_rng_state()
    together = answers(model, tokenizer, queries, 0.0).tokens
    assert torch.equal(torch.get_rng_state(), before)
    for row, answer in zip(queries, together, strict=True):
        alone = answers(model, tokenizer, row[row != tokenizer.pad_token_id][None], 0.0).tokens[0]
        assert answer.tolist()[: len(alone)] == alone.tolist()


def test_rows_that_are_a_share_of_a_batch_draw_what_they_draw_in_it(model, tokenizer, queries):
    def drawn(rows, end, share=None):
        torch.manual_seed(1)
        value = {"value": lambda states: states.sum(-1), "share": share}
        return sample(model, queries[rows], tokenizer.pad_token_id, (end,), LENGTH, 1.0, **value)

    end = int(drawn([0, 1, 2], tokenizer.eos_token_id).tokens[1, 3])  # where the second answer ends before the others
    whole, numbers = drawn([0, 1, 2], end), torch.get_rng_state()
    lengths = (whole.tokens != tokenizer.pad_token_id).sum(1)
    assert lengths[1] == 4 < min(lengths[0], lengths[2])
    times = []
    for rows in ([0, 2], [1]):
        share = Share(
            rows, 3, lambda *found: (times.append((found[0], torch.get_rng_state())), len(whole.tokens[0]))[1]
        )
        part = drawn(rows, end, share)
        assert torch.equal(part.tokens, whole.tokens[rows])
        states = torch.arange(len(whole.tokens[0]))[None] <= lengths[rows, None]  # and one behind the end
        assert part.values[states].tolist() == pytest.approx(whole.values[rows][states].tolist(), abs=1e-4)
    assert torch.equal(max(times, key=lambda each: each[0])[1], numbers), "the random numbers go on from there"


@pytest.mark.parametrize("words", [3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5000])
def test_a_token_is_the_one_at_which_the_running_sum_passes_the_random_number(words):
    torch.manual_seed(words)
    probabilities = torch.randn(64, words).mul(4).softmax(-1)
    probabilities[:, ::3] = 0
    numbers = torch.rand(64, dtype=torch.float64)
    running = probabilities.double().cumsum(-1)
    expected = torch.searchsorted(running, numbers[:, None] * running[:, -1:], right=True).squeeze(1)
    assert torch.equal(drawn(probabilities, numbers), expected)
    assert drawn(probabilities[7:8], numbers[7:8]) == expected[7], "whatever stands beside it"


@pytest.mark.parametrize("number", [0.0, 1e-18, 1 - 2**-53])
def test_a_token_of_probability_0_is_never_drawn_and_one_that_hardly_has_any_may_be(number):
    probabilities = torch.zeros(3, 700)
    probabilities[0, [5, 300, 698]] = torch.tensor([1e-30, 1, 1e-30])
    probabilities[1, 698] = 1e-30
    probabilities[2, 1:-1] = torch.rand(698).softmax(-1)
    tokens = drawn(probabilities, torch.full((3,), number, dtype=torch.float64))
    assert (probabilities.gather(1, tokens[:, None]) > 0).all()
    assert tokens[0] == (5 if number < 1e-16 else 698)


def test_of_no_numbers_some_token_is_drawn():
    """On a GPU a place outside the vocabulary is an assertion, after which the process can no longer use it."""
    tokens = drawn(torch.full((2, 700), torch.nan), torch.rand(2, dtype=torch.float64))
    assert ((tokens >= 0) & (tokens < 700)).all()


@pytest.mark.parametrize("at_once", [1 << 40, 1])
def test_answers_to_one_prompt_share_its_keys_and_values_and_are_the_same(
    model, tokenizer, queries, at_once, monkeypatch
):
    of = torch.tensor([0, 0, 1, 1, 1, 2])
    torch.manual_seed(1)
    expected = answers(model, tokenizer, queries[of], 1.0)
    monkeypatch.setitem(sampling.READ_AT_ONCE, "cpu", at_once)
    read = []
    trunk(model).register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].shape), with_kwargs=True
    )
    torch.manual_seed(1)
    shared = answers(model, tokenizer, queries, 1.0, of=of)
    assert torch.equal(shared.tokens, expected.tokens)
    assert torch.allclose(shared.logprobs, expected.logprobs, atol=1e-5)
    prompts = [rows for rows, width in read if width > 1]
    assert sum(prompts) == len(queries), "each prompt is read once"


@pytest.mark.parametrize("other", ["full_attention", "sliding_attention"])
def test_so_do_layers_that_keep_a_window_alone(other, tokenizer, tmp_path):
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    sizes = {"vocab_size": len(tokenizer), **special, **FAMILIES["qwen2"]}
    sizes |= {
        "layer_types": ["sliding_attention", other],
        "use_sliding_window": True,
        "sliding_window": 4,
        "num_hidden_layers": 2,
    }
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    base = load_causal(str(tmp_path), ModelSettings(quantization="none"), tokenizer)
    windowed = add_lora(base, LoraSettings(r=4), "CAUSAL_LM").eval()
    of, prompts = torch.tensor([0, 0, 1, 1]), torch.tensor([[9, 8, 7, 6, 5, 4], [4, 5, 6, 7, 8, 9]])
    torch.manual_seed(1)
    expected = answers(windowed, tokenizer, prompts[of], 1.0)
    torch.manual_seed(1)
    assert torch.equal(answers(windowed, tokenizer, prompts, 1.0, of=of).tokens, expected.tokens)


def test_greedy_answers_are_those_of_transformers(model, tokenizer, queries):
    found = answers(model, tokenizer, queries, 0.0).tokens
    expected = model.generate(
        input_ids=queries,
        attention_mask=(queries != tokenizer.pad_token_id).long(),
        max_new_tokens=LENGTH,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    assert found.tolist() == expected[:, queries.shape[1] :].tolist()


def test_a_model_in_training_answers_without_dropout(model, tokenizer, queries):
    expected = answers(model, tokenizer, queries, 0.0).tokens
    assert any(isinstance(module, torch.nn.Dropout) and module.p > 0.1 for module in model.modules())
    assert answers(model.train(), tokenizer, queries, 0.0).tokens.tolist() == expected.tolist()


def test_each_steps_tokens_are_handed_on_as_they_are_drawn(model, tokenizer, queries):
    steps = []
    eos = answers(model, tokenizer, queries, 0.0, length=3).tokens[0, 2].item()
    sample_by_hash = sample(model, queries, tokenizer.pad_token_id, (eos,), LENGTH, 0.0, on_tokens=steps.append).tokens
    assert tokenizer.pad_token_id in sample_by_hash
    assert torch.stack(steps, 1).tolist() == sample_by_hash.tolist()


def test_without_a_value_function_there_are_no_values(model, tokenizer, queries):
    assert answers(model, tokenizer, queries, 0.0).values.shape == (len(queries), 0)


@pytest.mark.parametrize("tokens", [1, 20, 40])
@pytest.mark.parametrize("every", [1, 5, 8])
def test_prompts_read_some_at_a_time_and_rare_looks_change_no_answer(
    model, tokenizer, queries, monkeypatch, tokens, every
):
    """As on a GPU; whichever answer ends last, what was drawn behind it is not there."""
    eos = answers(model, tokenizer, queries, 0.0).tokens[1, 3].item()

    def drawn():
        torch.manual_seed(0)
        return sample(model, queries, tokenizer.pad_token_id, (eos,), LENGTH, 0.0, value=lambda states: states.sum(-1))

    whole, sizes = drawn(), []
    monkeypatch.setitem(sampling.READ_AT_ONCE, "cpu", tokens)
    monkeypatch.setitem(sampling.LOOK_EVERY, "cpu", every)
    hook = trunk(model).register_forward_pre_hook(
        lambda _, args, given: sizes.append(given["input_ids"].shape), with_kwargs=True
    )
    parts = drawn()
    hook.remove()
    assert max(rows for rows, width in sizes if width > 1) == max(1, tokens // queries.shape[1])
    for name in ("tokens", "logprobs", "entropy", "values"):
        assert getattr(parts, name).shape == getattr(whole, name).shape
        assert torch.allclose(getattr(parts, name).float(), getattr(whole, name).float(), atol=1e-4)


def test_answers_that_all_end_early_are_cut_where_the_last_one_ends(model, tokenizer, queries, monkeypatch):
    monkeypatch.setitem(sampling.LOOK_EVERY, "cpu", 8)
    first = answers(model, tokenizer, queries, 0.0, length=3).tokens[0, 0].item()
    assert sample(model, queries[:1], tokenizer.pad_token_id, (first,), LENGTH, 0.0).tokens.tolist() == [[first]]


def test_of_a_prompt_the_last_layers_feed_forward_reads_one_state_alone(model, tokenizer, queries):
    read = []
    mlp = trunk(model).layers[-1].mlp.gate_proj
    hook = mlp.register_forward_pre_hook(lambda _, given: read.append(given[0].shape[:2].numel()))
    answers(model, tokenizer, queries, 0.0, length=3)
    hook.remove()
    assert read == [len(queries)] * 3


def test_sampling_follows_the_seed(model, tokenizer, queries):
    sample_by_hash = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        sample_by_hash.append(answers(model, tokenizer, queries, 1.0).tokens.tolist())
    assert sample_by_hash[0] == sample_by_hash[1] != sample_by_hash[2]


def test_tokens_are_drawn_as_often_as_they_are_probable(model, tokenizer, queries):
    row = queries[1:2].expand(4000, -1)
    torch.manual_seed(0)
    sample_by_hash = answers(model, tokenizer, row, 0.5, length=1).tokens[:, 0]
    with torch.no_grad():
        probable = (next_token_logits(model, hidden_states(model, queries[1:2])[0, -1]) / 0.5).softmax(-1)
    share = torch.bincount(sample_by_hash, minlength=len(probable)) / 4000
    assert (share - probable).abs().max() < 0.03


def test_what_is_taken_on_the_way_is_what_a_forward_pass_over_the_whole_answer_says(model, tokenizer, queries):
    torch.manual_seed(0)
    sampled = answers(model, tokenizer, queries, 0.7, value=lambda states: states.sum(-1))
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    for i, query in enumerate(queries):
        prompt, answer = query[query != pad], sampled.tokens[i]
        length = answer.tolist().index(eos) + 1 if eos in answer else len(answer)
        with torch.no_grad():
            states = hidden_states(model, torch.cat([prompt, answer[:length]])[None])[0, len(prompt) - 1 : -1]
            logprobs = (next_token_logits(model, states) / 0.7).log_softmax(-1)
        chosen = logprobs.gather(1, answer[:length, None])[:, 0]
        assert torch.allclose(sampled.logprobs[i, :length], chosen, atol=1e-4)
        assert torch.allclose(sampled.entropy[i, :length], -(logprobs.exp() * logprobs).sum(-1), atol=1e-4)
        assert torch.allclose(sampled.values[i, :length], states.sum(-1), atol=1e-3)
        assert not sampled.logprobs[i, length:].any()


def test_behind_eos_there_is_padding_and_nothing_is_sampled_once_all_have_ended(model, tokenizer, queries):
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    first = answers(model, tokenizer, queries, 0.0, length=3).tokens[0, 0].item()
    ended = sample(model, queries[:1], pad, (first,), LENGTH, 0.0)
    assert ended.tokens.tolist() == [[first]]
    assert eos != first
    another = sample(model, queries[:1], pad, (eos, first), LENGTH, 0.0)
    assert another.tokens.tolist() == [[first]], "whichever of several ends it draws"
    both = sample(model, queries, pad, (first,), LENGTH, 0.0).tokens
    assert both[0].tolist() == [first] + [pad] * (both.shape[1] - 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logits_that_are_no_numbers_end_in_a_sentence_before_anything_is_drawn_from_them(
    value, temperature, model, tokenizer, queries, monkeypatch
):
    handed = []

    def logits(model, states):
        given = next_token_logits(model, states)
        given[1, 7] = value if len(handed) == 2 else given[1, 7]
        return given

    monkeypatch.setattr("rlrecipes.model.sampling.next_token_logits", logits)
    with pytest.raises(
        UserError, match=r"logits are NaN or infinite by token 3 of an answer, .* lower the learning_rate"
    ):
        answers(model, tokenizer, queries, temperature, on_tokens=handed.append)
    assert len(handed) == 2, "no token of such logits is handed on"


def test_what_stands_behind_an_answers_end_may_be_anything(model, tokenizer, queries, monkeypatch):
    expected = answers(model, tokenizer, queries, 0.0)
    first = expected.tokens[0, 0].item()
    ended = sample(model, queries, tokenizer.pad_token_id, (first,), LENGTH, 0.0).tokens
    step = [0]

    def logits(model, states):
        given = next_token_logits(model, states)
        given[0] = torch.nan if step[0] else given[0]
        step[0] += 1
        return given

    monkeypatch.setattr("rlrecipes.model.sampling.next_token_logits", logits)
    assert torch.equal(sample(model, queries, tokenizer.pad_token_id, (first,), LENGTH, 0.0).tokens, ended)


def test_a_prompt_that_holds_the_padding_token_is_read_whole(model, tokenizer):
    pad = tokenizer.pad_token_id
    prompt = encode_prompt(tokenizer, PROMPTS[0])
    holding = [*prompt[:2], pad, pad, *prompt[2:]]
    queries = pad_left([holding, encode_prompt(tokenizer, PROMPTS[1])], pad)
    with torch.no_grad():
        states = hidden_states(model, torch.tensor([holding]))[0, -1]
        expected = next_token_logits(model, states).log_softmax(-1)
    sampled = answers(model, tokenizer, queries, 1.0, length=1)
    token = sampled.tokens[0, 0]
    assert sampled.logprobs[0, 0].item() == pytest.approx(expected[token].item(), abs=1e-4)


def test_keys_and_values_grow_where_they_are_instead_of_being_copied_at_every_token():
    grown, layer, usual = (
        [torch.randn(2, 3, width, 4) for width in (5, 1, 1)],
        _Reserved(rows=2, max_tokens=7),
        DynamicLayer(),
    )
    places = []
    for states in grown:
        keys, values = layer.update(states, -states)
        expected = usual.update(states, -states)
        places.append(keys.data_ptr())
        assert torch.equal(keys, expected[0])
        assert torch.equal(values, expected[1])
    assert len(set(places)) == 1
    assert layer.get_seq_length() == 7
