"""DPO by TRL's trainer, without a batch's logits, on reference log-probabilities that are computed once.

    row = {"prompt_ids": [1, 7, 9], "chosen_ids": [4, 2], "rejected_ids": [5, 2],
           "ref_chosen_logps": -3.1, "ref_rejected_logps": -4.0}

What TRL's trainer has beside its loss stays: its arguments, its collator, its sampler of rows, its metrics by their names.
Those that need logits are left out: entropy, mean logits, token accuracy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from rlrecipes.errors import UserError
from rlrecipes.policy.dpo import answer_logprobs, dpo_loss
from rlrecipes.profile import DPOSettings
from rlrecipes.run.best import evaluation
from rlrecipes.run.checkpoint import PartsCheckpoints, random_states
from rlrecipes.run.console import bar
from rlrecipes.run.gradients import whole_rows
from rlrecipes.run.processes import gather, rank, world
from rlrecipes.run.resume import Resumable, training_arguments

Row = Mapping[str, Any]


class ResumableDPOTrainer(Resumable, DPOTrainer):
    """TRL's `DPOTrainer`, which goes on from our checkpoints; several processes share the answers of a batch."""

    settings: DPOSettings

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # TRL would tokenize texts; these are token ids

    def compute_loss(
        self, model: Any, inputs: Mapping[str, torch.Tensor], return_outputs: bool = False, *_: Any, **__: Any
    ) -> Any:
        """The loss over all comparisons of a batch; its gradient flows to this process's own answers."""
        ids, answers = inputs["input_ids"], inputs["completion_mask"]

        def logprobs(rows: list[int]) -> torch.Tensor:
            return answer_logprobs(model, ids[rows], answers[rows])

        if world() == 1:
            policy = answer_logprobs(model, ids, answers)
        else:
            trained = next(parameter for parameter in model.parameters() if parameter.requires_grad)
            policy = whole_rows(logprobs, len(ids), trained)
        reference = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]]).to(policy)
        settings, tokens = self.settings, answers.sum(1)
        loss = dpo_loss(settings.losses, policy, reference, tokens, settings.beta, settings.label_smoothing)
        self._measure(policy.detach(), reference, int(inputs["attention_mask"].sum()))
        return (loss, {}) if return_outputs else loss

    def _measure(self, policy: torch.Tensor, reference: torch.Tensor, tokens: int) -> None:
        """Adds a batch to TRL's running metrics: an answer's reward is beta times its log-ratio."""
        mode = "train" if self.model.training else "eval"
        chosen, rejected = (self.settings.beta * (policy - reference)).chunk(2)
        logps = policy.chunk(2)
        found = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": chosen - rejected,
            "logps/chosen": logps[0],
            "logps/rejected": logps[1],
        }
        for name, values in found.items():
            self._metrics[mode][name].append(float(values.mean()))
        self._total_train_tokens += tokens if mode == "train" else 0
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def dpo_trainer(
    settings: DPOSettings,
    seed: int,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    aside: Sequence[Row],
    folder: Path,
    callbacks: list[Any],
) -> ResumableDPOTrainer:
    """Trains the adapter `default` of `model` on rows with their reference log-probabilities.

    The adapter comes out in bfloat16 on a quantized base, as TRL likes it; it has to be set again.
    """
    own = {"loss_type": list(settings.losses), "loss_weights": [*settings.losses.values()]}
    arguments = training_arguments(DPOConfig, settings, folder, seed) | own
    trainer = ResumableDPOTrainer(
        model,
        args=DPOConfig(**arguments, **evaluation(len(aside)), max_length=None, router_aux_loss_coef=0.0),
        train_dataset=Dataset.from_list([dict(row) for row in rows]),
        eval_dataset=Dataset.from_list([dict(row) for row in aside]) if aside else None,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.settings = settings
    # TRL's copy of the adapter, to switch to in every step: what it would say is in the rows.
    model.delete_adapter("ref")
    return trainer


def reference_logprobs(
    model: Any, rows: Sequence[Row], size: int, pad: int, checkpoints: PartsCheckpoints
) -> torch.Tensor:
    """The log-probabilities `[rows, 2]` of each chosen and each rejected answer under `model` as it is, in nats.

    They are the first part of `checkpoints`, so that an interrupted stage goes on within them and never computes them again.
    `size` comparisons are read together; several processes take a batch each.

    Raises:
        Interrupted: a signal asked for the end; what was computed so far has been saved.
        UserError: one of them is no number.
    """
    if checkpoints.finished:
        found: torch.Tensor = checkpoints.finished[0]["reference"]
        return found
    # Rows of like length need less padding; the log-probabilities go back to their places.
    order = sorted(range(len(rows)), key=lambda i: _length(rows[i]))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    newest = checkpoints.newest()
    logprobs, done = torch.zeros(len(rows), 2), 0
    if newest:
        logprobs, done = newest.state["reference"], newest.step
    collate = DataCollatorForPreference(pad)
    was_training = model.training
    model.eval()
    with checkpoints.finishing_first(), bar("reference", len(batches), done) as progress:
        for first in range(done, len(batches), world()):
            together = batches[first : first + world()]
            mine = [_read(model, collate, [rows[i] for i in batch]) for batch in together[rank() :][:1]]
            for batch, part in zip(together, gather(mine[0] if mine else torch.empty(0, 2)), strict=False):
                logprobs[batch] = part
            progress.update(len(together))
            if checkpoints.due():
                state = {"weights": {}, "random": random_states(), "reference": logprobs}
                checkpoints.save(first + len(together), state)
    model.train(was_training)
    if broken := int((~torch.isfinite(logprobs)).any(1).sum()):
        raise UserError(
            f"the reference gives {broken} of {len(rows)} comparisons no finite log-probability: the model's own numbers are "
            "damaged or overflow; choose another model, or another model.dtype"
        )
    checkpoints.finish({"reference": logprobs}, len(batches))
    return logprobs


@torch.no_grad()
def _read(model: Any, collate: Any, rows: Sequence[Row]) -> torch.Tensor:
    """The log-probabilities `[rows, 2]` of a batch."""
    plain = [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in rows]
    inputs = {name: tensor.to(model.device) for name, tensor in collate(plain).items()}
    logprobs = answer_logprobs(model, inputs["input_ids"], inputs["completion_mask"])
    return torch.stack(logprobs.chunk(2), 1).float().cpu()


def _length(row: Row) -> int:
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def with_reference(rows: Sequence[Row], logprobs: torch.Tensor) -> list[dict[str, Any]]:
    """The rows with TRL's columns of the reference's log-probabilities, `[rows, 2]`."""
    return [
        {**row, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for row, (chosen, rejected) in zip(rows, logprobs.tolist(), strict=True)
    ]


def checksum(logprobs: torch.Tensor) -> str:
    """The SHA-256 of log-probabilities, for the record."""
    return hashlib.sha256(logprobs.contiguous().numpy().tobytes()).hexdigest()
