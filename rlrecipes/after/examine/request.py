"""Which reward model is examined, and on which rows; nothing here loads it.

examine translation --run e0                        the run's reward model, on the rows that the run held out
examine translation+dialogue --run shared           one that several recipes share
examine translation reward.model=someone/rm         one from elsewhere, on the recipe's held-out rows
examine translation --run e0 --data pairs.jsonl     on all rows of another file
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlrecipes.after.finished import FinishedRun, find_finished_run
from rlrecipes.data.joint import PLUS, joint_data
from rlrecipes.data.load import fingerprint, load
from rlrecipes.errors import UserError, option
from rlrecipes.hub.reach import reach_model
from rlrecipes.job import joint_recipe, recipes_of, sources_of
from rlrecipes.profile import ModelSettings, load_profile
from rlrecipes.recipe import Comparison, Data, Rating, Recipe, Split
from rlrecipes.report.records import finished_algorithms
from rlrecipes.reward.source import RewardSource, find_reward_model
from rlrecipes.run.folder import Run, make
from rlrecipes.run.settings import NAME, read_settings

OWN = ("reward.model", "model.")
"""The settings that a model from elsewhere takes."""


@dataclass(frozen=True)
class Request:
    """A reward model, and the rows that it is examined on."""

    run: Run
    recipe: Recipe
    """For a model that several recipes share, the joint one."""
    source: RewardSource
    settings: ModelSettings
    """How it is held in memory."""
    batch_size: int
    """Texts that are scored together."""
    tasks: Mapping[str, Split]
    """The rows, by recipe."""
    data: str
    """Where they come from."""
    finished: FinishedRun | None = None
    """The run that has the model; None for one from elsewhere."""
    notes: Sequence[str] = ()

    @property
    def comparisons(self) -> list[tuple[str, Comparison]]:
        """Each comparison with its recipe."""
        return [(name, pair) for name, split in self.tasks.items() for pair in split.comparisons]

    @property
    def ratings(self) -> list[Rating]:
        return [rating for split in self.tasks.values() for rating in split.ratings]


def request(
    recipe: str, run: str | None, profile: str, data: str | None, columns: Mapping[str, str], settings: Sequence[str]
) -> Request:
    """What a command line asks for.

    Raises:
        UserError: the run has no reward model, its data are not there, they hold nothing to examine a model on, or a setting
            has no effect.
    """
    place = Run(run or load_profile(profile).name, recipe)
    given = [setting.partition("=")[0] for setting in settings]
    for name in given:
        if not name.startswith(OWN) or "reward.model" not in given:
            raise UserError(
                f"{name} has no effect on `examine`, which takes a model as its run has it; leave it out, or name a model "
                "from elsewhere by reward.model=…"
            )
    if settings:
        return _elsewhere(place, profile, data, columns, settings)
    return _of_run(place, data, columns)


def _recipes(name: str) -> tuple[Recipe, list[Recipe]]:
    """The recipe called so, and the recipes that it joins."""
    recipes = recipes_of(name)
    return (joint_recipe(recipes) if PLUS in name else recipes[0]), recipes


def _elsewhere(
    run: Run, profile_name: str, data: str | None, columns: Mapping[str, str], settings: Sequence[str]
) -> Request:
    """A model that no run has taken yet."""
    if run.done("reward") is not None:
        raise UserError(
            f"{run.folder} has a reward model of its own; name another run ({option('run')}) for the examination of "
            f"{settings[0]}"
        )
    recipe, recipes = _recipes(run.recipe)
    profile = load_profile(profile_name, settings)
    source = find_reward_model(str(profile.reward.model))
    if source.base is not None:
        reach_model(source.base, None)
    parts = _load(recipes, data or profile.data, columns, run)
    batch_size = 2 * profile.reward.per_device_train_batch_size
    tasks = {name: part.held_out for name, part in parts.items()}
    return _checked(Request(run, recipe, source, profile.model, batch_size, tasks, _joint(parts).source))


def _of_run(run: Run, data: str | None, columns: Mapping[str, str]) -> Request:
    """The reward model of a run, on what the run held out, or on all rows of other data."""
    recipe, recipes = _recipes(run.recipe)
    finished = find_finished_run(run, recipe)
    record = finished.records.get("reward")
    if record is None:
        raise _without(finished)
    settings = record["settings"]
    own = record.get("reward_model")  # a model from elsewhere that stands beside the base
    source = find_reward_model(own["name"] if own and own["beside"] else str(run.stage("reward") / "adapter"))
    base = finished.base_model()
    if not finished.embedded:
        reach_model(base, None)
    if data is None and not columns and (kept := run.folder / NAME).exists():
        columns = read_settings(kept).columns
    parts = _load(recipes, data or settings["data.source"], columns, run)
    found, notes = _joint(parts), []
    if fingerprint(found) == settings["data.fingerprint"]:
        tasks = {name: part.held_out for name, part in parts.items()}
    elif data is None:
        raise UserError(
            f"{found.source} no longer has the rows that {run.folder} was made with, so nothing says which of them were "
            f"trained on; give them as {option('data')} ({option('columns')}) to examine the model on all of them"
        )
    else:
        tasks = {name: _whole(part) for name, part in parts.items()}
        notes = [f"{found.source} is not what the run was made with, so all of its rows count as held out"]
    if several := record.get("members"):
        notes.append(f"the run has {len(several)} reward models, which score together; this examines the first")
    size = 2 * settings["reward.per_device_train_batch_size"]
    return _checked(Request(run, recipe, source, finished.model, size, tasks, found.source, finished, notes))


def _without(finished: FinishedRun) -> UserError:
    run = finished.run
    if finished_algorithms(finished.records):
        return UserError(
            f"{run.folder} has no reward model: its reward is programmatic terms alone (terms.learned=0); examine another "
            f"run ({option('run')}), or a model from elsewhere (reward.model=…)"
        )
    return UserError(f"{run.folder} has no reward model yet; make it with `{make('reward', run)}`")


def _load(recipes: Sequence[Recipe], source: str | None, columns: Mapping[str, str], run: Run) -> dict[str, Data]:
    sources = sources_of(recipes, source)
    return {recipe.name: load(recipe, part, columns, run.root) for recipe, part in zip(recipes, sources, strict=True)}


def _joint(parts: Mapping[str, Data]) -> Data:
    return joint_data(parts) if len(parts) > 1 else next(iter(parts.values()))


def _whole(data: Data) -> Split:
    """All rows of data, whichever side they were put on."""
    sides = data.train, data.held_out
    return Split(
        prompts=[row for side in sides for row in side.prompts],
        comparisons=[row for side in sides for row in side.comparisons],
        ratings=[row for side in sides for row in side.ratings],
    )


def _checked(request: Request) -> Request:
    if not request.comparisons and not request.ratings:
        raise UserError(
            f"{request.data} holds out neither comparisons nor ratings, so there is nothing to examine a reward model on; "
            f"bring rows with prompt, chosen and rejected as {option('data')}"
        )
    # Scores and what they are made of are told apart from rounding only in float32.
    return dataclasses.replace(request, settings=dataclasses.replace(request.settings, dtype="float32"))
