"""The reward as a weighted sum of its programmatic terms and the learned score.

    values = term_values(reward, answers, examples) | {"learned": scores}    {"polite": [0.0, 1.0], "learned": [1.3, -0.2]}
    weighted_sum(reward, values of one answer) -> 0.2 * 0.0 + 1.0 * 1.3

A term is a plain function, or an object with state that is called like one. Such an object has `state_dict()` and
`load_state_dict(state)`, as PyTorch's modules do, and checkpoints keep its state.
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
            would turn the policy and the value head to NaN within one update.
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
    """The sum of the terms' `values` times their weights, `learned` among them; works on numbers and on tensors `[B]`."""
    weights = {term.name: term.weight for term in reward.terms} | {"learned": reward.learned}
    return sum(weights[name] * value for name, value in values.items())


def fresh(reward: Reward) -> Reward:
    """A copy whose terms have a state of their own: evaluation never sees the states of training."""
    terms = tuple(replace(term, score=copy.deepcopy(term.score)) for term in reward.terms)
    return replace(reward, terms=terms)


def term_states(reward: Reward) -> dict[str, Any]:
    """The states of the terms that have one, by name."""
    return {term.name: term.score.state_dict() for term in reward.terms if hasattr(term.score, "state_dict")}


def set_term_states(reward: Reward, states: Mapping[str, Any]) -> None:
    """Puts back the states that `term_states` returned."""
    for term in reward.terms:
        if term.name in states:
            term.score.load_state_dict(states[term.name])  # type: ignore[attr-defined]
