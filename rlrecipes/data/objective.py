"""How a reward model learns: from pairs of which one is better, or from ratings."""

from __future__ import annotations

from collections.abc import Mapping

from rlrecipes.errors import UserError
from rlrecipes.profile import RewardSettings
from rlrecipes.recipe import Data


def objective(settings: RewardSettings, tasks: Mapping[str, Data]) -> str:
    """`pairwise` or `regression`: one for all recipes.

    Raises:
        UserError: the data or another setting do not allow what the profile asks for.
    """
    kinds = {name: _objective(settings, name, data) for name, data in tasks.items()}
    if len(set(kinds.values())) > 1:
        wishes = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise UserError(f"one reward model learns one way, but the data want {wishes}; say reward.objective=…")
    return next(iter(kinds.values()))


def check_comparisons(name: str, data: Data) -> None:
    """Refuses DPO on data without comparisons.

    Raises:
        UserError: there are none to train on; with what there is.
    """
    if data.train.comparisons:
        return
    ratings = len(data.train.ratings)
    there = f"{ratings} ratings and hardly two of the same prompt" if ratings else "none"
    kto = " (KTO, which learns from ratings, is not offered)" if ratings else ""
    raise UserError(
        f"DPO learns {name} from comparisons, but {data.source} brings {there}{data.lacking and f': {data.lacking}'}; bring "
        f"rows with prompt, chosen and rejected, or leave dpo out of run.algorithms{kto}"
    )


def _objective(settings: RewardSettings, name: str, data: Data) -> str:
    kind, comparisons, ratings = settings.objective, data.train.comparisons, data.train.ratings
    if kind == "auto":
        kind = "regression" if ratings and not comparisons else "pairwise"
    if not comparisons and not ratings:
        raise UserError(
            f"the reward model of {name} learns from preferences, but {data.source} brings none"
            f"{data.lacking and f': {data.lacking}'}; bring rows with prompt, chosen and rejected, or do without the model "
            "(terms.learned=0)"
        )
    if kind == "pairwise" and not comparisons:
        raise UserError(
            f"reward.objective=pairwise needs comparisons, but {data.source} brings {len(ratings)} ratings, hardly two "
            "of the same prompt; say reward.objective=regression, or bring comparisons"
        )
    if kind == "regression" and not ratings:
        raise UserError(
            f"reward.objective=regression needs ratings (prompt, completion, score), but {data.source} brings none for "
            f"{name}; say reward.objective=pairwise, or bring ratings"
        )
    if kind == "regression" and len({rating.score for rating in ratings}) == 1:
        raise UserError(
            f"all {len(ratings)} training ratings in {data.source} are {ratings[0].score:g}: there is nothing to "
            f"learn{data.lacking and f' ({data.lacking})'}; bring ratings that differ"
        )
    if kind == "regression" and settings.center_rewards_coefficient is not None:
        raise UserError(
            "reward.center_rewards_coefficient has no effect on regression, which fixes the scores; leave it out"
        )
    return kind
