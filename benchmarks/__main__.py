"""The command line: `python -m benchmarks` measures all algorithms beside plain TRL's, `--model` a real model's size.

It leaves `done.json` (written last) and `index.html` in `runs/bench/`, or in `runs/bench/<model>/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.growth import growth
from benchmarks.measure import machine, measure, require_linux
from benchmarks.page import table, write_page
from benchmarks.record import (
    OTHERS,
    gain_record,
    large_targets,
    of_quick_run,
    other_targets,
    pair_record,
    shape_record,
    targets,
)
from benchmarks.work import CUDA_MODELS, FULL, QUICK, Other, Plan, Work, large, of_algorithm, to_json
from rlrecipes.errors import UserError
from rlrecipes.recipe import unknown
from rlrecipes.run.circumstances import git_commit, require_trl
from rlrecipes.run.console import say
from rlrecipes.run.folder import write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status: 0, or 2 for what the user can mend."""
    try:
        arguments = _parse(argv)
        require_linux()
        require_trl()
        folder = Path(arguments.out) / (arguments.model or "")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "done.json").unlink(missing_ok=True)
        started = time.monotonic()
        if arguments.model:
            record = _large(arguments.model, arguments.device)
        else:
            record = _compare(QUICK if arguments.quick else FULL)
        record |= {"machine": machine(), "git_commit": git_commit(), "seconds": round(time.monotonic() - started)}
        record["finished"] = time.strftime("%Y-%m-%d %H:%M")
        write_page(folder / "index.html", record)
        write_json(folder / "done.json", record)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"\n{table(record)}\npage: {folder / 'index.html'}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="every step once at a toy's size; its figures mean nothing"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda needs --model (default: cpu)")
    parser.add_argument("--model", help=f"our arm alone at a model's size: {', '.join(CUDA_MODELS)}")
    parser.add_argument("--out", default="runs/bench", help="where the results go (default: runs/bench)")
    arguments = parser.parse_args(argv)
    if arguments.model and arguments.model not in CUDA_MODELS:
        raise UserError(unknown("model", arguments.model, list(CUDA_MODELS), f"there are {', '.join(CUDA_MODELS)}"))
    if arguments.device == "cuda" and not arguments.model:
        raise UserError(f"--device cuda measures a model by name; add --model, one of {', '.join(CUDA_MODELS)}")
    if arguments.device == "cpu" and arguments.model and not arguments.model.endswith("-toy"):
        raise UserError(
            f"{arguments.model} is too large for a CPU; add --device cuda, or take a model that ends in -toy"
        )
    if arguments.quick and arguments.model:
        raise UserError("--quick has no effect beside --model; take a model that ends in -toy")
    return arguments


def _compare(plan: Plan) -> dict[str, Any]:
    """Equality first, then the shapes, then growth."""
    run = partial(measure, apart=plan.apart)
    say("equality: the exact part, three updates in both arms")
    exact = run("exact", plan.exact)
    say(f"equality: gain in reward over {plan.seeds} seeds")
    gain = gain_record(run("gain", plan.gain, seeds=plan.seeds))
    shapes = {shape.name: _shape(plan, shape) for shape in plan.shapes}
    others = {name: {shape.name: _other(plan, shape, name) for shape in plan.others} for name in OTHERS}
    say("growth: batch, answer length and vocabulary")
    found = [*targets(shapes, exact, gain), *other_targets(others)]
    return {
        "quick": plan is QUICK,
        "shapes": shapes,
        "others": others,
        "equality": {"exact": exact, "gain": gain},
        "growth": growth(plan.growth, plan.doublings, run),
        "targets": of_quick_run(found) if plan is QUICK else found,
    }


def _shape(plan: Plan, shape: Work) -> dict[str, Any]:
    """The arms in turns, plain first; then our overhead."""
    pairs = _pairs(plan, shape.name, {"plain": ("plain", shape), "ours": ("ours", shape)})
    overhead = measure("overhead", shape, apart=plan.apart, rounds=plan.rounds)
    return {**shape_record(pairs, overhead), "work": to_json(shape)}


def _other(plan: Plan, shape: Work, name: Other) -> dict[str, Any]:
    """RLOO, GRPO or DPO, the arms in turns; in turn with RLOO also our own PPO with an adapter for its values."""
    work = of_algorithm(shape, name)
    arms = {"plain": ("plain", work), "ours": ("ours", work)}
    if name == "rloo":
        arms["ppo"] = ("ours", dataclasses.replace(shape, value="adapter"))
    return {**pair_record(_pairs(plan, f"{name}, {shape.name}", arms)), "work": to_json(work)}


def _pairs(plan: Plan, name: str, arms: Mapping[str, tuple[str, Work]]) -> list[dict[str, Any]]:
    """What each arm found in each turn."""
    pairs: list[dict[str, Any]] = []
    for turn in range(plan.pairs):
        pairs.append({arm: measure(task, work, apart=plan.apart) for arm, (task, work) in arms.items()})
        told = "; ".join(f"{arm} {one['cpu_s']:.1f} s, {one['peak_mb']:.0f} MB" for arm, one in pairs[-1].items())
        say(f"{name} {turn + 1}/{plan.pairs}: {told}")
    return pairs


def _large(name: str, device: str) -> dict[str, Any]:
    work = large(name)
    say(f"{name}: batch {work.batch}, {work.longest} + {work.answer} tokens, {work.updates} updates on {device}")
    found = measure("large", work, device, on=device)
    return {"quick": False, "model": name, "work": to_json(work), "large": found, "targets": large_targets(found)}


if __name__ == "__main__":
    sys.exit(main())
