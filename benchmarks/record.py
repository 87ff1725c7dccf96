"""What the measurements come to: ratios with their ranges, intervals over seeds, and each target beside its figure.

    {"shapes": {"trunk_heavy": {"cpu_ratio": {"value": 0.58, "low": 0.57, "high": 0.59}, …}}, "targets": [...], …}

A target that is missed or was not measured says so; nothing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

from benchmarks.work import Other

CPU_TARGETS = {"trunk_heavy": 0.50, "varied_lengths": 0.60, "vocabulary_heavy": 1.0}
MEMORY_TARGETS = {"vocabulary_heavy": 0.20, "trunk_heavy": 0.45}
OTHERS: tuple[Other, ...] = ("rloo", "grpo", "dpo")
OTHER_CPU_TARGETS: dict[Other, dict[str, float]] = {
    "rloo": {"trunk_heavy": 0.75, "vocabulary_heavy": 0.75},
    "grpo": {"trunk_heavy": 0.75, "vocabulary_heavy": 0.75},
    "dpo": {"trunk_heavy": 0.90, "vocabulary_heavy": 0.90},
}
OTHER_MEMORY_TARGETS = {"vocabulary_heavy": 0.50}
OVER_PPO_TARGET = 0.85
"""Peak memory of our RLOO over our PPO's with an adapter for its values."""
OVERHEAD_TARGET = 0.15
EXACT_TARGET = 1e-4
GPU_TARGET_GB = 24.0

RATIOS = {
    "cpu_ratio": "cpu_s",
    "wall_ratio": "wall_s",
    "memory_ratio": "peak_mb",
    "absolute_memory_ratio": "absolute_peak_mb",
}
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t for a two-sided 95 % interval of a mean, by the number of values."""


def shape_record(pairs: Sequence[Mapping[str, Mapping[str, Any]]], overhead: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a shape: those of its pairs, and our overhead."""
    share = overhead["overhead"]
    return {**pair_record(pairs), "overhead_over_arithmetic": share / (1 - share), **overhead}


def pair_record(pairs: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Ours over plain, and over our PPO where it took its turn: the median of the pairs with their range; and the medians of
    each arm."""
    ratios = {name: _ratio(pairs, "plain", key) for name, key in RATIOS.items()}
    if "ppo" in pairs[0]:
        ratios |= {f"{name}_to_ppo": _ratio(pairs, "ppo", key) for name, key in RATIOS.items()}
    arms = {arm: {key: median(pair[arm][key] for pair in pairs) for key in RATIOS.values()} for arm in pairs[0]}
    each = [{arm: {key: pair[arm][key] for key in RATIOS.values()} for arm in pair} for pair in pairs]
    return {**ratios, **arms, "pairs": each}


def _ratio(pairs: Sequence[Mapping[str, Mapping[str, Any]]], other: str, key: str) -> dict[str, float]:
    return spread([pair["ours"][key] / max(pair[other][key], 1e-9) for pair in pairs])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"value": median(values), "low": min(values), "high": max(values)}


def gain_record(found: Mapping[str, Any]) -> dict[str, Any]:
    """Both arms' mean gains and their paired difference over seeds with its 95 % interval."""
    plain, ours = found["gains"]["plain"], found["gains"]["ours"]
    differences = [mine - theirs for mine, theirs in zip(ours, plain, strict=True)]
    half = T95[len(differences)] * stdev(differences) / math.sqrt(len(differences))
    mean = fmean(differences)
    return {
        "plain": fmean(plain),
        "ours": fmean(ours),
        "difference": {"value": mean, "low": mean - half, "high": mean + half},
        **found,
    }


def targets(shapes: Mapping[str, Any], exact: Mapping[str, Any], gain: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target with what was measured; `met` is null where it was not."""
    rows = [
        *(_at_most(f"peak memory, {s}", shapes[s]["memory_ratio"], limit) for s, limit in MEMORY_TARGETS.items()),
        *(_at_most(f"CPU time, {s}", shapes[s]["cpu_ratio"], limit) for s, limit in CPU_TARGETS.items()),
        *(
            _at_most(
                f"overhead over model arithmetic, {s}", {"value": row["overhead_over_arithmetic"]}, OVERHEAD_TARGET
            )
            for s, row in shapes.items()
        ),
    ]
    for placement in ("trunk", "adapter"):
        worst = {"value": max(exact[placement].values())} if placement in exact else None
        rows.append(_at_most(f"largest difference from plain TRL, value on {placement}", worst, EXACT_TARGET))
    difference = gain["difference"]
    rows.append(
        {
            "name": "gain in reward over plain TRL's, value on trunk",
            "found": difference,
            "limit": "not shown to be less",
            "met": difference["high"] >= 0,
        }
    )
    rows.append(_at_most("GPU memory in GB, four roles of an 8B model", None, GPU_TARGET_GB))
    return rows


def other_targets(others: Mapping[Other, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The targets of RLOO, GRPO and DPO, by algorithm and shape."""
    rows = []
    for name, shapes in others.items():
        title = name.upper()
        rows += [
            *(
                _at_most(f"{title}, CPU time, {s}", shapes[s]["cpu_ratio"], m)
                for s, m in OTHER_CPU_TARGETS[name].items()
            ),
            *(
                _at_most(f"{title}, peak memory, {s}", shapes[s]["memory_ratio"], m)
                for s, m in OTHER_MEMORY_TARGETS.items()
            ),
            *(
                _at_most(f"{title}, peak memory over our PPO's with a value adapter, {s}", found, OVER_PPO_TARGET)
                for s, row in shapes.items()
                if (found := row.get("memory_ratio_to_ppo"))
            ),
        ]
    return rows


def of_quick_run(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The targets of a quick run, of which the exact part alone says anything."""
    return [dict(row) if row["limit"] == EXACT_TARGET else {**row, "met": None} for row in rows]


def large_targets(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The one target of a real model's size; a CPU's memory says nothing about it."""
    measured = None if found["device"] == "cpu" else {"value": found["peak_gb"]}
    return [_at_most("GPU memory in GB, four roles of an 8B model", measured, GPU_TARGET_GB)]


def _at_most(name: str, found: Mapping[str, float] | None, limit: float) -> dict[str, Any]:
    return {"name": name, "found": found, "limit": limit, "met": None if found is None else found["value"] <= limit}
