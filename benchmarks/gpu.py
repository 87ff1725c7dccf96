"""What only a GPU can tell: `python -m benchmarks.gpu` makes the checks that are missing, each with its target.

    model     a random model of an 8B's size: where it lies, a token step, peaks beside the plan, rounding, determinism,
              a paged optimizer saved and restored, what is held at the end
    bench     `python -m benchmarks --device cuda --model …`
    road      a recipe in 4-bit and bfloat16, every stage for 20 steps; killed once and compared byte for byte
    tests     the project's own

Each group runs in a process of its own and leaves `runs/gpu/<group>.json`; one that is there is not run again. With a toy
model and `--device cpu` the same code runs in seconds, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import table
from benchmarks.measure import QUIET, measure
from benchmarks.record import GPU_TARGET_GB
from benchmarks.work import CUDA_MODELS, large
from rlrecipes.errors import UserError
from rlrecipes.run.console import say
from rlrecipes.run.folder import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
GROUPS = ("model", "bench", "road", "tests")
STEPS = 20
Row = dict[str, Any]
"""A check: `name`, `target`, `found` in words, and `met`; null where nothing was asked, or where it was no GPU."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing; returns the exit status: 0, 1 where a target is missed, 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu takes a toy alone (cuda)")
    parser.add_argument("--model", choices=list(CUDA_MODELS), default="qwen3-8b", help="whose size (qwen3-8b)")
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS), help="these groups alone")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="where the results go (runs/gpu)")
    given = parser.parse_args(argv)
    try:
        if given.device == "cpu" and not given.model.endswith("-toy"):
            raise UserError(f"{given.model} is too large for a CPU; take a model that ends in -toy")
        rows = [row for group in given.only for row in _made(group, given)]
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    lines = [
        [row["name"], row["target"], row["found"], {True: "yes", False: "no", None: "–"}[row["met"]]] for row in rows
    ]
    print(f"\n{rows[0]['machine']}\n\n{table(['check', 'target', 'found', 'met'], lines)}")
    return int(any(row["met"] is False for row in rows))


def _made(group: str, given: argparse.Namespace) -> list[Row]:
    """The rows of a group, from its file where it has one."""
    file = given.out / f"{group}.json"
    if not file.exists():
        say(f"{group} …")
        make = {"model": _model, "bench": _bench, "road": _road, "tests": _tests}[group]
        rows = [row if given.device == "cuda" else {**row, "met": None} for row in make(given.device, given.model)]
        given.out.mkdir(parents=True, exist_ok=True)
        write_json(file, {"rows": [{**row, "machine": _machine(given.device)} for row in rows]})
    found: list[Row] = read_json(file)["rows"]
    return found


def _model(device: str, model: str) -> list[Row]:
    rows: list[Row] = measure("gpu", large(model), device, on=device)["rows"]
    return rows


def _bench(device: str, model: str) -> list[Row]:
    found = measure("large", large(model), device, on=device)
    speed = found["tokens_per_s"]
    shares = ", ".join(f"{name} {phase['share']:.0%}" for name, phase in found["phases"].items())
    return [
        {
            "name": f"four roles of {model}, a batch of 64 answers of 512 tokens",
            "target": f"at most {GPU_TARGET_GB:g} GB",
            "found": f"{found['peak_gb']:.1f} GB; {speed['whole_run']:.0f} tokens/s; {shares}",
            "met": found["peak_gb"] <= GPU_TARGET_GB,
        }
    ]


def _road(device: str, model: str) -> list[Row]:
    """A recipe on the embedded base, in 4-bit, and in bfloat16 on a GPU; then one kill."""
    steps = 2 if model.endswith("-toy") else STEPS
    dtype = "bfloat16" if device == "cuda" else "float32"
    settings = [
        *(f"{table}.max_steps={steps}" for table in ("base", "sft", "reward")),
        *(f"ppo.total_episodes={64 * steps}", "evaluate.limit=40", "ppo.anyway=true", "evaluate.judge=none"),
        *("model.quantization=nf4", f"model.dtype={dtype}", "checkpoint.seconds=0"),
    ]
    said, status = _said("rlrecipes", "run", "translation", "--run", "gpu-check", "--force", *settings)
    killed, after = _said(str(ROOT / "tests" / "kills.py"), "--kills", "1", "--seed", "0", script=True)
    return [
        {"name": f"a recipe, {steps} steps a stage", "target": "ends", "found": said, "met": status == 0},
        {"name": "killed once", "target": "the same bytes", "found": killed, "met": after == 0},
    ]


def _tests(device: str, model: str) -> list[Row]:
    chosen = ["tests/test_text.py"] if model.endswith("-toy") else []
    said, status = _said("pytest", "-q", "-p", "no:cacheprovider", *chosen)
    return [{"name": "the tests", "target": "pass", "found": said, "met": status == 0}]


def _said(*command: str, script: bool = False) -> tuple[str, int]:
    """The last line of a command of this Python, and its exit status."""
    start = [sys.executable] if script else [sys.executable, "-m"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [*start, *command],
        cwd=ROOT,
        env=os.environ | QUIET | {"PYTHONPATH": paths, "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
    )
    lines = (process.stdout.strip() or process.stderr.strip()).splitlines() or [f"status {process.returncode}"]
    return lines[-1].strip(), process.returncode


def _machine(device: str) -> str:
    import torch

    if device == "cpu":
        return f"no GPU (a toy on the CPU), torch {torch.__version__}"
    major, minor = torch.cuda.get_device_capability()
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    )
    version = driver.stdout.strip().splitlines()[:1] or ["unknown"]
    return f"{torch.cuda.get_device_name()} ({major}.{minor}), driver {version[0]}, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
