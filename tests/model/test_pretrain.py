"""The embedded base learns what its documents answer."""

import torch
from conftest import tiny_tokenizer
from gradients import assert_alike
from transformers import AutoModelForCausalLM

from rlrecipes.model.pretrain import IGNORED, ResumableTrainer
from rlrecipes.model.tokens import pad_right


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
