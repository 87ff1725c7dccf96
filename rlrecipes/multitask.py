"""Several recipes that share a reward model, `translation+dialogue`: their data together, and what it learns by.

One SFT adapter on all their demonstrations, then one reward adapter and head on all their preferences; each recipe's PPO
takes it as `reward.model=runs/<run>/translation+dialogue/reward`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from rlrecipes.errors import UserError
from rlrecipes.hub import SOURCE as HUB
from rlrecipes.profile import RewardSettings
from rlrecipes.recipe import BUILT_IN, Data, Recipe, Reward, load_recipe

PLUS = "+"
STAGES = ("sft", "reward")
"""What recipes can share."""


def recipes_of(name: str) -> list[Recipe]:
    """The recipes that a name such as `translation+dialogue` joins; one for a name without a plus.

    Raises:
        UserError: one of them does not exist, or stands there twice.
    """
    names = name.split(PLUS)
    if "" in names:
        raise UserError(f"'{name}' names an empty recipe; write recipe{PLUS}recipe, as translation{PLUS}dialogue")
    if len(set(names)) < len(names):
        raise UserError(f"'{name}' names a recipe twice; a recipe's preferences count once")
    return [load_recipe(part) for part in names]


def sources_of(recipes: Sequence[Recipe], source: str | None) -> list[str | None]:
    """One data source for each recipe: the parts of `corpus.jsonl+built-in`, in their order; `built-in` or `hub` serve all.

    Raises:
        UserError: there are not as many parts as recipes.
    """
    if source in (None, BUILT_IN, HUB) or len(recipes) == 1:
        return [source] * len(recipes)
    assert source is not None
    parts = source.split(PLUS)
    if len(parts) != len(recipes) or "" in parts:
        names = PLUS.join(recipe.name for recipe in recipes)
        raise UserError(
            f"--data {source} names {len(parts)} sources for the {len(recipes)} recipes of {names}; join one for each "
            f"with '{PLUS}', '{BUILT_IN}' for an embedded world"
        )
    return list(parts)


def joined(recipes: Sequence[Recipe]) -> Recipe:
    """The recipe that stands for all of them while they share stages; it has no reward terms, for it never meets PPO."""
    name, summary = PLUS.join(recipe.name for recipe in recipes), "a reward model that several recipes share"
    return dataclasses.replace(recipes[0], name=name, summary=summary, reward=Reward(), judge=None)


def together(parts: Mapping[str, Data]) -> Data:
    """All data, the recipes' demonstrations taking turns."""

    def every(field: str) -> list[Any]:
        turns = zip_longest(*(getattr(data, field) for data in parts.values()))
        return [item for item in chain.from_iterable(turns) if item is not None]

    fields = (
        "demonstrations",
        "prompts",
        "comparisons",
        "held_out",
        "held_out_comparisons",
        "ratings",
        "held_out_ratings",
    )
    return Data(
        source=PLUS.join(data.source for data in parts.values()),
        **{field: every(field) for field in fields},
        notes=[f"{name}: {note}" for name, data in parts.items() for note in data.notes],
        dropped={f"{name}: {reason}": count for name, data in parts.items() for reason, count in data.dropped.items()},
    )


def objective(settings: RewardSettings, tasks: Mapping[str, Data]) -> str:
    """`pairwise` or `regression`, for all recipes the same.

    Raises:
        UserError: the data or another setting do not allow what the profile asks for.
    """
    found = {name: _objective(settings, name, data) for name, data in tasks.items()}
    if len(set(found.values())) > 1:
        kinds = ", ".join(f"{name} {kind}" for name, kind in found.items())
        raise UserError(f"one reward model learns one way, but the data want {kinds}; say reward.objective=…")
    return next(iter(found.values()))


def _objective(settings: RewardSettings, name: str, data: Data) -> str:
    asked = settings.objective
    rated = bool(data.ratings) and not data.comparisons
    kind = ("regression" if rated else "pairwise") if asked == "auto" else asked
    if kind == "pairwise" and not data.comparisons:
        raise UserError(
            f"reward.objective=pairwise needs comparisons, but {data.source} brings {len(data.ratings)} ratings, hardly two "
            "of the same prompt; say reward.objective=regression, or bring comparisons"
        )
    if kind == "regression" and not data.ratings:
        raise UserError(
            f"reward.objective=regression needs ratings (prompt, completion, score), but {data.source} brings none for "
            f"{name}; say reward.objective=pairwise, or bring ratings"
        )
    if kind == "regression" and len({rating.score for rating in data.ratings}) == 1:
        raise UserError(
            f"all {len(data.ratings)} training ratings in {data.source} are {data.ratings[0].score:g}: there is nothing to "
            "learn; bring ratings that differ"
        )
    if kind == "regression" and settings.center_rewards_coefficient is not None:
        raise UserError(
            "reward.center_rewards_coefficient has no effect on regression, which fixes the scores; leave it out"
        )
    return kind
