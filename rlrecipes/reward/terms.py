"""The reward as a weighted sum: its programmatic terms, called with care, and the learned score beside them.

    values = term_values(reward, answers, examples) | {"learned": scores}    {"polite": [0.0, 1.0], "learned": [1.3, -0.2]}
    weighted_sum(reward, values of one answer) -> 0.2 * 0.0 + 1.0 * 1.3

A term is a plain function, or an object with state that is called like one. Such an object says what it knows by
`state_dict()` and takes it back by `load_state_dict(state)`, as PyTorch's modules do; checkpoints keep it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlrecipes.errors import UserError
from rlrecipes.recipe import Example, Reward, Term
from rlrecipes.text import quoted


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
                f"the reward term '{term.name}' raised {type(error).__name__} ({error}) on the answer {quoted(answer)} to "
                f"{quoted(example.prompt[-1].content)}; mend the function or set terms.{term.name}=0"
            ) from error
        if not math.isfinite(value):
            raise UserError(
                f"the reward term '{term.name}' gave {value} on the answer {quoted(answer)} to "
                f"{quoted(example.prompt[-1].content)}; mend the function or set terms.{term.name}=0"
            )
        values.append(value)
    return values


def term_values(reward: Reward, answers: Sequence[str], examples: Sequence[Example]) -> dict[str, list[float]]:
    """Each term's unweighted values, one for each answer, by name."""
    return {term.name: score_term(term, answers, examples) for term in reward.terms}


def weighted_sum(reward: Reward, values: Mapping[str, Any]) -> Any:
    """The terms' `values`, `learned` among them, times their weights; numbers or tensors `[B]` alike."""
    weights = {term.name: term.weight for term in reward.terms} | {"learned": reward.learned}
    return sum(weights[name] * value for name, value in values.items())


def fresh(reward: Reward) -> Reward:
    """A copy whose terms have a state of their own: evaluation never sees what training left in them."""
    terms = tuple(replace(term, score=copy.deepcopy(term.score)) for term in reward.terms)
    return replace(reward, terms=terms)


def term_states(reward: Reward) -> dict[str, Any]:
    """What the terms with state know, by name."""
    return {term.name: term.score.state_dict() for term in reward.terms if hasattr(term.score, "state_dict")}


def set_term_states(reward: Reward, states: Mapping[str, Any]) -> None:
    """Puts back what `term_states` gave."""
    for term in reward.terms:
        if term.name in states:
            term.score.load_state_dict(states[term.name])  # type: ignore[attr-defined]
