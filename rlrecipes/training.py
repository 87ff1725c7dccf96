"""What the training stages share: arguments, row checks, and weights kept in the precision that was asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.training_args import OptimizerNames

from rlrecipes.console import say
from rlrecipes.errors import UserError
from rlrecipes.profile import PPOSettings, TrainingSettings
from rlrecipes.recipe import unknown


def training_arguments(
    settings: TrainingSettings | PPOSettings, folder: Path, seed: int, ours: Collection[str] = ()
) -> dict[str, Any]:
    """A stage's table as keyword arguments of its TRL configuration, without the keys that are `ours`.

    Raises:
        UserError: there is no such optimizer.
    """
    if settings.optim not in (known := [str(name.value) for name in OptimizerNames]):
        raise UserError(unknown("optimizer", settings.optim, known, f"there are {', '.join(known)}"))
    table = dataclasses.asdict(settings).items()
    arguments = {key: value for key, value in table if value is not None and key not in ours}
    return arguments | {
        "output_dir": str(folder),
        "seed": seed,
        "bf16": False,  # the weights are loaded in the dtype that is meant; no autocast on top
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",  # our tracker takes the logs
        "disable_tqdm": True,  # our progress bar
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def length_of(settings: TrainingSettings) -> str:
    """How long a stage trains, in words."""
    steps, epochs = settings.max_steps, settings.num_train_epochs
    return f"{steps} steps of {settings.per_device_train_batch_size} rows" if steps > 0 else f"{epochs:g} epochs"


def check_rows(what: str, rows: int, batch: int, setting: str) -> None:
    """Refuses data that cannot fill one batch.

    Raises:
        UserError: with both numbers and the setting to lower.
    """
    if rows < batch:
        raise UserError(
            f"{rows} {what} cannot fill one batch of {batch}; bring more data or set {setting}={max(rows, 1)}"
        )


def record_drops(what: str, before: int, after: int, longest: int) -> int:
    """Counts the rows that were too long for the window, and says so.

    Raises:
        UserError: all of them were.
    """
    if before and not after:
        raise UserError(
            f"all {before} {what} are longer than {longest} tokens; raise model.max_length or shorten the rows"
        )
    if after < before:
        say(f"  {before - after} of {before} {what} left out: longer than {longest} tokens")
    return before - after


def lora_in_float32(model: nn.Module) -> None:
    """Undoes TRL's cast of a quantized model's adapters to bfloat16, where 1e-3 of a weight is lost and CPUs crawl."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def check_finite(loss: float, stage: str, setting: str) -> None:
    """Refuses a model that training has broken.

    Raises:
        UserError: the loss is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise UserError(f"the {stage} loss became {loss}, so the adapter is useless; lower {setting} and run it again")
