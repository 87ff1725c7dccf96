"""The table of a stage that learns from rows as they are: SFT, the reward model, DPO and `distill`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from rlrecipes.profile.values import CONFIG, MOST, NONE, Count, CountOrZero, Positive, Rate, Switch, Whole, ZeroOrMore


@dataclass(frozen=True, config=CONFIG)
class TrainingSettings:
    """What SFT, the reward model, DPO and `distill` share (`transformers.TrainingArguments`)."""

    max_steps: Annotated[Whole, Field(le=MOST)] = -1
    """Optimizer steps; -1: `num_train_epochs` says how long."""
    num_train_epochs: Annotated[Positive | None, NONE] = None
    """Passes over the data. A positive `max_steps` on the command line takes their place; both in one place are refused."""
    per_device_train_batch_size: Count = 32
    gradient_accumulation_steps: Count = 1
    learning_rate: Rate = 2e-4
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: CountOrZero = 0
    weight_decay: ZeroOrMore = 0.0
    max_grad_norm: Positive = 1.0
    optim: str = "adamw_torch"
    gradient_checkpointing: Switch = False
    logging_steps: Count = 10
    keep: Literal["best", "last"] = "best"
    """Ours. `best`: the weights of the step, of ten, with the lowest loss on a tenth of the training rows, set aside for it;
    fewer than 200 rows have none to spare, and keep the last."""
    patience: CountOrZero = 3
    """Ours: how many of those ten losses in a row may be no lower before training stops; 0: any."""
