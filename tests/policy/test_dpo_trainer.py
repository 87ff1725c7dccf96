"""DPO's loss, gradients and training are TRL's, and a batch's logits never exist."""

import copy
import dataclasses
import math

import pytest
import torch
from conftest import scatter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trl import DPOConfig, DPOTrainer

from rlrecipes.errors import UserError
from rlrecipes.model import likelihood
from rlrecipes.model.adapters import add_in_place, load_adapter
from rlrecipes.model.loading import load_causal
from rlrecipes.model.tokens import load_tokenizer
from rlrecipes.policy import dpo_trainer as ours
from rlrecipes.policy.dpo import answer_logprobs, dpo_loss
from rlrecipes.profile import DPOSettings, ModelSettings
from rlrecipes.run.checkpoint import PartsCheckpoints, load_newest
from rlrecipes.run.resume import training_arguments

LOSSES = [
    {"loss_type": "sigmoid"},
    {"loss_type": "hinge", "beta": 0.3},
    {"loss_type": "ipo"},
    {"loss_type": "robust", "label_smoothing": 0.2},
    {"loss_type": "sigmoid,sft", "loss_weights": "1,0.2"},
    {"loss_type": "ipo,sft,hinge"},
]
NAMES = [each["loss_type"] for each in LOSSES]


class PlainDPO(DPOTrainer):
    """TRL's trainer on token ids."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint.model)


@pytest.fixture
def fresh(checkpoint, tokenizer):
    """Makes a base with the SFT adapter, which training moves."""

    def make():
        base = load_causal(str(checkpoint.model), ModelSettings(quantization="none"), tokenizer)
        model = load_adapter(base, checkpoint.sft / "adapter", "default")
        model.set_adapter("default")
        return model

    return make


def rows(count=12):
    """Comparisons of all lengths."""
    torch.manual_seed(1)

    def ids(most):
        return torch.randint(4, 200, (int(torch.randint(1, most, ())),)).tolist()

    return [{"prompt_ids": ids(9), "chosen_ids": [*ids(12), 1], "rejected_ids": [*ids(12), 1]} for _ in range(count)]


def theirs(model, tokenizer, settings, data, folder):
    arguments = training_arguments(DPOConfig, settings, folder, 0)
    own = {"loss_type": settings.names, "loss_weights": [*settings.losses.values()], "max_length": None}
    trainer = PlainDPO(
        model,
        args=DPOConfig(**arguments | own, router_aux_loss_coef=0.0),
        train_dataset=ours.Dataset.from_list(data),
        processing_class=tokenizer,
    )
    add_in_place(model, "ref")
    return trainer


def complete(model, data, tmp_path, size=4):
    checkpoints = PartsCheckpoints(tmp_path, math.inf, None, 1)
    return ours.with_reference(data, ours.reference_logprobs(model, data, size, 0, checkpoints)), checkpoints


def made(model, tokenizer, settings, data, folder):
    return ours.dpo_trainer(settings, 0, model, tokenizer, data, (), folder, [])


def gradients(trainer, model, data):
    scatter(model, "default", 0.2)  # away from the reference
    inputs = trainer.data_collator(data)
    model.train()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", LOSSES, ids=NAMES)
def test_loss_and_gradients_are_trls(settings, fresh, tokenizer, tmp_path):
    settings, data = DPOSettings(max_steps=1, per_device_train_batch_size=12, **settings), rows()
    plain = fresh()
    torch.manual_seed(0)
    expected, by_theirs = gradients(theirs(plain, tokenizer, settings, data, tmp_path), plain, data)
    model = fresh()
    data, _ = complete(model, data, tmp_path)
    torch.manual_seed(0)
    loss, by_ours = gradients(made(model, tokenizer, settings, data, tmp_path), model, data)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5, rel=1e-5)
    assert by_ours.keys() == by_theirs.keys()
    assert max(float(gradient.abs().max()) for gradient in by_theirs.values()) > 1e-3
    for name, gradient in by_theirs.items():
        torch.testing.assert_close(by_ours[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_training_ends_with_trls_weights_and_says_what_it_says(checkpointed, fresh, tokenizer, tmp_path):
    settings = DPOSettings(
        **{"max_steps": 4, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "logging_steps": 1},
        **{"learning_rate": 1e-2, "optim": "sgd"},
    )
    data, plain, model = rows(), fresh(), fresh()
    expected = theirs(plain, tokenizer, settings, data, tmp_path)
    expected.train()
    data, checkpoints = complete(model, data, tmp_path)
    ours_too = dataclasses.replace(settings, gradient_checkpointing=checkpointed)
    trainer = made(model, tokenizer, ours_too, data, tmp_path)
    trainer.train_from(checkpoints, "dpo")
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, plain.get_parameter(name), atol=1e-5, rtol=1e-5)
    for said, theirs_said in zip(trainer.state.log_history[:4], expected.state.log_history[:4], strict=True):
        assert {key for key in said if "/" in key} == {key for key in theirs_said if "/" in key} - {
            *("logits/chosen", "logits/rejected")
        }
        for key in said:
            assert said[key] == pytest.approx(theirs_said[key], abs=2e-4, rel=1e-4), key


class Rows(TorchDispatchMode):
    """Notes how many rows as wide as the vocabulary each new tensor has."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.found = vocabulary, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.found |= {t.numel() // self.vocabulary for t in tensors if t.dim() and t.shape[-1] == self.vocabulary}
        return result


def test_a_batchs_logits_never_exist(fresh, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(likelihood.AT_ONCE, "cpu", 4 * len(tokenizer))
    model, settings = fresh(), DPOSettings(max_steps=1, loss_type="sigmoid,sft")
    data, _ = complete(model, rows(), tmp_path)
    trainer = made(model, tokenizer, settings, data, tmp_path)
    inputs = trainer.data_collator(data)
    with Rows(len(tokenizer)) as seen:
        trainer.compute_loss(model, inputs).backward()
    layer = model.get_output_embeddings().weight.shape[1]
    assert max(seen.found - {layer}) == 4, "the output layer itself is as wide"


def test_an_answers_log_probability_is_that_of_its_tokens_alone(fresh, tokenizer):
    model, ids = fresh().eval(), torch.randint(4, 200, (3, 10))
    answers = torch.zeros_like(ids)
    answers[0, 4:9], answers[1, 2:], answers[2, 9:] = 1, 1, 1
    with torch.no_grad():
        whole = model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
        found = answer_logprobs(model, ids, answers)
    torch.testing.assert_close(found, (whole * answers[:, 1:]).sum(1))


def test_the_reference_is_read_once_and_kept(fresh, tmp_path, monkeypatch):
    model, data = fresh(), rows()
    first, checkpoints = complete(model, data, tmp_path, size=5)
    assert model.training
    monkeypatch.setattr(ours, "_read", lambda *_: pytest.fail("it was read again"))
    kept = PartsCheckpoints(tmp_path, math.inf, None, 1)
    again = ours.with_reference(data, ours.reference_logprobs(model, data, 5, 0, kept))
    assert again == first
    assert kept.newest() is None, "training begins"
    assert checkpoints.finished[0]["reference"].shape == (12, 2)


def test_a_reference_that_was_interrupted_goes_on_where_it_was(fresh, tmp_path, monkeypatch):
    model, data, read = fresh(), rows(), []
    whole, _ = complete(model, data, tmp_path / "whole", size=2)
    usual = ours._read

    def ends(model, collate, batch):
        if len(read) == 4:
            raise KeyboardInterrupt
        read.append(batch)
        return usual(model, collate, batch)

    monkeypatch.setattr(ours, "_read", ends)
    checkpoints = PartsCheckpoints(tmp_path, 0, None, 1)
    with pytest.raises(KeyboardInterrupt):
        ours.reference_logprobs(model, data, 2, 0, checkpoints)
    monkeypatch.setattr(ours, "_read", lambda *given: (read.append(given[2]), usual(*given))[1])
    again = PartsCheckpoints(tmp_path, 0, None, 1)
    assert ours.with_reference(data, ours.reference_logprobs(model, data, 2, 0, again)) == whole
    assert sorted(len(row["prompt_ids"]) for batch in read for row in batch) == sorted(
        len(row["prompt_ids"]) for row in data
    ), "each was read once"


def test_a_reference_that_is_no_number_is_told_before_anything_is_learned(fresh, tmp_path):
    model = fresh()
    model.get_parameter("base_model.model.model.norm.weight").data.fill_(math.nan)
    with pytest.raises(UserError, match="gives 12 of 12 comparisons no finite log-probability") as error:
        complete(model, rows(), tmp_path)
    assert "choose another model, or another model.dtype" in str(error.value)


def test_the_policy_begins_as_the_reference_does(fresh, tokenizer, tmp_path):
    model = fresh()
    data, _ = complete(model, rows(), tmp_path)
    trainer = made(model, tokenizer, DPOSettings(max_steps=1), data, tmp_path)
    assert trainer.compute_loss(model, trainer.data_collator(data)).item() == pytest.approx(math.log(2), abs=1e-6)
    assert list(model.peft_config) == ["default"], "TRL's copy of the adapter takes no memory"
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_a_loss_is_a_mean_over_comparisons_and_the_sft_term_over_tokens():
    policy, reference = torch.tensor([-4.0, -8.0, -2.0, -3.0]), torch.tensor([-4.0, -6.0, -3.0, -3.0])
    tokens = torch.tensor([2, 4, 1, 2])
    assert float(dpo_loss({"sft": 0.5}, policy, reference, tokens, 1.0, 0)) == pytest.approx(0.5 * 12 / 6)
    hinge = (max(0, 1 - (0 - 1)) + max(0, 1 - (-2 - 0))) / 2
    assert float(dpo_loss({"hinge": 1.0}, policy, reference, tokens, 1.0, 0)) == pytest.approx(hinge)


@pytest.mark.parametrize("stop", [2, 4])
def test_a_training_that_was_interrupted_ends_with_the_same_bytes(stop, fresh, tokenizer, tmp_path):
    settings = DPOSettings(max_steps=5, per_device_train_batch_size=4, logging_steps=2, learning_rate=1e-2)

    def train(folder, hook=None):
        model = fresh()
        data, _ = complete(model, rows(), folder)
        checkpoints = PartsCheckpoints(folder, 0, None, 1)
        ours.reference_logprobs(model, data, 4, 0, checkpoints)
        trainer = made(model, tokenizer, settings, data, folder)
        usual = trainer.training_step

        def step(*arguments, **named):
            if trainer.state.global_step == hook:
                raise KeyboardInterrupt
            return usual(*arguments, **named)

        trainer.training_step = step
        loss = trainer.train_from(checkpoints, "dpo")
        return loss, copy.deepcopy(trainer.state.log_history), {n: p.clone() for n, p in model.named_parameters()}

    loss, log, weights = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parted", stop)
    assert load_newest(tmp_path / "parted" / "checkpoints").state["stage"]["begun"]["step"] == stop
    again, log_again, weights_again = train(tmp_path / "parted")
    assert again == loss
    assert [row["loss"] for row in log_again if "loss" in row] == [row["loss"] for row in log if "loss" in row]
    assert all(torch.equal(weight, weights_again[name]) for name, weight in weights.items())
