"""What the training stages share: arguments, checks of rows and numbers, exact resume, and adapters in float32."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from rlrecipes.errors import UserError
from rlrecipes.profile import PolicySettings, TrainingSettings
from rlrecipes.run.best import Best
from rlrecipes.run.checkpoint import Checkpoints, random_states, set_random_states, set_trainable, trainable
from rlrecipes.run.console import say
from rlrecipes.run.folder import CHECKPOINTS, write_json
from rlrecipes.run.gradients import own_numbers, sum_gradients
from rlrecipes.text import see

TITLES = {"sft": "SFT", "reward": "the reward model", "dpo": "DPO", "distill": "the policy that distill left"}


def training_arguments(
    config: type[TrainingArguments], settings: TrainingSettings | PolicySettings, folder: Path, seed: int
) -> dict[str, Any]:
    """A stage's table as keyword arguments of its TRL configuration, without our own settings, which TRL does not have."""
    names = {field.name for field in dataclasses.fields(config)}
    table = dataclasses.asdict(settings).items()
    arguments = {key: value for key, value in table if value is not None and key in names}
    return arguments | {
        "output_dir": str(folder),
        "seed": seed,
        "bf16": False,  # the weights already have the profile's dtype; no autocast on top
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "logging_nan_inf_filter": False,  # it would count a loss of NaN as the mean of those before it
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


def record_drops(what: str, before: int, after: int, max_tokens: int, asked: int) -> int:
    """Counts the rows that the window left out as too long, and says so.

    `asked` is the number of tokens that `model.max_length` alone would allow; where it is more, the model's own window is it.

    Raises:
        UserError: it left out all of them.
    """
    if before and not after:
        own = ", all that the model's own window has room for" if max_tokens < asked else ""
        longer = "name a model with a longer window" if own else "raise model.max_length"
        raise UserError(f"all {before} {what} are longer than {max_tokens} tokens{own}; {longer} or shorten the rows")
    if after < before:
        say(f"  {before - after} of {before} {what} left out: longer than {max_tokens} tokens")
    return before - after


def lora_in_float32(model: nn.Module) -> None:
    """Undoes TRL's cast of a quantized model's adapters to bfloat16, which is coarse (1e-3 of a weight) and slow on CPUs."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def check_weights(stage: str, draft: Path) -> None:
    """Refuses what a stage is about to leave, adapters and heads, if a weight is no number, and discards its checkpoints.

    Raises:
        UserError: with the file and the number of such weights.
    """
    for path in sorted(draft.rglob("*.safetensors")):
        if CHECKPOINTS in path.parts:
            continue
        tensors = load_file(path).values()
        if broken := sum(int((~torch.isfinite(tensor)).sum()) for tensor in tensors):
            shutil.rmtree(draft / CHECKPOINTS, ignore_errors=True)
            raise UserError(
                f"{broken} of {sum(tensor.numel() for tensor in tensors)} weights of {stage}/{path.relative_to(draft)} "
                f"became NaN or infinite, so nothing is kept; lower {stage}.learning_rate and run it again"
            )


class Resumable:
    """Lets a Transformers trainer go on from our checkpoints to the last bit; it stands before the trainer among the bases.

    We keep Transformers' own way to resume where it is exact: it finds its place in the data and then asks for the random
    states. We replace its files (pickles, not atomic) and add what it forgets: the loss so far, from which `train_loss`
    comes, and TRL's running metrics.
    """

    model: Any
    optimizer: Any
    lr_scheduler: Any
    state: Any
    control: Any
    args: Any
    _tr_loss: torch.Tensor
    checkpoints: Checkpoints
    checkpoint_state: dict[str, Any] | None
    best: Best | None = None
    kept: dict[str, Any]
    start: float = math.inf
    """The loss of the first batch, before anything was learned."""
    passes: tuple[int, int] = (-1, 0)
    """The step, and the micro-batches of it so far."""
    table: str
    """The profile's table whose learning rate this is."""

    def train_from(self, checkpoints: Checkpoints, table: str, best: Best | None = None) -> float:
        """Trains from the newest checkpoint on, or from the start; returns the mean loss over all steps.

        With `best`, the model ends with the best weights, and `kept` is what `done.json` records of them.

        Raises:
            Interrupted: a signal asked for the end; a checkpoint has been saved.
            UserError: a loss or a gradient is NaN or infinite; that step is not taken.
        """
        self.table, self.best = table, best
        checkpoints.check_room(self.model)
        newest = checkpoints.newest()
        self.checkpoints, self.checkpoint_state = checkpoints, newest.state if newest else None
        if self.checkpoint_state:
            if best:
                best.load_state_dict(self.checkpoint_state["best"])
            # Transformers reads this file when it resumes.
            checkpoints.folder.mkdir(exist_ok=True)
            write_json(checkpoints.folder / "trainer_state.json", self.checkpoint_state["trainer"])
        if best:
            self.add_callback(best)  # type: ignore[attr-defined]
        self.add_callback(_Saves(self))  # type: ignore[attr-defined]
        with checkpoints.finishing_first():
            output = self.train(resume_from_checkpoint=str(checkpoints.folder) if self.checkpoint_state else None)  # type: ignore[attr-defined]
        self.kept = best.restore(self.model, self.state.global_step) if best else {}
        return float(output.training_loss)

    def warnings(self, loss: float, guessing: float, start: float = math.inf) -> list[str]:
        """Sentences on a training that ran to its end and went wrong, from its mean loss and that of a model that guesses.

        `start` is the loss before the first step, where that says more than guessing. What is judged is the loss of the
        weights that are left; a batch's own chance is far below a quarter and 0.1 of it.
        """
        steps, warmup = self.state.max_steps, self.args.warmup_steps
        last = next((row["loss"] for row in reversed(self.state.log_history) if "loss" in row), loss)
        last = self.kept["kept"]["loss"] if self.kept else last
        before, what = min((start, "it began"), (guessing, "guessing"))
        sentences = []
        if last > 1.25 * before + 0.1:
            sentences.append(
                f"{TITLES[self.table]} ended worse than {what}: loss {last:.3g} against {before:.3g}; "
                f"lower {self.table}.learning_rate"
            )
        if warmup >= steps:
            sentences.append(
                f"the {steps} steps of {self.table} are over before its warm-up of {warmup}, so the learning rate never came "
                f"to its value; lower {self.table}.warmup_steps"
            )
        return [see("The loss ends where it began", sentence) for sentence in sentences]

    # Transformers calls the methods below.

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        # Of several processes each masks its own rows, and then all draw on from the same random numbers.
        self.passes = (step, self.passes[1] + 1) if self.passes[0] == (step := self.state.global_step) else (step, 0)
        with own_numbers(self.args.seed, *self.passes):
            return super().training_step(*args, **kwargs)  # type: ignore[misc]

    def _clip_grad_norm(self, model: Any) -> Any:
        sum_gradients([parameter for parameter in model.parameters() if parameter.requires_grad])
        norm = super()._clip_grad_norm(model)  # type: ignore[misc]
        if self.state.global_step == 0:
            self.start = float(self._tr_loss)
        for what, value in (("loss", float(self._tr_loss)), ("gradient", float(norm))):
            if not math.isfinite(value):
                self.checkpoints.discard()  # the same settings would come to the same step
                step = self.state.global_step + 1
                why = (
                    f"that step was not taken; lower {self.table}.learning_rate and run it again"
                    if step > 1
                    else "before anything was learned: the model's own numbers are damaged or overflow; "
                    "choose another model, or another model.dtype"
                )
                raise UserError(f"the {what} of {self.table} is {value} in step {step}, {why}")
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        state = {
            "weights": trainable(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "trainer": dataclasses.asdict(self.state),
            "best": self.best.state_dict() if self.best else None,
            "running": {name: getattr(self, name) for name in _RUNNING if hasattr(self, name)},
            "random": random_states(),
        }
        self.checkpoints.save(self.state.global_step, state)

    def _load_from_checkpoint(self, folder: str, model: Any = None) -> None:
        assert self.checkpoint_state is not None
        set_trainable(self.model, self.checkpoint_state["weights"])

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if self.checkpoint_state is not None:
            self.optimizer.load_state_dict(self.checkpoint_state["optimizer"])
            self.lr_scheduler.load_state_dict(self.checkpoint_state["scheduler"])

    def _load_rng_state(self, folder: str | None) -> None:
        if self.checkpoint_state is not None:
            set_random_states(self.checkpoint_state["random"])

    def _run_epoch(self, **kwargs: Any) -> None:
        # From a checkpoint of the last step, Transformers would take one more.
        if self.state.global_step >= self.state.max_steps or (self.best and self.best.exhausted):
            self.control.should_training_stop = True
        else:
            super()._run_epoch(**kwargs)  # type: ignore[misc]

    def set_running(self) -> None:
        """Restores the running sums that Transformers sets to zero whenever training begins."""
        if self.checkpoint_state is None:
            return
        for name, value in self.checkpoint_state["running"].items():
            if isinstance(value, dict):  # TRL's lists of numbers by mode and name
                for mode, metrics in value.items():
                    getattr(self, name)[mode].update(metrics)
            else:
                setattr(self, name, value.to(self._tr_loss.device) if isinstance(value, torch.Tensor) else value)
        self._initial_global_step = 0  # the mean loss is over all steps


_RUNNING = ("start", "_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_metrics", "_total_train_tokens")
"""The first loss, that since the last log, that before it, the step of that log; TRL's running metrics and its count of
tokens."""


class _Saves(TrainerCallback):
    """Asks for a checkpoint when one is due; Transformers makes it after the step's log."""

    def __init__(self, trainer: Resumable) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.set_running()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_save = self.trainer.checkpoints.due()
        return control
