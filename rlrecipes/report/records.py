"""What the finished stages of a run left on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlrecipes.errors import UserError
from rlrecipes.run.folder import Run
from rlrecipes.run.stages import POLICIES, STAGES, Policy

Records = Mapping[str, Mapping[str, Any]]
"""The `done.json` of each finished stage."""


def finished_records(run: Run) -> Records:
    records = {stage: run.done(stage) for stage in STAGES if stage != "report"}
    return {stage: record for stage, record in records.items() if record is not None}


def json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.strip()]
    except ValueError:
        raise UserError(f"{path} is damaged; delete the folder {path.parent} and make the stage again") from None


class Pair(NamedTuple):
    """The last policy of the table that has been trained, beside the one that it is compared with."""

    name: str
    policy: Policy
    over: Policy
    measures: Mapping[str, Mapping[str, float]]
    """What evaluation found of the two, such as `gain`; nothing before it."""


def last_pair(records: Records) -> Pair:
    """PPO over SFT, unless a later policy has been evaluated."""
    comparisons = records.get("evaluate", {}).get("comparisons", {})
    compared = {name: policy for name, policy in POLICIES.items() if f"{name}_over_{policy.over}" in comparisons}
    name = [*compared, *([] if compared else POLICIES)][-1]
    over = str(POLICIES[name].over)
    return Pair(name, POLICIES[name], POLICIES[over], comparisons.get(f"{name}_over_{over}", {}))


def headline_value(records: Records, policy: str) -> Mapping[str, float] | None:
    """A policy's headline metric."""
    evaluated = records.get("evaluate", {})
    found: Mapping[str, float] | None = evaluated.get("metrics", {}).get(policy, {}).get(evaluated.get("headline"))
    return found


def column(rows: Iterable[Mapping[str, float]], key: str) -> list[tuple[int, float]]:
    """Step and value, where the value is there and finite."""
    return [(int(row["step"]), row[key]) for row in rows if key in row and math.isfinite(row[key])]
