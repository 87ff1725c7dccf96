"""The records of a run's finished stages on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlrecipes.errors import UserError
from rlrecipes.run.folder import Run
from rlrecipes.run.stages import POLICIES, STAGES, Policy, models

Records = Mapping[str, Mapping[str, Any]]
"""The `done.json` of each finished stage."""


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


class Pair(NamedTuple):
    """A policy, and the one that evaluation compares it with."""

    name: str
    policy: Policy
    over: Policy
    measures: Mapping[str, Mapping[str, float]]
    """The estimates of evaluation for the two, such as `gain`; empty before the evaluation."""


def common_pair(runs: Iterable[Records]) -> Pair:
    """The last pair of the table that any of several runs has evaluated: what a column over all of them is about."""
    evaluated = [last_pair(records) for records in runs if "evaluate" in records] or [last_pair({})]
    return max(evaluated, key=lambda pair: [*POLICIES].index(pair.name))


def measures_of(records: Records, pair: Pair) -> Mapping[str, Mapping[str, float]]:
    """A run's own estimates for a pair; empty where it has not evaluated both."""
    comparisons = records.get("evaluate", {}).get("comparisons", {})
    found: Mapping[str, Mapping[str, float]] = comparisons.get(f"{pair.name}_over_{pair.policy.over}", {})
    return found


def last_pair(records: Records, among: Mapping[str, Policy] = POLICIES) -> Pair:
    """The last policy of the table that has been evaluated in a pair; PPO over SFT before the evaluation.

    Where PPO was not run, that is the best of n: what its reward would have brought.
    """
    comparisons = records.get("evaluate", {}).get("comparisons", {})
    evaluated = [name for name, policy in among.items() if f"{name}_over_{policy.over}" in comparisons]
    name = (evaluated or [*among])[-1]
    over = str(POLICIES[name].over)
    return Pair(name, POLICIES[name], POLICIES[over], comparisons.get(f"{name}_over_{over}", {}))


def last_trained(records: Records) -> Pair:
    """Like `last_pair`, with a policy that is a model of its own where one was evaluated in a pair."""
    own = last_pair(records, models())
    return own if own.measures else last_pair(records)


def headline_value(records: Records, policy: str) -> Mapping[str, float] | None:
    """A policy's headline metric with its interval; None before the evaluation."""
    evaluation = records.get("evaluate", {})
    value: Mapping[str, float] | None = evaluation.get("metrics", {}).get(policy, {}).get(evaluation.get("headline"))
    return value


def kept_update(records: Records) -> int | None:
    """The update of the policy that PPO left; None where nothing was watched."""
    ppo = records.get("ppo", {})
    watch = ppo.get("watch")
    if not watch or not watch["rows"]:
        return None
    last = ppo.get("settings", {}).get("ppo.keep") == "last"
    return int(watch["rows"][-1]["update"] if last else watch["best"])


def column(rows: Iterable[Mapping[str, float]], key: str) -> list[tuple[int, float]]:
    """Steps and values of a log's column, without missing, NaN and infinite ones."""
    return [(int(row["step"]), row[key]) for row in rows if key in row and math.isfinite(row[key])]
