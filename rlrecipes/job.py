"""A job is the work of one command line: a recipe on its data, at a profile's size, in a run's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rlrecipes.data.joint import PLUS, joint_data
from rlrecipes.data.load import digest, fingerprint, lists, load
from rlrecipes.data.objective import check_comparisons, objective
from rlrecipes.errors import UserError, option, setting
from rlrecipes.profile import (
    BASE,
    SFT,
    Function,
    Profile,
    algorithms,
    asked_reward,
    check_columns,
    named_functions,
    settings_of,
    split_override,
    takes_adapter,
)
from rlrecipes.recipe import (
    BUILT_IN,
    HUB,
    Data,
    Example,
    Metric,
    Recipe,
    Reward,
    load_recipe,
    recipe_names,
)
from rlrecipes.run.folder import Run
from rlrecipes.run.guarded import guarded, metric_of
from rlrecipes.run.policies import chosen, find_start
from rlrecipes.run.settings import Settings, asked_for
from rlrecipes.run.stages import STAGES, below
from rlrecipes.text import quoted

SHARED_STAGES = ("sft", "reward")
"""The stages that several recipes can share."""


@dataclass(frozen=True)
class Job:
    """Everything that a stage needs to know."""

    recipe: Recipe
    """With the command line's weights of its reward terms, and without the terms that the data cannot serve."""
    profile: Profile
    run: Run
    data: Data
    seed: int = 0
    parts: Mapping[str, Data] = field(default_factory=dict)
    """The data of each recipe, where several share a reward model; `data` then holds all of it."""
    asked: Settings | None = None
    """What the run was asked for, kept beside its stages; None in a job that was put together by hand."""

    @property
    def tasks(self) -> Mapping[str, Data]:
        """The data that the reward model learns from, by recipe."""
        return self.parts or {self.recipe.name: self.data}

    @cached_property
    def objective(self) -> str:
        """`pairwise` or `regression`: how the reward model learns.

        Raises:
            UserError: the data or another setting do not allow what the profile asks for.
        """
        return objective(self.profile.reward, self.tasks)

    @property
    def functions(self) -> tuple[Function, ...]:
        """The reward's functions from files."""
        return named_functions(self.profile.reward.function)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the data. Cached: it reads every row, and every stage's settings hold it."""
        return fingerprint(self.data)

    @cached_property
    def columns_fingerprint(self) -> str:
        """A fingerprint of the columns that the reward's functions read."""
        prompts = (*self.data.train.prompts, *self.data.held_out.prompts)
        return digest([example.columns for example in prompts])

    @property
    def metrics(self) -> list[Metric]:
        """The metrics that apply to the data; the first is the headline."""
        held_out, fitted = self.data.held_out.prompts, self.data.metrics
        own = [each for each in self.recipe.evaluation.metrics if each.name not in {metric.name for metric in fitted}]
        answered = any(example.answers for example in held_out)  # without references, what needs none is left
        served = [*fitted, *(each for each in own if _serves(held_out, each.needs) and (answered or each.needs))]
        served += [metric_of(function) for function in self.functions]
        given = [guarded(metric, self.profile.limits.term_seconds) for metric in served]
        return [metric for metric in given if metric.applies is None or metric.applies(held_out)]

    @property
    def start(self) -> Path | None:
        """The adapter that the reward model and the policies begin at; None: the base as it is."""
        return None if self.profile.run.start == BASE else self.run.stage("sft") / "adapter"

    def has(self, stage: str) -> bool:
        """Whether the run has a stage: of the algorithms those that `run.algorithms` names, and those that are finished."""
        return not STAGES[stage].algorithm or stage in algorithms(self.profile) or self.run.done(stage) is not None

    def settings(self, stage: str) -> dict[str, Any]:
        """Every setting that decides the output of `stage` and of the stages below it, as its `done.json` records them."""
        # An algorithm that was never run, such as on a reward model that is too weak, decides nothing.
        names = [name for name in below(stage) if not STAGES[name].algorithm or self.run.done(name) is not None]
        names.append(stage)
        tables = [table for name in names for table in STAGES[name].tables]
        if self.profile.model.name == "builtin":
            tables.append("base")
        settings = settings_of(self.profile, *(table for table in tables if table != "terms"))
        settings.pop("model.device", None)  # a finished stage is done on whichever GPU it was made
        functions = settings.pop("reward.function", "")
        if not settings.get("evaluate.pass_at"):
            settings.pop("evaluate.pass_at", None)
        if self.profile.run.start != SFT:
            settings = {name: value for name, value in settings.items() if not name.startswith("sft.")}
            settings["run.start"] = self.profile.run.start
        if "terms" in tables and self.functions:
            settings |= {"reward.function": functions, "data.columns": self.columns_fingerprint}
        if "terms" in tables:
            settings["terms.learned"] = self.recipe.reward.learned
            settings |= {f"terms.{term.name}": term.weight for term in self.recipe.reward.terms}
        return settings | {
            "seed": self.seed,
            "data.source": self.data.source,
            "data.fingerprint": self.fingerprint,
        }

    def described_data(self) -> dict[str, Any]:
        """The data's source and fingerprint, how many rows loading kept and dropped, and what it tells of them, such as the
        columns that nobody reads; for `done.json`."""
        counts = {name: len(rows) for name, rows in lists(self.data).items()}
        if not counts["ratings"] and not counts["held_out_ratings"]:
            del counts["ratings"], counts["held_out_ratings"]
        return {
            "source": self.data.source,
            "kept": counts,
            "dropped": dict(self.data.dropped),
            "notes": list(self.data.notes),
            "fingerprint": self.fingerprint,
            **({"hub": list(self.data.hub)} if self.data.hub else {}),
        }


def make_job(
    recipe: str | Recipe,
    profile: Profile,
    run: Run,
    *,
    weights: Sequence[str] = (),
    source: str | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Job:
    """Loads a recipe by its name, or takes one, and loads its data; `weights` are overrides such as `terms.learned=0.5`.

    Raises:
        UserError: for anything wrong in the names, the seed, the weights or the data.
    """
    check_seed(seed)
    algorithms(profile)
    chosen(profile.evaluate.policies, run, profile.run.start)
    if takes_adapter(profile):
        find_start(profile.run.start, run)
    if isinstance(recipe, str):
        if PLUS in recipe:
            return _joint_job(recipe, profile, run, weights, source, columns or {}, seed)
        recipe = load_recipe(recipe)
    elif profile.model.name == "builtin" and recipe.documents is not None and recipe.name not in recipe_names():
        raise UserError(
            f"the embedded base reads the documents of recipes in folders alone; put '{recipe.name}' into "
            f"recipes/{recipe.name}/recipe.py, name a model, or leave its documents out"
        )
    functions = named_functions(profile.reward.function)
    keep, alone = recipe.columns.keep or bool(functions), recipe.columns.alone or profile.run.start != SFT
    columns_read = dataclasses.replace(recipe.columns, keep=keep, alone=alone)
    recipe = dataclasses.replace(recipe, columns=columns_read, reward=asked_reward(recipe, profile, weights))
    asked = asked_for(recipe.name, profile, source, seed, columns or {}, recipe.reward)
    data = load(recipe, source, columns or {}, run.root)
    check_columns(functions, data.train.prompts)
    if recipe.reward.learned and profile.reward.model is None:
        objective(profile.reward, {recipe.name: data})
    if "dpo" in algorithms(profile):
        check_comparisons(recipe.name, data)
    terms = [term for term in recipe.reward.terms if term.weight]
    served = tuple(term for term in terms if _serves(data.train.prompts, term.needs))
    unserved = [term for term in terms if term not in served]
    if data.source == BUILT_IN:  # some terms are for other data: a note only where the command line sets their weight
        overrides = {split_override(weight)[1] for weight in weights}
        unserved = [term for term in unserved if term.name in overrides]
    notes = [f"the reward term '{term.name}' is left out: the data have no '{term.needs}'" for term in unserved]
    notes += [function.told for function in functions]
    notes += _unread(recipe, data, profile)
    if recipe.documents is None and profile.model.name == "builtin":
        notes.append(
            "the embedded base has read no texts of this task, and learns little of it; "
            f"name a model with {option('model')}"
        )
    if not served and not recipe.reward.learned:
        raise UserError(
            f"every reward term of {recipe.name} has weight 0; give at least one a weight, as terms.learned=1"
        )
    recipe = dataclasses.replace(recipe, reward=dataclasses.replace(recipe.reward, terms=served))
    job = Job(recipe, profile, run, dataclasses.replace(data, notes=[*data.notes, *notes]), seed, asked=asked)
    _check_names(job)
    _check_headline(job)
    _check_turns(job)
    _check_demonstrations(job)
    _check_policies(job)
    return job


def _unread(recipe: Recipe, data: Data, profile: Profile) -> list[str]:
    """Says where the headline would be a metric that cannot judge these texts, and so is left out."""
    held_out = data.held_out.prompts
    own = (guarded(metric, profile.limits.term_seconds) for metric in recipe.evaluation.metrics)
    first = next((metric for metric in own if _serves(held_out, metric.needs)), None)
    if data.metrics or first is None or first.applies is None or first.applies(held_out):
        return []
    return [f"the metric '{first.name}' is left out: it does not know the language of these texts"]


def _check_names(job: Job) -> None:
    """Refuses a function named as another number of the evaluation, in whose place nobody would see its own.

    Raises:
        UserError: with the name.
    """
    names = {metric.name for metric in (*job.data.metrics, *job.recipe.evaluation.metrics)}
    for name in [function.name for function in job.functions]:
        taken = f"the metric {quoted(name)}" if name in names else f"a number called {quoted(name)}"
        if name in names or (job.metrics and name == f"{job.metrics[0].name}_sampled"):
            raise UserError(f"reward.function: {job.recipe.name} has {taken} already; give the function another name")


def _check_headline(job: Job) -> None:
    """Refuses, before any stage runs, a job that evaluation could not judge.

    Raises:
        UserError: no metric applies to the data, or the first that does cannot score answers one by one.
    """
    if not job.metrics and not any(example.answers for example in job.data.held_out.prompts):
        raise UserError(
            f"nothing judges the answers: {job.data.source} brings none to compare with; name a function that does, as "
            "reward.function=rewards.py:exact"
        )
    if not job.metrics:
        needs = ", ".join(
            f"'{metric.needs}' for {metric.name}" for metric in job.recipe.evaluation.metrics if metric.needs
        )
        lacking = f"{job.data.source} lacks {needs}" if needs else "it has none at all"
        raise UserError(
            f"no metric of {job.recipe.name} applies: {lacking}; bring such data, or give the recipe a metric that needs "
            "the reference answers alone, such as metrics.mean_of('overlap', metrics.f1)"
        )
    if (headline := job.metrics[0]).score is None:
        raise UserError(
            f"the headline of {job.recipe.name} is '{headline.name}', which cannot score answers one by one; "
            "put a metric that can before it, such as metrics.mean_of('overlap', metrics.f1)"
        )


def _check_turns(job: Job) -> None:
    """Refuses to learn every turn of demonstrations that have one.

    Raises:
        UserError: no demonstration has a turn of the assistant before its answer.
    """
    demonstrations = job.data.train.demonstrations
    if job.profile.sft.learn == "all" and not any(m.role == "assistant" for e in demonstrations for m in e.prompt):
        raise UserError(
            f"sft.learn=all has no effect: no demonstration of {job.data.source} has a turn of the assistant before its "
            "answer; leave it out"
        )


def _check_demonstrations(job: Job) -> None:
    """Refuses to imitate demonstrations that are not there, or to guess from them how long an answer may be.

    Raises:
        UserError: `run.start` is SFT, or `ppo.response_length` is not set.
    """
    if job.data.train.demonstrations:
        return
    if job.profile.run.start == SFT:
        raise UserError(
            f"{job.data.source} brings no demonstrations for SFT to imitate; begin at the base ({setting('start', BASE)})"
        )
    if not job.profile.ppo.response_length:
        raise UserError(
            f"{job.data.source} brings no answers that tell how long one may be; set ppo.response_length, in tokens"
        )


def _check_policies(job: Job) -> None:
    """Refuses to compare the policy of an algorithm that the run does not have.

    Raises:
        UserError: it is named; `all` means those that are there.
    """
    if job.profile.evaluate.policies == "all":
        return
    for name, policy in chosen(job.profile.evaluate.policies, job.run, job.profile.run.start).items():
        if policy.stage and not job.has(policy.stage):
            there = ", ".join(algorithms(job.profile))
            raise UserError(
                f"evaluate.policies names {name}, and run.algorithms={there} leaves that out; add it there, or leave it out "
                "here"
            )


def check_seed(seed: int) -> None:
    """Refuses a seed that NumPy's generators do not take.

    Raises:
        UserError: it is negative or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed is {seed}; it must be a whole number from 0 to {2**32 - 1}")


def _joint_job(
    name: str,
    profile: Profile,
    run: Run,
    weights: Sequence[str],
    source: str | None,
    columns: Mapping[str, str],
    seed: int,
) -> Job:
    """The job of several recipes that share a reward model."""
    recipes = recipes_of(name)
    own = ((weights, "terms.…"), (columns, "--columns"), (profile.reward.model, "reward.model"))
    for value, name_of in (*own, (profile.reward.seeds > 1, "reward.seeds")):
        if value:
            raise UserError(
                f"{name_of} is for one recipe, not for {name}; leave it out, and use it with each recipe alone"
            )
    sources = sources_of(recipes, source)
    parts = {recipe.name: load(recipe, part, {}, run.root) for recipe, part in zip(recipes, sources, strict=True)}
    objective(profile.reward, parts)
    asked = asked_for(name, profile, source, seed)
    return Job(joint_recipe(recipes), profile, run, joint_data(parts), seed, parts, asked)


def _serves(examples: Sequence[Example], needs: str | None) -> bool:
    return needs is None or all(needs in example.truth for example in examples)


def recipes_of(name: str) -> list[Recipe]:
    """The recipes that a name such as `translation+dialogue` joins; one for a name without a plus.

    Raises:
        UserError: a recipe does not exist, or the name has it twice.
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
            f"with '{PLUS}', '{BUILT_IN}' for built-in data"
        )
    return list(parts)


def joint_recipe(recipes: Sequence[Recipe]) -> Recipe:
    """One recipe for the stages that several share; it has no reward terms, since PPO is not among those stages."""
    name, summary = PLUS.join(recipe.name for recipe in recipes), "a reward model that several recipes share"
    return dataclasses.replace(recipes[0], name=name, summary=summary, reward=Reward(), judge=None)
