"""The table of `distill`: SFT once more, on the best of several answers of the policy's own to each training prompt.

    DistillSettings(num_generations=8, local_rollout_forward_batch_size=64).together    ->  8 prompts

Names are those of SFT's table, of RLOO's and GRPO's, and of evaluation's; what `trl.SFTConfig` lacks is marked: ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from rlrecipes.profile.training import TrainingSettings
from rlrecipes.profile.values import CONFIG, LOWEST_TEMPERATURE, Count, CountOrZero, Number, Switch, ZeroOrMore


@dataclass(frozen=True, config=CONFIG)
class DistillSettings(TrainingSettings):
    """`trl.SFTConfig` on the answers that are kept, and how they are drawn; the adapter goes on from the SFT adapter."""

    table: ClassVar[str] = "distill"

    num_generations: Annotated[Count, Field(ge=2)] = 4
    """Ours: answers that are drawn to each prompt, of which the best is learned."""
    temperature: Annotated[Number, Field(ge=LOWEST_TEMPERATURE)] = 1.0
    """Ours: of these answers."""
    limit: CountOrZero = 0
    """Ours: most training prompts that are answered, drawn by hash; 0: all."""
    local_rollout_forward_batch_size: Count = 64
    """Ours: answers drawn together, without gradients; all of a prompt's are."""
    missing_eos_penalty: ZeroOrMore = 1.0
    """Ours: taken from the reward of an answer that does not end by itself, as PPO takes it; 0: nothing."""
    anyway: Switch = False
    """Ours: it runs even on a reward model that is not shown, on held-out rows, to beat guessing and the longer answer."""

    @property
    def title(self) -> str:
        """The algorithm's name in sentences."""
        return self.table.capitalize()

    @property
    def together(self) -> int:
        """Prompts that are answered together."""
        return max(1, self.local_rollout_forward_batch_size // self.num_generations)


def contradictions(settings: DistillSettings) -> Iterator[str]:
    """Sentences on values of the table that are within their bounds and mean nothing together."""
    each, together = settings.num_generations, settings.local_rollout_forward_batch_size
    if each > together:
        yield (
            f"distill.num_generations={each} answers to a prompt are drawn together, and "
            f"distill.local_rollout_forward_batch_size={together} has no room for them; raise that, or lower the first"
        )
