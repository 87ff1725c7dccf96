"""The job that a command line asks for; what it leaves out comes from the run's own `settings.toml`, or a profile.

settings of runs/mine/translation/settings.toml: profile tiny, data pairs.jsonl, seed 0; here with ppo.kl_coef=0.1
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

from rlrecipes.before.asked import PROFILE, asked_profile, fitted, refuse_unlearned, usual_profile
from rlrecipes.before.fit import PROFILE as OWN
from rlrecipes.before.shape import Lengths
from rlrecipes.before.workload import Workload, workload
from rlrecipes.data.joint import PLUS
from rlrecipes.errors import UserError, option
from rlrecipes.job import Job, check_seed
from rlrecipes.pipeline import check_source, prepare
from rlrecipes.profile import Profile, asked_reward, function_names, load_profile, profile_names
from rlrecipes.recipe import HUB, load_recipe
from rlrecipes.run.console import say
from rlrecipes.run.folder import Run
from rlrecipes.run.settings import NAME, Settings, read_settings, tables_of
from rlrecipes.text import shortened


def job_of(arguments: argparse.Namespace, recipe: str) -> Job:
    """The job of a recipe under a command's options.

    Raises:
        UserError: for anything wrong in them.
    """
    columns = read_columns(arguments.columns)
    own, profile, weights = settings_of(arguments, recipe)
    data, seed = arguments.data, arguments.seed
    if own:
        columns = columns or (own.columns if data is None else {})
        data, seed = data or own.data, own.seed if seed is None else seed
    if PLUS not in recipe:
        refuse_unlearned(arguments.overrides, asked_reward(load_recipe(recipe), profile, weights))
    job = prepare(recipe, profile, weights=weights, data=data, columns=columns, seed=seed or 0, run=arguments.run)
    return job if own else fitted(job, arguments.profile, arguments.overrides)


def settings_of(arguments: argparse.Namespace, recipe: str) -> tuple[Settings | None, Profile, list[str]]:
    """What the run was begun with, which is said, or None; the profile and the overrides of reward weights that follow.

    Raises:
        UserError: for anything wrong in them.
    """
    found = kept(arguments, recipe)
    profile, weights = profile_of(arguments, found and found[1])
    if found is None:
        return None, profile, weights
    say(_told(*found, arguments))
    return found[1], profile, [*weights, *_own_weights(found[1], recipe, profile, weights)]


def profile_of(arguments: argparse.Namespace, own: Settings | None = None) -> tuple[Profile, list[str]]:
    """The profile with the command line's overrides, and the overrides of reward weights, which belong to the recipe."""
    return asked_profile(arguments.profile, arguments.overrides, arguments.model, own, (arguments.command,))


def rows_of(
    arguments: argparse.Namespace, own: Settings | None, profile: Profile, weights: list[str]
) -> Callable[[Lengths], Workload | None]:
    """What counts the rows of the data that a command line means; None where they are not here, and nobody named them.

    Data of the hub are fetched where the command line names them alone.
    """

    def count(longest: Lengths) -> Workload | None:
        columns = read_columns(arguments.columns) or (own.columns if own and arguments.data is None else {})
        source = arguments.data or (own.data if own else profile.data)
        if arguments.data is None and source.startswith(HUB):
            return None
        try:
            job = prepare(arguments.recipe, profile, weights=weights, data=source, columns=columns, run=arguments.run)
            return workload(job, longest)
        except UserError:
            if arguments.data is not None:
                raise
            return None

    return count


def usual_run(arguments: argparse.Namespace) -> str:
    """The run that a command on a finished run is about: as it says, else `tiny`, or `own` where only that is there."""
    if arguments.run or arguments.profile:
        return arguments.run or load_profile(arguments.profile).name
    there = [name for name in (PROFILE, OWN) if Run(name, arguments.recipe).folder.is_dir()]
    return there[0] if there else PROFILE


def of_each_seed(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """The command line once for each of `--seeds`: the run `mine` becomes `mine-seed0`, `mine-seed1`, …

    Raises:
        UserError: a seed is no whole number, there are not two, or another option speaks against several.
    """
    texts = " ".join(arguments.seeds).split()
    if len(set(texts)) < 2 or not all(text.isascii() and text.isdigit() for text in texts):
        raise UserError(f"{option('seeds', ' '.join(texts))} must be two whole numbers or more, such as 0 1 2")
    for other in ("seed", "from"):
        if getattr(arguments, other) is not None:
            raise UserError(f"{option(other)} is for one seed; leave it or {option('seeds')} out")
    name = arguments.run or usual_profile(arguments.profile, arguments.model)
    seeds = dict.fromkeys(map(int, texts))
    for seed in seeds:
        check_seed(seed)
    like = {**vars(arguments), "like": arguments.run}
    return [argparse.Namespace(**like | {"seed": seed, "run": f"{name}-seed{seed}"}) for seed in seeds]


def source_of(arguments: argparse.Namespace) -> str | None:
    """The run that SFT and the reward model are taken from.

    Raises:
        UserError: there is no such run, no new one is named, or the same one.
    """
    source: str | None = getattr(arguments, "from")
    if source is not None:
        check_source(arguments.recipe, source, arguments.run)
    return source


def kept(arguments: argparse.Namespace, recipe: str) -> tuple[Path, Settings] | None:
    """The file that a run was begun with, where the command line says nothing else, and what stands in it."""
    if arguments.settings is not None:
        for other, missing in (("profile", False), ("run", True)):
            if (getattr(arguments, other) is None) == missing:
                what = f"beside {option('settings')} name the new run, as" if missing else "name one of the two: "
                raise UserError(f"{what} {option(other)}" + ("" if missing else f" or {option('settings')}"))
        path = Path(os.path.expanduser(arguments.settings))  # which leaves a home that nobody has as it is
    else:
        names = (arguments.run, arguments.like, source_of(arguments)) if arguments.profile is None else ()
        runs = [name for name in names if name]
        paths = [path for name in runs if (path := Run(name, recipe).folder / NAME).exists()]
        if not paths:
            return None
        path = paths[0]
    own = read_settings(path)
    if own.recipe != recipe:
        raise UserError(f"{path} is of the recipe {own.recipe}, not of {recipe}; name a file of the same recipe")
    return path, own


def _told(path: Path, own: Settings, arguments: argparse.Namespace) -> str:
    """The line that says where a command's settings come from, and what it changes."""
    given = [f"{name} {value}" for name in ("model", "data", "seed") if (value := getattr(arguments, name)) is not None]
    changes = ", ".join(shortened(each, 80) for each in (*given, *arguments.columns, *arguments.overrides))
    begun = f"profile {own.profile}{_changed(own)}, data {own.data}, seed {own.seed}"
    return f"settings of {path}: {begun}" + (f"; here with {changes}" if changes else "")


def _changed(own: Settings) -> str:
    """The settings in which a run differs from its profile's file, the first few of them."""
    usual = tables_of(load_profile(own.profile)) if own.profile in profile_names() else {}
    settings = [(table, key, value) for table, values in own.tables.items() for key, value in values.items()]
    other = [f"{table}.{key}={v}" for table, key, v in settings if usual.get(table, {}).get(key) != v] if usual else []
    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    return f" with {', '.join(other[:3])}{more}" if other else ""


def _own_weights(own: Settings, recipe: str, profile: Profile, given: list[str]) -> list[str]:
    """Overrides for the weights of reward terms that the run has and neither the recipe nor the command line gives."""
    if PLUS in recipe:
        return []
    reward = asked_reward(load_recipe(recipe), profile)
    usual = {"learned": reward.learned, **{term.name: term.weight for term in reward.terms}}
    named = {weight.partition("=")[0] for weight in given}
    # A function that the command line leaves out takes its weight along.
    gone = set(function_names(own.tables.get("reward", {}).get("function", ""))) - set(usual)
    kept = {name: weight for name, weight in own.terms.items() if name not in gone}
    changed = {f"terms.{name}": weight for name, weight in kept.items() if usual.get(name) != weight}
    return [f"{name}={weight}" for name, weight in changed.items() if name not in named]


def read_columns(texts: list[str]) -> dict[str, str]:
    """Columns by the name they are read under; make hands all of them on as one text, and their names may hold spaces."""
    pairs = [_column(part) for text in texts for part in re.split(r"\s+(?=[\w.]+=)", text.strip())]
    if len(columns := dict(pairs)) < len(pairs):
        raise UserError("--columns names one column for two; name each once")
    return columns


def _column(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise UserError(f"cannot read the column '{text}'; write name=column, such as target=post_edit")
    return name, column
