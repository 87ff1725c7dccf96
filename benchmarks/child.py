"""The process in which a measurement runs: it reads an order on standard input and writes its result to a file.

Only here are torch and TRL imported; `benchmarks.measure` starts this module and nothing else does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.work import Work, from_json
from rlrecipes.errors import UserError
from rlrecipes.run.allocator import grow_in_place, keep_freed_memory
from rlrecipes.run.console import quiet
from rlrecipes.run.folder import write_json


def main() -> None:
    """Runs the order on standard input."""
    order = json.load(sys.stdin)
    try:
        found = perform(order)
    except UserError as error:
        found = {"error": str(error)}
    write_json(Path(order["result"]), found)


def perform(order: dict[str, Any]) -> dict[str, Any]:
    """Runs an order and returns what it found."""
    if order["core"] is not None:
        os.sched_setaffinity(0, {order["core"]})
    grow_in_place()
    keep_freed_memory()  # as the command line does; plain TRL gains as much from it
    quiet()
    if order["core"] is not None:
        import torch

        torch.set_num_threads(1)
    return _task(order["task"])(from_json(order["work"]), Path(order["folder"]), **order["options"])


def _task(name: str) -> Callable[..., dict[str, Any]]:
    if name == "exact":
        from benchmarks.equality import exact

        return exact
    if name == "gain":
        from benchmarks.equality import gain

        return gain
    if name == "overhead":
        from benchmarks.overhead import overhead

        return overhead
    if name == "large":
        from benchmarks.large import large

        return large
    if name == "gpu":
        from benchmarks.gpu_checks import checks

        return checks
    if name == "plan":
        from benchmarks.plan import plan

        return plan
    return lambda work, folder: _arm(name, work, folder)


def _arm(name: str, work: Work, folder: Path) -> dict[str, Any]:
    """One arm's training, measured from after what `_begun` makes to its end."""
    from transformers import set_seed

    from benchmarks import models
    from benchmarks.measure import peak, reset_peak, settle
    from benchmarks.work import toy

    small = toy(work)
    _begun(name, small, models.tokenizer(small.model), folder)()  # loads what the libraries load at their first use
    tokenizer = models.tokenizer(work.model)
    settle()
    before = reset_peak()
    train = _begun(name, work, tokenizer, folder)
    set_seed(work.seed)
    cpu, wall = time.process_time(), time.perf_counter()
    trainer = train()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    highest = peak()
    return {
        "cpu_s": cpu,
        "wall_s": wall,
        "peak_mb": highest - before,
        "absolute_peak_mb": highest,
        "updates": [row for row in trainer.state.log_history if "objective/kl" in row],
    }


def _begun(name: str, work: Work, tokenizer: Any, folder: Path) -> Callable[[], Any]:
    """What trains an arm and returns its trainer. Of DPO it builds it too: there TRL's has computed the reference by then."""
    from benchmarks import ours, ours_dpo, plain, plain_dpo, plain_groups

    if work.algorithm == "dpo":
        begin = plain_dpo.begin if name == "plain" else ours_dpo.begin
        return begin(work, tokenizer, folder)
    of_trl = plain if work.algorithm == "ppo" else plain_groups
    trainer = {"plain": of_trl, "ours": ours}[name].build(work, tokenizer, folder)

    def train() -> Any:
        trainer.train()
        return trainer

    return train


if __name__ == "__main__":
    main()
