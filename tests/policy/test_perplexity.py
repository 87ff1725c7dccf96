"""The perplexity of answers is the base's own, over their tokens and no others."""

import math

import pytest
import torch


def test_the_perplexity_is_that_of_the_bare_base_over_the_answers_tokens(checkpoint):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from rlrecipes.model.tokens import encode, load_tokenizer
    from rlrecipes.policy.answers import Answer, Voice
    from rlrecipes.policy.perplexity import perplexity
    from rlrecipes.recipe import Example, user

    tokenizer = load_tokenizer(checkpoint.model)
    base = AutoModelForCausalLM.from_pretrained(checkpoint.model, dtype=torch.float32)
    examples = [Example(user("Hello there")), Example(user("Hi")), Example(user("And you?"))]
    answers = [Answer("Well, well.", True), Answer("No end of", False), Answer("", True)]

    rows = [encode(tokenizer, e.prompt, a.text) for e, a in zip(examples, answers, strict=True)]
    nats, count = 0.0, 0
    for row, answer in zip(rows, answers, strict=True):
        said = row.answer if answer.ended else row.answer[:-1]
        logits = base(torch.tensor([row.prompt + said])).logits[0, len(row.prompt) - 1 : -1].log_softmax(-1)
        nats -= logits.gather(1, torch.tensor(said)[:, None]).sum().item()
        count += len(said)

    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    voice = Voice(model, tokenizer, [])
    for size in (1, 2, 100):
        found = perplexity(voice, answers, examples, size)
        assert found["value"] == pytest.approx(math.exp(nats / count), rel=1e-4)
        assert found["low"] <= found["value"] <= found["high"]
    assert perplexity(voice, [Answer("", False)], examples[:1], 1) == {}
