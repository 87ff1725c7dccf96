"""The rows in which the answers of a micro-batch stand where those to one prompt share it, as `model.shared` packs them.

in_rows(shape, settings, micro=8, prompt=64, answer=12) -> Rows(count=2, tokens=112, masked=True): four answers in each
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlrecipes.before.shape import Shape
from rlrecipes.profile import PolicySettings


@dataclass(frozen=True)
class Rows:
    """Rows that are read together."""

    count: float
    tokens: float
    """Of each, padding included."""
    masked: bool = False
    """Whether attention has a mask, since a row has several answers that do not see one another."""

    @property
    def number(self) -> float:
        return self.count * self.tokens


def in_rows(
    shape: Shape, settings: PolicySettings, micro: int, prompt: float, answer: float, each: float | None = None
) -> Rows:
    """The rows of a micro-batch of so many answers of such lengths.

    A row has a prompt with all answers to it that are there, where the family allows that and it is less work. They stand as
    they were drawn, all answers to a prompt next to each other, or `each` to a prompt are among them.
    """
    of_prompt = settings.answers_each
    beyond = of_prompt - math.gcd(of_prompt, micro)  # a micro-batch may begin in the middle of a prompt's answers
    count = math.ceil((micro + beyond) / of_prompt if each is None else micro / min(each, micro))
    apart = Rows(micro, prompt + answer)
    together = Rows(count, prompt + min(each or of_prompt, micro) * answer, masked=True)
    return together if shape.shares and count < micro and _work(shape, together) < _work(shape, apart) else apart


def in_mini_batch(settings: PolicySettings) -> float | None:
    """Answers to a prompt that a mini-batch has on average; None where it is the whole batch, and is not drawn from it."""
    if settings.mini_batches == 1:
        return None
    share = 1 / settings.mini_batches
    return settings.answers_each * share / (1 - (1 - share) ** settings.answers_each)


def _work(shape: Shape, rows: Rows) -> float:
    """As `model.shared` weighs rows."""
    return rows.number * (6 * shape.hidden + rows.tokens)
