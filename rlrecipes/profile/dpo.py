"""The table of DPO, which samples nothing: it learns from the comparisons that the reward model learns from.

    DPOSettings(loss_type="sigmoid,sft", loss_weights="1,0.2").losses    ->  {"sigmoid": 1.0, "sft": 0.2}

Names are TRL's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from rlrecipes.profile.training import TrainingSettings
from rlrecipes.profile.values import CONFIG, NONE, Count, Names, Positive, Rate, ZeroOrMore
from rlrecipes.recipe import unknown

PREFERENCES = ("sigmoid", "hinge", "ipo", "robust")
"""The losses that compare two answers."""
LOSSES = (*PREFERENCES, "sft")
"""The names of `dpo.loss_type`."""


@dataclass(frozen=True, config=CONFIG)
class DPOSettings(TrainingSettings):
    """`trl.DPOConfig`, plus `keep` and `patience` (ours); the adapter starts from the SFT adapter, which is the reference."""

    table: ClassVar[str] = "dpo"

    per_device_train_batch_size: Count = 32
    """Micro-batch: comparisons, of two rows each."""
    learning_rate: Rate = 5e-6
    """As TRL's example and alignment-handbook's zephyr-7b-dpo-qlora for LoRA; whole weights take a tenth."""
    beta: Positive = 0.1
    """How dear it is to leave the reference; of `ipo`, tau (arXiv 2310.12036). 0.1: arXiv 2305.18290."""
    loss_type: Names = "sigmoid"
    """`sigmoid` (arXiv 2305.18290), `hinge` (arXiv 2305.10425), `ipo`, of means over tokens (arXiv 2310.12036), `robust`
    (arXiv 2403.00409), or some of them, and with any of them `sft`: the chosen answers' negative log-likelihood, a mean over
    their tokens (arXiv 2404.19733). Several are added up: `sigmoid,sft`."""
    loss_weights: Annotated[Names | None, NONE] = None
    """The weight of each of several losses, as `1,0.2`; `none`: 1."""
    label_smoothing: Annotated[ZeroOrMore, Field(lt=0.5)] = 0.0
    """Of `robust` alone: the share of comparisons that are the wrong way round."""

    @property
    def title(self) -> str:
        """The algorithm's name in sentences."""
        return self.table.upper()

    @property
    def names(self) -> list[str]:
        """The losses that are named."""
        return _parts(self.loss_type)

    @property
    def losses(self) -> dict[str, float]:
        """The losses with their weights, of a table without `contradictions`."""
        weights = _parts(self.loss_weights) if self.loss_weights else ["1"] * len(self.names)
        return {name: float(weight) for name, weight in zip(self.names, weights, strict=True)}


def contradictions(settings: DPOSettings) -> Iterator[str]:
    """Sentences on values of the table that are within their bounds and mean nothing together."""
    names, weights, said = settings.names, _parts(settings.loss_weights or ""), f"dpo.loss_type={settings.loss_type}"
    known = f"there are {', '.join(LOSSES)}"
    for name in names:
        if name not in LOSSES:
            yield f"dpo.loss_type: {unknown('loss', name, list(LOSSES), known)}"
    if len(set(names)) < len(names):
        yield f"{said} names a loss twice; name it once, and give it a weight in dpo.loss_weights"
    if not set(names) & set(PREFERENCES):
        yield f"{said} compares no answers; name one of {', '.join(PREFERENCES)}"
    if "robust" in names and not settings.label_smoothing:
        yield f"{said} is sigmoid while dpo.label_smoothing is 0; give the share of comparisons that are the wrong way round"
    if settings.loss_weights and (len(weights) != len(names) or not all(map(_is_weight, weights))):
        yield (
            f"dpo.loss_weights={settings.loss_weights} must be a positive number for each of {', '.join(names)}, with commas "
            "between them"
        )


def _parts(text: str) -> list[str]:
    return [part for part in re.split(r"[,\s]+", text) if part]


def _is_weight(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
