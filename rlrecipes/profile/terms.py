"""The reward that a command line asks for: the recipe's, with functions from files and the weights of its terms.

with_weights(recipe.reward, ["terms.learned=0.5"]).learned == 0.5
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from rlrecipes.errors import UserError
from rlrecipes.profile.functions import named_functions
from rlrecipes.profile.load import split_override
from rlrecipes.profile.settings import Profile
from rlrecipes.recipe import Recipe, Reward, Term, unknown
from rlrecipes.text import is_number, plain_number, quoted, shortened


def asked_reward(recipe: Recipe, profile: Profile, weights: Sequence[str] = ()) -> Reward:
    """The recipe's reward with the functions of `reward.function` and the weights of overrides such as `terms.learned=0.5`.

    Raises:
        UserError: a function cannot be taken, there is no such term, a weight is no finite number, or two have one name.
    """
    own = tuple(Term(function.name, function, 1.0) for function in named_functions(profile.reward.function))
    return with_weights(dataclasses.replace(recipe.reward, terms=(*recipe.reward.terms, *own)), weights)


def with_weights(reward: Reward, weights: Sequence[str]) -> Reward:
    """The reward with the weights that overrides such as `terms.learned=0.5` give its terms.

    Raises:
        UserError: there is no such term, a weight is no finite number, or two terms have one name.
    """
    for override in weights:
        _, name, value = split_override(override)
        names = ["learned", *(term.name for term in reward.terms)]
        if name not in names:
            raise UserError(unknown("reward term", name, names, f"there are {', '.join(names)}"))
        try:
            weight = float(value)
        except ValueError:
            raise UserError(f"terms.{name} is '{value}'; it must be a number") from None
        if not math.isfinite(weight):
            raise UserError(f"terms.{name} is {value}; it must be a finite number")
        if name == "learned":
            reward = dataclasses.replace(reward, learned=weight)
        else:
            terms = [dataclasses.replace(t, weight=weight) if t.name == name else t for t in reward.terms]
            reward = dataclasses.replace(reward, terms=tuple(terms))
    check_reward(reward)
    plain = tuple(dataclasses.replace(term, weight=plain_number(term.weight)) for term in reward.terms)
    return dataclasses.replace(reward, learned=plain_number(reward.learned), terms=plain)


def check_reward(reward: Reward) -> None:
    """Refuses a reward whose sum would be undefined.

    Raises:
        UserError: two terms have one name, a term is named as the learned score, or a weight is no finite number.
    """
    names = ["learned", *(term.name for term in reward.terms)]
    for name, weight in zip(names, [reward.learned, *(term.weight for term in reward.terms)], strict=True):
        if names.count(name) > 1:
            raise UserError(
                "a reward term is named 'learned', as the reward model's score is; give it another name"
                if name == "learned"
                else f"two reward terms are named {quoted(name)}; give one of them another name"
            )
        if not is_number(weight):
            raise UserError(
                f"the reward term {quoted(name)} has the weight {shortened(repr(weight))}; it must be a finite number"
            )
