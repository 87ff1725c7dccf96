"""One road in one, two and three processes: what each stage takes, and how far what comes out is from one process.

    python -m benchmarks.processes
    {"processes": 2, "wall_s": {"sft": 9.1, …}, "cpu_s": {"sft": 7.2, …}, "apart": {"sft": 3e-08, …}, "shared": {…}}

The stages run as `torchrun --nproc_per_node n -m -- rlrecipes …` runs them, on the embedded base and generated data, each
process with one thread. `cpu_s` are the seconds that the first process computes, which other work on the machine leaves
alone. `shared` is how often the first process hands something to the others, and its bytes: gradients and losses are summed,
all else is gathered.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("sft", "reward", "ppo", "answers", "evaluate")
SETTINGS = (
    *("base.max_steps=20", "track.wandb=off", "evaluate.limit=48", "evaluate.batch_size=8"),
    *("evaluate.policies=base,sft,best4,ppo", "ppo.anyway=true"),
    *("sft.max_steps=10", "sft.keep=last", "reward.max_steps=10", "reward.keep=last", "ppo.total_episodes=128"),
    *("ppo.eval_every=0", "ppo.num_sample_generations=0", "evaluate.judge=none", "checkpoint.seconds=3600"),
)
"""Sizes of the profile `tiny`, fewer steps."""
COUNTED = """
import atexit, json, pathlib, pickle, runpy, sys, time
from rlrecipes.run import processes
counts, stage = {}, ["before"]
def counted(name, usual, size):
    def act(value):
        row = counts.setdefault(stage[0], {}).setdefault(name, [0, 0])
        row[0], row[1] = row[0] + 1, row[1] + size(value)
        return usual(value)
    return act
processes.add_up = counted("summed", processes.add_up, lambda tensor: tensor.numel() * tensor.element_size())
processes.gather = counted("gathered", processes.gather, lambda value: len(pickle.dumps(value)))
if processes.is_first():
    import rlrecipes.stages.attempt as attempt
    usual = attempt._attempt
    def named(job, profile, model, name, conditions):
        stage[0], began = name, time.process_time()
        try:
            return usual(job, profile, model, name, conditions)
        finally:
            counts.setdefault(name, {})["cpu_s"] = round(time.process_time() - began, 1)
    attempt._attempt = named
    atexit.register(lambda: pathlib.Path("counts.json").write_text(json.dumps(counts)))
sys.argv = ["rlrecipes", *sys.argv[1:]]
runpy.run_module("rlrecipes", run_name="__main__", alter_sys=True)
"""
"""The command line, with what is handed over counted."""


def road(home: Path, processes: int, name: str, command: str = "run") -> None:
    """Runs the road in `processes` processes."""
    script = home / "counted.py"
    script.write_text(COUNTED, encoding="utf-8")
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", str(processes)]
    start = [sys.executable] if processes == 1 else torchrun
    end = [str(script)] if processes == 1 else ["--", str(script)]
    given = [command, "translation", "--run", name, *SETTINGS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*start, *end, *given], cwd=home, env=environment, check=True, stdout=sys.stderr)


def measured(home: Path, processes: int, name: str) -> dict[str, Any]:
    """What a finished road took, and how far it is from that of one process."""
    folder, one = (home / "runs" / run / "translation" for run in (name, "in-1"))
    seconds = {stage: json.loads((folder / stage / "done.json").read_text())["seconds"] for stage in STAGES}
    counts = json.loads((home / "counts.json").read_text())
    return {
        "processes": processes,
        "wall_s": seconds,
        "cpu_s": {stage: counts[stage].pop("cpu_s") for stage in STAGES},
        "apart": apart(folder, one),
        "shared": {stage: counts[stage] for stage in STAGES if processes > 1},
    }


def apart(ours: Path, theirs: Path) -> dict[str, float]:
    """The largest difference of any weight of each stage's adapters and heads."""
    found = {}
    for stage in ("sft", "reward", "ppo"):
        paths = [path.relative_to(ours) for path in sorted((ours / stage).rglob("*.safetensors"))]
        pairs = [(load_file(ours / path), load_file(theirs / path)) for path in paths]
        found[stage] = max(float((a[key] - b[key]).abs().max()) for a, b in pairs for key in a)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="processes-") as folder:
        home = Path(folder)
        road(home, 1, "base", "sft")  # with the embedded base, which the others find there
        for processes in sorted({1, *arguments.processes}):
            road(home, processes, f"in-{processes}")
            print(json.dumps(measured(home, processes, f"in-{processes}")), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
