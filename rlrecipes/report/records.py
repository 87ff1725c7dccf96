"""The records of a run's finished stages on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rlrecipes.errors import UserError
from rlrecipes.run.folder import Run
from rlrecipes.run.stages import POLICIES, STAGES, Policy, models, policies

Records = Mapping[str, Mapping[str, Any]]
"""The `done.json` of each finished stage."""
Logs = Mapping[str, Sequence[Mapping[str, float]]]
"""The rows of each finished algorithm's log, by its name."""


def finished_records(run: Run) -> Records:
    records = {stage: run.done(stage) for stage in STAGES if stage != "report"}
    return {stage: record for stage, record in records.items() if record is not None}


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line; none where there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.strip()]
    except ValueError:
        raise UserError(f"{path} is damaged; delete the folder {path.parent} and make the stage again") from None


def is_algorithm(name: str) -> bool:
    """Whether a policy, or a stage, is an algorithm's."""
    return name in STAGES and STAGES[name].algorithm


def finished_algorithms(records: Records) -> list[str]:
    """The algorithms that a run has finished, in the order in which they run."""
    return [name for name in STAGES if is_algorithm(name) and name in records]


def climbers(records: Records) -> str:
    """Who climbed a run's reward, in a sentence: `PPO`, or `PPO, RLOO and GRPO`; PPO where nobody has yet."""
    return listed([name for name in finished_algorithms(records) if STAGES[name].climbs] or ["ppo"])


def climbed(records: Records) -> str:
    """What a run's reward is to the algorithms, in a sentence: what `PPO climbed`, or `PPO would climb` where nobody did."""
    done = any(STAGES[name].climbs for name in finished_algorithms(records))
    return f"{climbers(records)} {'climbed' if done else 'would climb'}"


def named(records: Records, algorithm: str, sentence: str) -> str:
    """A sentence on an algorithm, which it begins with where the run has finished several: `RLOO: from update 12 on …`."""
    if len(finished_algorithms(records)) < 2:
        return sentence
    return f"{POLICIES[algorithm].title}: {sentence[:1].lower()}{sentence[1:]}"


def not_run(records: Records) -> str | None:
    """Which algorithms were not run on a run's reward model and why, in a sentence without its stop; None for none."""
    evaluation = records.get("evaluate", {})
    if not (why := evaluation.get("withheld")):
        return None
    names = withheld_algorithms(records)
    return f"{listed(names)} {'were' if len(names) > 1 else 'was'} not run: {why}"


def withheld_algorithms(records: Records) -> list[str]:
    """The algorithms that were not run on a run's reward model; an older record, which does not name them, is of PPO."""
    evaluation = records.get("evaluate", {})
    return [*evaluation.get("not_run", ["ppo"])] if evaluation.get("withheld") else []


def ended_by_judge(judge: Mapping[str, Any]) -> list[str]:
    """The algorithms whose training a judge ended, by its record; an older one tells of PPO alone."""
    return [*judge.get("ended", ["ppo"] if judge.get("ended_ppo") else [])]


def listed(names: Sequence[str]) -> str:
    """The titles of algorithms in a sentence."""
    *first, last = [POLICIES[name].title for name in names]
    return f"{', '.join(first)} and {last}" if first else last


class Pair(NamedTuple):
    """A policy, and the one that evaluation compares it with."""

    name: str
    policy: Policy
    over: Policy
    measures: Mapping[str, Mapping[str, float]]
    """The estimates of evaluation for the two, such as `gain`; empty before the evaluation."""

    @property
    def title(self) -> str:
        return f"{self.policy.title} over {self.over.title}"


class Columns(NamedTuple):
    """What the columns of a table over several runs are about."""

    policies: Mapping[str, Policy]
    """Each has a column of its headline."""
    pair: Pair
    """It has the columns of what is compared."""

    @property
    def heads(self) -> list[str]:
        return [*(policy.title for policy in self.policies.values()), self.pair.title]


def columns(runs: Iterable[Records]) -> Columns:
    """The columns of a table over runs: of the algorithms those that any run has finished or evaluated; PPO before."""
    runs = list(runs)
    seen = {name for records in runs for name in (*records, *records.get("evaluate", {}).get("metrics", {}))}
    algorithms = {name for name in STAGES if is_algorithm(name)}
    hidden = algorithms - (seen & algorithms or {"ppo"})
    hidden |= {"sft"} if all(start_of(records) == "base" for records in runs) else set()
    return Columns({name: policy for name, policy in models().items() if name not in hidden}, common_pair(runs))


def common_pair(runs: Iterable[Records]) -> Pair:
    """The last pair of the table that any of several runs has evaluated: what a column over all of them is about.

    The runs' policies of its name may have begun at different places, SFT and the base.
    """
    evaluated = [last_pair(records) for records in runs if "evaluate" in records] or [last_pair({})]
    pair = max(evaluated, key=lambda pair: [*POLICIES].index(pair.name))
    alike = all(each.over == pair.over for each in evaluated if each.name == pair.name)
    return pair if alike else pair._replace(over=replace(pair.over, title="its start"))


def measures_of(records: Records, name: str) -> Mapping[str, Mapping[str, float]]:
    """A run's own estimates for a policy and the one that it is compared with; empty where it has not evaluated both."""
    comparisons = records.get("evaluate", {}).get("comparisons", {})
    over = policies(start_of(records))[name].over
    found: Mapping[str, Mapping[str, float]] = comparisons.get(f"{name}_over_{over}", {})
    return found


def start_of(records: Records) -> str:
    """Where a run's training began, as `run.start` says."""
    found = (record.get("settings", {}).get("run.start") for record in records.values())
    return next((str(start) for start in found if start), "sft")


def begun_at(records: Records) -> str:
    """The title of the policy that a run's algorithms begin at: `SFT`, or `base`."""
    return policies()["base" if start_of(records) == "base" else "sft"].title


def last_pair(records: Records, among: Collection[str] = POLICIES) -> Pair:
    """The last policy of the table that has been evaluated in a pair; before that the last that was trained, or PPO over SFT.

    Where no algorithm was run, that is the best of n: what its reward would have brought.
    """
    comparisons = records.get("evaluate", {}).get("comparisons", {})
    table = {name: policy for name, policy in policies(start_of(records)).items() if name in among}
    evaluated = [name for name, policy in table.items() if f"{name}_over_{policy.over}" in comparisons]
    trained = [name for name in finished_algorithms(records) if name in table]
    return _pair(records, (evaluated or sorted(trained, key=[*table].index) or [*table])[-1])


def trained_pairs(records: Records) -> list[Pair]:
    """A pair for each finished algorithm, and the last pair of the table, if that is another."""
    last = last_pair(records)
    names = dict.fromkeys([*finished_algorithms(records), last.name])
    return [_pair(records, name) for name in names]


def _pair(records: Records, name: str) -> Pair:
    policy = policies(start_of(records))[name]
    return Pair(name, policy, POLICIES[str(policy.over)], measures_of(records, name))


def last_trained(records: Records) -> Pair:
    """Like `last_pair`, with a policy that is a model of its own where one was evaluated in a pair."""
    own = last_pair(records, models())
    return own if own.measures else last_pair(records)


def headline_value(records: Records, policy: str) -> Mapping[str, float] | None:
    """A policy's headline metric with its interval; None before the evaluation."""
    evaluation = records.get("evaluate", {})
    value: Mapping[str, float] | None = evaluation.get("metrics", {}).get(policy, {}).get(evaluation.get("headline"))
    return value


def kept_update(records: Records, algorithm: str) -> int | None:
    """The update of the policy that an algorithm left; None where nothing was watched."""
    record = records.get(algorithm, {})
    watch = record.get("watch")
    if not watch or not watch["rows"]:
        return None
    last = record.get("settings", {}).get(f"{algorithm}.keep") == "last"
    return int(watch["rows"][-1]["update"] if last else watch["best"])


def column(rows: Iterable[Mapping[str, float]], key: str) -> list[tuple[int, float]]:
    """Steps and values of a log's column, without missing, NaN and infinite ones."""
    return [(int(row["step"]), row[key]) for row in rows if key in row and math.isfinite(row[key])]
