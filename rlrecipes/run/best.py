"""Keeps the weights of the step that does best on training rows set aside, and stops where it stays behind.

    {"step": 270, "of": 450, "rows": 128, "loss": 0.412}

The held-out split has no part in it: what is reported on those rows stays honest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from rlrecipes.profile import TrainingSettings
from rlrecipes.run.checkpoint import set_trainable, trainable
from rlrecipes.run.console import say

SHARE = 0.1
"""Of the steps: the loss on the rows set aside is taken ten times (Transformers reads shares of its `eval_steps`)."""


def evaluation(aside: int) -> dict[str, Any]:
    """Arguments of a Transformers trainer that evaluates on `aside` rows; none without rows."""
    return {"eval_strategy": "steps", "eval_steps": SHARE, "prediction_loss_only": True} if aside else {}


class Best(TrainerCallback):
    """The best weights so far; part of a trainer's checkpoints."""

    def __init__(self, settings: TrainingSettings, rows: int) -> None:
        self.settings, self.rows = settings, rows
        self.step, self.loss, self.worse = 0, math.inf, 0
        self.weights: dict[str, torch.Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "loss": self.loss, "worse": self.worse, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.loss, self.worse = state["step"], state["loss"], state["worse"]
        self.weights = dict(state["weights"])

    def restore(self, model: Any, last: int) -> dict[str, Any]:
        """Puts the best weights into the model, and returns what `done.json` records; nothing where none were kept."""
        if not self.weights:
            return {}
        set_trainable(model, self.weights)
        say(f"  kept step {self.step} of {last}: loss {self.loss:.3f} on {self.rows} training rows set aside")
        return {"kept": {"step": self.step, "of": last, "rows": self.rows, "loss": round(self.loss, 6)}}

    @property
    def exhausted(self) -> bool:
        """Whether the loss stayed behind as often as `patience` allows."""
        return 0 < self.settings.patience <= self.worse

    # Transformers calls the methods below.

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.rows and state.global_step >= state.max_steps:
            control.should_evaluate = True
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> Any:
        loss = metrics["eval_loss"]
        if loss < self.loss:
            weights = {name: tensor.to("cpu", copy=True) for name, tensor in trainable(kwargs["model"]).items()}
            self.step, self.loss, self.worse, self.weights = state.global_step, loss, 0, weights
        else:
            self.worse += 1
        if self.exhausted:
            control.should_training_stop = True
        return control
