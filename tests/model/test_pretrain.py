"""The embedded base learns what its documents answer."""

import dataclasses

import torch
from conftest import tiny_tokenizer
from gradients import assert_alike
from transformers import AutoModelForCausalLM

from rlrecipes.model.pretrain import IGNORED, ResumableTrainer, _batches
from rlrecipes.model.tokens import pad_right
from rlrecipes.profile import BaseSettings
from rlrecipes.recipe import Example, user

DOCUMENTS = [Example(user("Say it" + " again" * (i % 7)), (f"It, {i}.", "Never read.")) for i in range(30)]
SETTINGS = BaseSettings(per_device_train_batch_size=4)


def test_the_prompt_of_a_document_is_read_and_its_answer_learned():
    tokenizer = tiny_tokenizer()
    (batch,) = _batches(tokenizer, DOCUMENTS[1:2], SETTINGS)
    (row,) = batch["rows"]
    assert tokenizer.decode(row["ids"]) == "<user>Say it again<assistant>It, 1.<end>"
    learned = [label for label in row["labels"] if label != IGNORED]
    assert tokenizer.decode(learned) == "It, 1.<end>"
    assert row["labels"][-len(learned) :] == row["ids"][-len(learned) :] == learned


def test_a_batch_holds_documents_of_like_length_and_each_is_in_one_whatever_the_seed_draws():
    tokenizer, drawn = tiny_tokenizer(), []
    for seed in (0, 0, 1):
        batches = _batches(tokenizer, DOCUMENTS, dataclasses.replace(SETTINGS, seed=seed))
        assert [len(batch["rows"]) for batch in batches] == [4] * 7 + [2]
        rows = [row for batch in batches for row in batch["rows"]]
        lengths = [len(row["ids"]) for row in rows]
        assert lengths == sorted(lengths)
        drawn.append([tokenizer.decode(row["ids"]) for row in rows])
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(drawn[0]) == sorted(drawn[2])
    assert len(set(drawn[0])) == 30


def test_its_loss_and_gradients_are_those_of_the_whole_models_cross_entropy_on_the_answers(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint.model)
    pad = tiny_tokenizer().pad_token_id
    rows, labels = [[5, 6, 7, 8, 9], [6, 5, 4]], [[IGNORED, IGNORED, 7, 8, 9], [IGNORED, 5, 4]]
    ids, targets = pad_right(rows, pad), pad_right(labels, IGNORED)
    expected = model(input_ids=ids, attention_mask=(ids != pad).long(), labels=targets).loss
    found = ResumableTrainer.compute_loss(None, model, {"ids": ids, "labels": targets})
    assert torch.allclose(found, expected, atol=1e-5)
    learned, plainly_learned = (torch.autograd.grad(loss, list(model.parameters())) for loss in (found, expected))
    assert_alike(learned, plainly_learned, size=0.01)
