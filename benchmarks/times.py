"""The time plan beside what is taken: a recipe's stages in one thread, each phase's CPU seconds beside those planned.

    {"run": "translation, embedded base", "phase": "sft", "planned_s": 15.1, "taken_s": 17.0, "ratio": 0.89}

    python -m benchmarks.times                                       # the demo's translation
    python -m benchmarks.times --model .models/SmolLM2-135M-Instruct # a model of one's own, on a few steps
    python -m benchmarks.times sft.max_steps=30 terms.learned=0      # other settings, and rows of their own in the record

CPU seconds of one thread, since other processes on the machine stretch the others. The rates are measured before the first
stage and after the last, and each phase is planned with both: between them the machine may do other things. No stage may end
early (`patience=0`). Of the evaluation the model's passes are counted, as the plan says; the whole stands beside them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.measure import ONE_THREAD, QUIET, machine
from rlrecipes.errors import UserError
from rlrecipes.run.circumstances import git_commit
from rlrecipes.run.folder import Run, read_json, write_json

OUT = Path("runs/time-bench")
WITHIN = 1.5
"""The factor that a plan may be off by."""
LEAST = 10.0
"""Seconds below which a phase is too short to say anything of the plan: loading alone takes a few."""
PLAIN = ("track.wandb=off", "ppo.patience=0", "ppo.kl_stop=0", "ppo.anyway=true")
TO_THE_END = ("sft.patience=0", "reward.patience=0")
FEW = (
    *("sft.max_steps=12", "sft.per_device_train_batch_size=8", "sft.keep=last"),
    *("reward.max_steps=12", "reward.per_device_train_batch_size=8", "reward.keep=last"),
    *("ppo.total_episodes=64", "ppo.per_device_train_batch_size=32", "ppo.gradient_accumulation_steps=1"),
    *("evaluate.limit=32", "evaluate.batch_size=32", "evaluate.policies=base,sft,best4,ppo", "lora.lora_dropout=0.05"),
)
"""Settings under which a model of 135M parameters takes half an hour of one core."""
WHOLE = "evaluate, all of it"
"""The evaluation with the recipe's metrics and the intervals, which the plan leaves out."""
STAGES = ("sft", "reward", "judge", "ppo", "answers", "evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status: 0, 1 where a plan is off by more than `WITHIN`, 2 for what one can mend."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.times", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--recipe", default="translation", help="a recipe with built-in data")
    parser.add_argument(
        "--model", help="a local checkpoint folder (default: the embedded base, under the profile tiny)"
    )
    parser.add_argument("settings", nargs="*", metavar="table.key=value", help="other settings than these")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    try:
        if given.here:
            measure(given.recipe, given.model, given.settings)
            return 0
        return _apart(given.recipe, given.model, given.settings)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _apart(recipe: str, model: str | None, settings: Sequence[str]) -> int:
    """Measures in a process of its own with one thread, joins what it found to the record, and prints all there is."""
    command = [sys.executable, "-m", "benchmarks.times", "--here", "--recipe", recipe]
    command += [*(["--model", model] if model else []), *settings]
    done = subprocess.run(command, env=os.environ | QUIET | ONE_THREAD | {"CUDA_VISIBLE_DEVICES": ""})
    if done.returncode:
        return done.returncode
    rows = read_json(OUT / "done.json")["rows"]
    print(table(rows))
    return int(any(off(row) for row in rows))


def off(row: dict[str, Any]) -> bool:
    """Whether a phase that is long enough to tell is planned wrongly; of the whole evaluation the plan says nothing."""
    wrong = not 1 / WITHIN <= row["ratio"] <= WITHIN
    return bool(wrong and row["taken_s"] >= LEAST and row["phase"] != WHOLE)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each run, under its name."""
    lines: list[str] = []
    for name in dict.fromkeys(row["run"] for row in rows):
        lines += ["", f"{name}:", "", "| phase | plan, s | taken, s | plan over taken |", "|---|---|---|---|"]
        for row in (row for row in rows if row["run"] == name):
            ratio = f"{row['ratio']:.2f}" if row["taken_s"] >= LEAST else "under 10 s"
            lines.append(f"| {row['phase']} | {row['planned_s']:.0f} | {row['taken_s']:.0f} | {ratio} |")
    return "\n".join(lines[1:])


# What runs in the process that is measured.


def measure(recipe: str, model: str | None, settings: Sequence[str] = ()) -> None:
    """Runs the stages anew into a folder of their own, and writes the record, in which rows of other runs stay."""
    from rlrecipes.profile import load_profile
    from rlrecipes.run.allocator import grow_in_place, keep_freed_memory

    keep_freed_memory()
    grow_in_place()
    name = ", ".join([recipe, Path(model).name if model else "embedded base", *(f"`{each}`" for each in settings)])
    named = {each.partition("=")[0] for each in settings}
    usual = [each for each in (*(FEW if model else TO_THE_END), *PLAIN) if each.partition("=")[0] not in named]
    weights = [each for each in settings if each.startswith("terms.")]
    others = [each for each in settings if each not in weights]
    planned, taken = run(recipe, load_profile("own" if model else "tiny", [*usual, *others], model), weights)
    rows = [row(name, phase, planned[phase], taken[phase]) for phase in planned]
    if "evaluate" in taken:
        rows.append(row(name, WHOLE, planned["evaluate"], taken[WHOLE]))
    before = read_json(OUT / "done.json")["rows"] if (OUT / "done.json").exists() else []
    record = {"rows": [*(old for old in before if old["run"] != name), *rows], "machine": machine()}
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(OUT / "done.json", record | {"git_commit": git_commit(), "finished": time.strftime("%Y-%m-%d %H:%M")})


def row(name: str, phase: str, planned: float, taken: float) -> dict[str, Any]:
    return {"run": name, "phase": phase, "planned_s": planned, "taken_s": taken, "ratio": planned / taken}


def run(recipe: str, profile: Any, weights: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """The planned and the taken CPU seconds of each phase."""
    import rlrecipes.policy.trainer as trainer
    import rlrecipes.stages.evaluate as evaluation
    from rlrecipes.before.learning import Plan
    from rlrecipes.before.needed import needed
    from rlrecipes.before.passes import Sizes
    from rlrecipes.before.shape import lengths, read_shape
    from rlrecipes.before.timetable import cpu_rates, durations
    from rlrecipes.before.workload import workload
    from rlrecipes.pipeline import prepare, run_stages
    from rlrecipes.reward import model as scoring
    from rlrecipes.run.policies import chosen
    from rlrecipes.stages import answers, judge, ppo, reward, sft  # noqa: F401  what they import is no stage's time

    job = prepare(recipe, profile, weights=weights, data="built-in", run="time-bench")
    if profile.model.name == "builtin":
        from rlrecipes.model.pretrain import embedded_base

        embedded_base(profile.base, job.run.root, profile.checkpoint.seconds, recipe)
    shutil.rmtree(job.run.folder, ignore_errors=True)
    learned = bool(job.recipe.reward.learned)
    shape = read_shape(profile, learned)
    work = workload(job, lengths(shape, profile))
    made = Plan(
        Sizes(shape, profile, "cpu"), work, learned, chosen(profile.evaluate.policies, Run("time-bench", recipe))
    )
    before = durations(made, cpu_rates(made))
    taken: dict[str, float] = {}
    _replace(trainer, "phase", _noting, taken)
    for module, name in ((evaluation, "perplexity"), (scoring, "score_answers")):
        _replace(module, name, _timed, taken)
    for stage in [stage for stage in STAGES if needed(job, stage)]:
        taken["passes"], start = 0.0, time.process_time()
        run_stages(job, [stage])
        taken[stage] = time.process_time() - start
    taken |= {WHOLE: taken["evaluate"], "evaluate": taken["passes"]}
    after = durations(made, cpu_rates(made))
    planned = {one.phase: fmean([one.seconds, other.seconds]) for one, other in zip(before, after, strict=True)}
    return planned, taken


def _replace(module: Any, name: str, wrapped: Callable[..., Any], taken: dict[str, float]) -> None:
    setattr(module, name, wrapped(getattr(module, name), taken))


def _noting(phase: Callable[[str], Any], taken: dict[str, float]) -> Callable[[str], Any]:
    """The context that names a phase of PPO, which also adds up its time."""

    @contextmanager
    def noted(name: str) -> Iterator[None]:
        start = time.process_time()
        with phase(name):
            yield
        taken[name] = taken.get(name, 0.0) + time.process_time() - start

    return noted


def _timed(function: Callable[..., Any], taken: dict[str, float]) -> Callable[..., Any]:
    """A function that makes passes of the evaluation, whose time is added up."""

    def timed(*given: Any, **options: Any) -> Any:
        start = time.process_time()
        result = function(*given, **options)
        taken["passes"] += time.process_time() - start
        return result

    return timed


if __name__ == "__main__":
    sys.exit(main())
