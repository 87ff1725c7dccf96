"""What a run has trained, read from the records of its stages; `chat` and `export` need neither data nor options.

FinishedRun(run=Run("tiny", "translation"), recipe=…, records={"sft": {"settings": {"model.name": "builtin", …}, …}, …})
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError, has_make, option, switch
from rlrecipes.hub.identity import is_another
from rlrecipes.model.embedded import check_base
from rlrecipes.profile import ModelSettings
from rlrecipes.recipe import BUILT_IN, Message, Prompt, Recipe, unknown
from rlrecipes.report.records import finished_algorithms, is_algorithm, start_of, withheld_algorithms
from rlrecipes.run.folder import Run, make, read_json
from rlrecipes.run.stages import STAGES, Policy, policies

RECORDED = ("data", "finished", "git_commit", "metrics", "seconds", "seed", "versions")
"""What every stage records."""
SHOWN = 50
"""Held-out prompts that are read to see what prompts look like."""


@dataclass(frozen=True)
class FinishedRun:
    """A run in which its first policy, at least, is finished: SFT, or an algorithm's where it begins at the base."""

    run: Run
    recipe: Recipe
    records: Mapping[str, Mapping[str, Any]]
    """The `done.json` of each finished stage."""

    def policy(self, name: str | None) -> str:
        """The policy called `name`; for None, the one that was trained last.

        Raises:
            UserError: there is no such policy, or it has not been trained; the sentence has the command for that.
        """
        if name is None:
            return self.policies[-1]
        if name not in self._models:
            there = f"there are {', '.join(self._models)}"
            raise UserError(unknown("policy", name, list(self._models), there))
        if name not in self.policies:
            raise UserError(f"{self._without(name)}, or choose {option('policy', self.policies[-1])}")
        return name

    @property
    def policies(self) -> tuple[str, ...]:
        """The policies that can answer: the base, and those whose stage is finished."""
        there = {None, *self.records}
        return tuple(name for name, policy in self._models.items() if policy.stage in there)

    @property
    def table(self) -> Mapping[str, Policy]:
        """The policies that a run can have which began where this one did."""
        return policies(start_of(self.records))

    @property
    def _models(self) -> Mapping[str, Policy]:
        return {name: policy for name, policy in self.table.items() if not policy.best_of}

    @property
    def first(self) -> Mapping[str, Any]:
        """The record of its first stage: SFT's, or an algorithm's where the run began at the base."""
        return next(iter(self.records.values()))

    def missing(self) -> str | None:
        """A sentence on the first policy that is not there yet, with the command for it; None where all are there.

        One algorithm is enough; where none is finished, the sentence is on one that was not run, or on PPO.
        """
        spare = {name for name in self._models if is_algorithm(name)}
        if not finished_algorithms(self.records):
            spare -= {*(withheld_algorithms(self.records) or ["ppo"])[:1]}
        return next((self._without(name) for name in self._models if name not in (*self.policies, *spare)), None)

    def _without(self, policy: str) -> str:
        title, stage = self._models[policy].title, str(self._models[policy].stage)
        if policy in withheld_algorithms(self.records):
            anyway = f"ARGS={policy}.anyway=true" if has_make() else f"{policy}.anyway=true"
            reason = self.records["evaluate"]["withheld"].partition(";")[0]
            why = f"{title} was not run in {self.run.folder}, since {reason}"
            return f"{why}; make it all the same with `{make(stage, self.run)} {anyway}`"
        return f"{title} has not been run in {self.run.folder}; make it with `{make(stage, self.run)}`"

    @property
    def learned(self) -> bool:
        """Whether there is a reward model."""
        return "reward" in self.records

    @property
    def model(self) -> ModelSettings:
        """How the base was held in memory in training."""
        names = {field.name for field in dataclasses.fields(ModelSettings)}
        settings = {key.removeprefix("model."): value for key, value in self.first["settings"].items()}
        return ModelSettings(**{name: settings[name] for name in names if name in settings})

    @property
    def embedded(self) -> bool:
        """Whether the base is the embedded one rather than the user's model."""
        return self.model.name == "builtin"

    def base_model(self) -> str:
        """The base's hub id or folder.

        Raises:
            UserError: it has changed, or it is the embedded one and is gone or damaged.
        """
        if not self.embedded:
            self._check_same(self.model.name)
            return self.model.name
        # The adapter names its base. Recipes' documents may have changed since, and with them the base of today.
        stage = next(stage for stage in self.records if (self.run.stage(stage) / "adapter").is_dir())
        path = self.run.stage(stage) / "adapter" / "adapter_config.json"
        base = read_json(path).get("base_model_name_or_path")
        if base is None:
            raise UserError(
                f"{path} is damaged; make the run again with `{make(stage, self.run)} {switch('force')}` and its options"
            )
        if not (Path(base) / "config.json").is_file():
            raise UserError(
                f"the embedded base that {self.run.folder} was trained on is gone ({base}); put it back, or make both again "
                f"with `{make(self.run.recipe, self.run)} {switch('force')}` and the run's options"
            )
        check_base(Path(base))
        self._check_same(base)
        return str(base)

    def _check_same(self, base: str) -> None:
        if is_another(base, self.first.get("base")):
            raise UserError(
                f"{self.run.folder} was trained on other weights or another config.json than {base} has now; put those "
                f"back, or make the run again with `{make(self.run.recipe, self.run)} {switch('force')}` and its options"
            )

    @property
    def answer_length(self) -> int | None:
        """The most tokens of answers in training, which is the same for all, or in evaluation; None before either."""
        stages = [*finished_algorithms(self.records), "answers"]
        lengths: list[int | None] = [self.records.get(name, {}).get("answer_length") for name in stages]
        return next((length for length in lengths if length), None)

    @cached_property
    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Up to `SHOWN` held-out prompts with each policy's answer, from the evaluation; none before it.

        Raises:
            UserError: the file is damaged.
        """
        path = self.run.stage("evaluate") / "samples.jsonl"
        if "evaluate" not in self.records:
            return ()
        try:
            with path.open(encoding="utf-8") as file:
                rows = [json.loads(line) for line in itertools.islice(file, SHOWN)]
            return [{"prompt": [Message(**m) for m in row["prompt"]], "policies": row["policies"]} for row in rows]
        except (OSError, ValueError, TypeError, KeyError):
            raise UserError(
                f"{path} is damaged or missing; "
                f"make its stage again with `{make('evaluate', self.run)} {switch('force')}`"
            ) from None

    @cached_property
    def prompts(self) -> Sequence[Prompt]:
        """Some prompts as training had them; none for the user's own data before the evaluation."""
        if self.samples:
            return [tuple(row["prompt"]) for row in self.samples]
        if self.first["data"]["source"] != BUILT_IN or self.recipe.builtin is None:
            return ()
        return [example.prompt for example in self.recipe.builtin().held_out.prompts[:SHOWN]]

    @property
    def prefix(self) -> str:
        """The recipe's words before a person's text, where all prompts in training begin with them."""
        prefix = self.recipe.prefix
        return prefix if all(prompt[-1].content.startswith(prefix) for prompt in self.prompts) else ""

    @property
    def many_turns(self) -> bool:
        """Whether prompts are whole dialogues."""
        return any(sum(message.role == "user" for message in prompt) > 1 for prompt in self.prompts)

    @property
    def system(self) -> Prompt:
        """The system message that all prompts begin with; empty where there is none or they differ."""
        first = {prompt[0] for prompt in self.prompts}
        return tuple(first) if len(first) == 1 and next(iter(first)).role == "system" else ()


def find_finished_run(run: Run, recipe: Recipe) -> FinishedRun:
    """A run with its finished stages.

    Raises:
        UserError: SFT is not finished, or a record lacks a key; the sentence has the command to run.
    """
    records = {stage: record for stage in STAGES if (record := run.done(stage)) is not None}
    for stage, record in records.items():
        if gaps := [key for key in RECORDED if key not in record]:
            path = run.stage(stage) / "done.json"
            again = f"{make(stage, run)} {switch('force')}"
            raise UserError(f"{path} lacks '{gaps[0]}'; make the stage again with `{again}`")
    if "sft" not in records and start_of(records) != "base":
        raise UserError(f"nothing has been trained in {run.folder}; begin with `{make('sft', run)}`")
    return FinishedRun(run, recipe, records)
