"""A loss, a gradient or a weight that is no number never becomes a result; training that went apart is told."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer, TrainingArguments

from rlrecipes.errors import UserError
from rlrecipes.profile import SFTSettings
from rlrecipes.run.checkpoint import Checkpoints, load_newest
from rlrecipes.run.resume import Resumable, check_weights, training_arguments


class Mean(Resumable, Trainer):
    """Learns one number by squared error."""

    def compute_loss(self, model, inputs, *_, **__):
        return (model.number - inputs["target"]).square().mean()


@pytest.fixture
def train(tmp_path):
    """Trains on `targets`, one a step; returns trainer, checkpoints and what stopped it."""

    def run(targets, hook=None, **settings):
        model = nn.Module()
        model.number = nn.Parameter(torch.zeros(()))
        if hook is not None:
            model.number.register_hook(hook)
        settings = {"learning_rate": 0.1, **settings}
        settings = SFTSettings(max_steps=len(targets), per_device_train_batch_size=1, **settings)
        arguments = training_arguments(TrainingArguments, settings, tmp_path, 0)
        trainer = Mean(
            model,
            TrainingArguments(**arguments, remove_unused_columns=False, train_sampling_strategy="sequential"),
            train_dataset=[{"target": float(target)} for target in targets],
            data_collator=lambda rows: {"target": torch.tensor([row["target"] for row in rows])},
        )
        checkpoints = Checkpoints(tmp_path, 0)
        try:
            return trainer, trainer.train_from(checkpoints, "sft")
        except UserError as error:
            return trainer, str(error)

    return run


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("logging_steps", [1, 10])
def test_a_loss_that_is_no_number_stops_before_its_step_and_leaves_no_checkpoint(
    train, tmp_path, broken, logging_steps
):
    trainer, said = train([1, 1, broken, 1], logging_steps=logging_steps)
    assert said.startswith("the loss of sft is ")
    assert said.endswith(" in step 3, that step was not taken; lower sft.learning_rate and run it again")
    assert 0 < trainer.model.number.item() < 1
    assert load_newest(tmp_path / "checkpoints") is None


def test_a_gradient_that_is_no_number_stops_before_its_step(train):
    trainer, said = train([1, 1, 1], hook=lambda gradient: gradient * (math.nan if gradient > -1.9 else 1))
    assert "the gradient of sft is nan in step 2, that step was not taken" in said
    assert math.isfinite(trainer.model.number.item())


def test_in_the_first_step_the_model_is_at_fault_and_not_the_learning_rate(train):
    _, said = train([math.nan, 1])
    assert "in step 1, before anything was learned" in said
    assert "choose another model, or another model.dtype" in said
    assert "learning_rate" not in said


def test_a_loss_worse_than_guessing_and_a_warm_up_that_never_ends_are_told(train):
    trainer, loss = train([5, 5, 5], logging_steps=1)
    assert trainer.warnings(loss, 100.0) == []
    (apart,) = trainer.warnings(loss, 1.0)
    assert apart.startswith("SFT ended worse than guessing: loss ")
    assert " against 1; lower sft.learning_rate (see " in apart
    trainer, loss = train([5, 5, 5], warmup_steps=3)
    (warm,) = trainer.warnings(loss, 100.0)
    assert "the 3 steps of sft are over before its warm-up of 3" in warm


def test_training_that_ends_above_the_loss_of_its_first_batch_is_told_unless_better_weights_were_kept(train):
    trainer, loss = train([2, 2, 2, 2], learning_rate=50.0)
    assert trainer.start == 4
    (said,) = trainer.warnings(loss, 1e6, trainer.start)
    assert said.startswith("SFT ended worse than it began: loss ")
    assert " against 4; lower sft.learning_rate (see " in said
    assert trainer.warnings(loss, 1e6) == []  # a reward model's first loss is a guess, and a batch's chance
    trainer.kept = {"kept": {"loss": 4.5}}
    assert trainer.warnings(loss, 1e6, trainer.start) == []


def test_training_that_ends_below_its_start_is_not_told(train):
    trainer, loss = train([2, 2, 2, 2])
    assert trainer.warnings(loss, 1e6, trainer.start) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("file", ["adapter/adapter_model.safetensors", "value_head.safetensors"])
def test_weights_that_are_no_numbers_are_refused_wherever_they_stand(tmp_path, file, broken, dtype):
    draft = tmp_path / ".ppo"
    (draft / "adapter").mkdir(parents=True)
    (draft / "checkpoints" / "step-000001").mkdir(parents=True)
    for name in (file, "value_head.safetensors", "checkpoints/step-000001/t.safetensors"):
        save_file({"a": torch.ones(2, 2, dtype=dtype)}, draft / name)
    check_weights("ppo", draft)
    assert (draft / "checkpoints").exists()
    save_file(
        {"a": torch.tensor([1.0, broken, broken], dtype=dtype), "ids": torch.ones(2, dtype=torch.long)}, draft / file
    )
    with pytest.raises(UserError) as error:
        check_weights("ppo", draft)
    assert str(error.value).startswith(
        f"2 of 5 weights of ppo/{file} became NaN or infinite, so nothing is kept; lower ppo."
    )
    assert not (draft / "checkpoints").exists(), "the stage begins anew"
