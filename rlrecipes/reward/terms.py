"""The programmatic part of a reward: plain functions of (prompt, answer, example), called with care."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlrecipes.errors import UserError
from rlrecipes.recipe import Example, Term
from rlrecipes.text import shortened


def score_term(term: Term, answers: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """The unweighted value of one term for each answer.

    Raises:
        UserError: the term raises or gives NaN or infinity; the sentence names the term and the row. One such number
            would turn policy and value head to NaN within one update.
    """
    values = []
    for answer, example in zip(answers, examples, strict=True):
        try:
            value = float(term.score(example.prompt, answer, example))
        except Exception as error:
            raise UserError(
                f"the reward term '{term.name}' raised {type(error).__name__} ({error}) on the answer {shortened(answer)} to "
                f"{shortened(example.prompt[-1].content)}; mend the function or set terms.{term.name}=0"
            ) from error
        if not math.isfinite(value):
            raise UserError(
                f"the reward term '{term.name}' gave {value} on the answer {shortened(answer)} to "
                f"{shortened(example.prompt[-1].content)}; mend the function or set terms.{term.name}=0"
            )
        values.append(value)
    return values
