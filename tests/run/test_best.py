"""The weights of the step that did best on rows set aside are kept, and training stops where it stays behind."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from rlrecipes.profile import SFTSettings
from rlrecipes.run.best import Best, evaluation
from rlrecipes.run.checkpoint import Checkpoints
from rlrecipes.run.interrupts import Interrupted
from rlrecipes.run.resume import Resumable, training_arguments


class Mean(Resumable, Trainer):
    """Learns one number by squared error; it passes 1, where the rows set aside are, on its way to 3."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        loss = (model.number - inputs["target"]).square().mean()
        return (loss, {}) if return_outputs else loss


@pytest.fixture
def train(tmp_path):
    """Trains for `steps`, stopping after step `until` as a signal would."""

    def run(folder, steps=40, until=None, aside=1.0, **settings):
        (tmp_path / folder).mkdir(exist_ok=True)
        model = nn.Module()
        model.number = nn.Parameter(torch.zeros(()))
        settings = SFTSettings(
            **{
                "max_steps": steps,
                "per_device_train_batch_size": 1,
                "learning_rate": 0.1,
                "lr_scheduler_type": "constant",
            }
            | settings
        )
        rows = [{"target": aside}] * 2 if settings.keep == "best" else []
        trainer = Mean(
            model,
            TrainingArguments(
                **training_arguments(TrainingArguments, settings, tmp_path / folder, 0),
                **evaluation(len(rows)),
                remove_unused_columns=False,
            ),
            train_dataset=[{"target": 3.0}] * steps,
            eval_dataset=rows or None,
            data_collator=lambda rows: {"target": torch.tensor([row["target"] for row in rows])},
        )
        trainer.can_return_loss, trainer.label_names = True, []
        checkpoints = Checkpoints(tmp_path / folder, 1000)
        checkpoints.due = lambda: trainer.state.global_step == until
        save = checkpoints.save

        def save_and_stop(step, state):
            save(step, state)
            raise Interrupted

        checkpoints.save = save_and_stop
        try:
            trainer.train_from(checkpoints, "sft", Best(settings, len(rows)))
        except Interrupted:
            return None
        return trainer

    return run


def test_the_best_weights_are_kept_and_not_the_last(train):
    trainer = train("whole", patience=0)
    assert trainer.state.global_step == 40
    assert abs(trainer.model.number.item() - 1) < 0.25
    assert trainer.kept["kept"]["step"] in (8, 12)
    assert trainer.kept["kept"]["of"] == 40
    assert trainer.kept["kept"]["loss"] == pytest.approx((trainer.model.number.item() - 1) ** 2, abs=1e-6)


def test_training_stops_when_the_loss_stayed_behind_as_often_as_patience_says(train):
    trainer = train("patient", patience=2)
    assert trainer.state.global_step == trainer.kept["kept"]["step"] + 2 * 4


def test_the_last_step_is_measured_whatever_their_number(train):
    trainer = train("odd", steps=43, patience=0)
    assert [row["step"] for row in trainer.state.log_history if "eval_loss" in row][-1] == 43


def test_without_rows_set_aside_the_last_weights_stay(train):
    trainer = train("last", keep="last")
    assert trainer.kept == {}
    assert trainer.model.number.item() > 2


@pytest.mark.parametrize("until", [5, 8, 13, 16])
def test_an_interrupted_training_keeps_and_stops_as_an_uninterrupted_one(train, until):
    whole = train("whole", patience=2)
    assert train("parts", patience=2, until=until) is None
    parts = train("parts", patience=2)
    assert torch.equal(parts.model.number, whole.model.number)
    assert (parts.kept, parts.state.global_step) == (whole.kept, whole.state.global_step)
