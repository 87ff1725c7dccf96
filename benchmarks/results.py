"""What a reader asks of the recipes, three seeds each: `python -m benchmarks.results` makes the runs that are missing.

    worlds      four recipes on their built-in data, every policy
    variants    PPO again over the same SFT and reward model: by the learned reward alone, without KL penalty, …
    real        real text and real models, where a folder of them is given

A run that is there is not made again, so the command goes on where it was stopped. What each run came to is kept in
`docs/numbers/results-<table>.json`, a row a run; a row whose run is not there stays as it is. The pages show the rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.cells import estimate, table, value, where
from rlrecipes.errors import UserError
from rlrecipes.model.embedded import SHARING
from rlrecipes.recipe import load_recipe
from rlrecipes.report.records import Records, finished_records
from rlrecipes.report.verdict import verdict_of
from rlrecipes.run.console import say
from rlrecipes.run.folder import Run, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "numbers"
RUNS = ("tiny", "seed1", "seed2")
"""The runs of the worlds, each with the seed of its place: those of the recipes' own pages."""
PAIR = "ppo_over_sft"


@dataclass(frozen=True)
class Trial:
    """A run, and its row."""

    table: str
    name: str
    recipe: str
    seed: int
    run: str
    options: tuple[str, ...] = ()
    """Of `rlrecipes run`."""

    @property
    def key(self) -> str:
        return f"{self.recipe} · {self.name} · {self.seed}"

    def command(self) -> list[str]:
        """Whole, of a process of its own."""
        start = [sys.executable, "-m", "rlrecipes", "run", self.recipe]
        return [*start, *self.options, "--run", self.run, "--seed", str(self.seed)]


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the runs and keeps their rows; returns the exit status: 1 where a run failed, 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("worlds", "variants", "real"), nargs="+", help="these tables alone")
    parser.add_argument("--real", type=Path, metavar="FOLDER", help="real data and models: see docs/results.md")
    parser.add_argument("--seeds", type=int, choices=range(len(RUNS)), nargs="+", default=list(range(len(RUNS))))
    parser.add_argument("--workers", type=int, choices=range(1, 65), default=2, metavar="N", help="runs at a time (2)")
    given = parser.parse_args(argv)
    try:
        tables = {"worlds": worlds(), "variants": variants()}
        tables |= {"real": real(given.real)} if given.real else {}
        if missing := {*(given.only or ())} - {*tables}:
            raise UserError(f"--only {missing.pop()} needs --real FOLDER with its data and models, see docs/results.md")
        failed = [key for name in given.only or tables for key in _made(name, tables[name], given)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if failed:
        print(f"error: these failed, see their logs in runs/results/: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _made(name: str, trials: Sequence[Trial], given: argparse.Namespace) -> list[str]:
    """Makes a table's runs and keeps their rows; the keys of those that failed."""
    trials = [trial for trial in trials if trial.seed in given.seeds]
    with ThreadPoolExecutor(given.workers) as pool:
        failed = [trial.key for trial, status in zip(trials, pool.map(make, trials), strict=True) if status]
    keep(name, trials)
    return failed


def worlds() -> list[Trial]:
    return [Trial("worlds", "default", recipe, seed, run) for recipe in SHARING for seed, run in enumerate(RUNS)]


def variants() -> list[Trial]:
    """What changes beside the default: all but the last take SFT and the reward model from a run of the worlds."""
    few = "evaluate.policies=sft,ppo"
    return [
        Trial(
            "variants",
            name,
            recipe,
            seed,
            f"{name.replace(' ', '-')}-{seed}",
            (few, *settings, *(() if name == "full precision" else ("--from", run))),
        )
        for recipe in SHARING
        for name, settings in _variants(recipe).items()
        for seed, run in enumerate(RUNS)
    ]


def _variants(recipe: str) -> dict[str, tuple[str, ...]]:
    terms = [term.name for term in load_recipe(recipe).reward.terms if not term.needs]
    return {
        "learned reward alone": tuple(f"terms.{name}=0" for name in terms),
        "written terms alone": ("terms.learned=0",),
        "no KL penalty": ("ppo.kl_coef=0",),
        "value adapter": ("ppo.value=adapter",),
        "full precision": ("model.quantization=none",),
    }


SENTIMENT = "sentiment.jsonl"
POEMS = (
    *("terms.learned=0", "base.vocab_size=768", "base.max_steps=400", "model.max_length=115", "ppo.value=adapter"),
    *("sft.per_device_train_batch_size=8", "sft.max_steps=800", "sft.learning_rate=2e-3", "ppo.temperature=0.4"),
    *("ppo.response_length=75", "ppo.total_episodes=1536", "ppo.kl_coef=0.005", "ppo.num_mini_batches=2"),
)
RATINGS = ("base.vocab_size=768", "base.max_steps=400", "sft.max_steps=50", "reward.max_steps=50")
"""The settings of docs/reward-models.md, chosen on training rows."""
REAL: Mapping[str, tuple[str, str, str | None, tuple[str, ...]]] = {
    "sentiment, stories260k": ("text_generation", SENTIMENT, "stories260k", ()),
    "sentiment, SmolLM2-135M-Instruct": ("text_generation", SENTIMENT, "SmolLM2-135M-Instruct", ()),
    "poems": ("text_generation", "poems.jsonl", None, POEMS),
    "ratings": ("translation", "ratings.jsonl", None, RATINGS),
    "translation, stories260k": ("translation", "translation.jsonl", "stories260k", ()),
    "question answering, stories260k": ("question_answering", "qa.jsonl", "stories260k", ()),
    "dialogue, stories260k": ("dialogue", "dialogue.jsonl", "stories260k", ()),
}
"""A row's recipe, data, model and settings."""
COLUMNS = {"translation.jsonl": ("--columns", "target=post_edit", "rejected=machine")}


def real(folder: Path) -> list[Trial]:
    """The trials whose data and model lie in a folder.

    Raises:
        UserError: it has nothing that is known here.
    """
    found = [
        Trial(
            "real",
            name,
            recipe,
            seed,
            f"{name.replace(', ', '-').replace(' ', '-')}-{seed}",
            (
                *settings,
                *("--data", str(folder / data), *COLUMNS.get(data, ())),
                *(("--model", str(folder / model)) if model else ()),
            ),
        )
        for name, (recipe, data, model, settings) in REAL.items()
        if (folder / data).exists() and (not model or (folder / model).exists())
        for seed in range(len(RUNS))
    ]
    if not found:
        raise UserError(f"--real {folder}: none of the data that docs/results.md names lie there; give their folder")
    return found


def make(trial: Trial) -> int:
    """Runs a trial's stages that are not there, in a process of its own; returns its exit status."""
    log = Path("runs", "results", f"{trial.run}-{trial.recipe}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"{trial.key}: {log}")
    with log.open("w", encoding="utf-8") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(trial.command(), env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    return done.returncode


def keep(
    name: str,
    trials: Sequence[Trial],
    read: Callable[[Trial], dict[str, Any] | None] | None = None,
    folder: Path | None = None,
) -> None:
    """Puts the rows of the trials whose runs are there, as `read` or `row_of` has them, beside those that were kept.

    Raises:
        UserError: they were made by several machines, whose figures differ.
    """
    file = (folder or KEPT) / f"results-{name}.json"
    kept = read_json(file)["figures"] if file.exists() else {}
    rows = kept | {trial.key: row for trial in trials if (row := (read or row_of)(trial))}
    if not rows:
        return
    machines = {where(row["machine"]): row["machine"] for row in rows.values()}
    if len(machines) > 1:
        raise UserError(f"{file.name} would hold the figures of {'; '.join(machines)}; remove it to begin anew")
    write_json(
        file,
        {
            "command": command(file.stem),
            "machine": next(iter(machines.values())),
            "commits": sorted({row["commit"] for row in rows.values()}),
            "date": max(row["date"] for row in rows.values()),
            "figures": dict(sorted(rows.items())),
        },
    )
    say(f"{file.name}: {len(rows)} rows")


def command(name: str) -> str:
    """What makes a table's rows, as a reader gives it."""
    others = {"results-real": "`make results ARGS='--real FOLDER'`", "results-algorithms": "`make compare-algorithms`"}
    return others.get(name, "`make results`")


def row_of(trial: Trial) -> dict[str, Any] | None:
    records = finished_records(Run(trial.run, trial.recipe))
    if "evaluate" not in records:
        return None
    evaluated = records["evaluate"]
    machine = {key: evaluated["machine"][key] for key in ("cpu", "cores", "threads")}
    return {
        "name": trial.name,
        "recipe": trial.recipe,
        "seed": trial.seed,
        "machine": machine | {"torch": evaluated["versions"]["torch"]},
        "commit": str(evaluated["git_commit"]),
        "date": evaluated["finished"][: len("2026-11-26")],
        **figures(records),
    }


def figures(records: Records) -> dict[str, Any]:
    """What a row shows; what was not measured is None."""
    evaluated = records["evaluate"]
    headline, pair = evaluated["headline"], evaluated["comparisons"].get(PAIR, {})
    reward = records.get("reward", {}).get("metrics", {})
    return {
        "headline": headline,
        "policies": {policy: values[headline] for policy, values in evaluated["metrics"].items()},
        "gain": pair.get("gain"),
        "sampled_gain": pair.get("sampled_gain"),
        "judge_win_rate": pair.get("judge_win_rate"),
        "kl": evaluated["kl"].get("ppo"),
        "words": {policy: evaluated["style"][policy]["words"]["value"] for policy in evaluated["style"]},
        "accuracy": reward.get("accuracy"),
        "longer_wins": reward.get("longer_wins"),
        "ceiling": reward.get("ceiling"),
        "verdict": verdict_of(records).tone if pair else None,
        "seconds": sum(record.get("seconds", 0) for record in records.values()),
    }


# to Markdown

Record = Mapping[str, Any]


def worlds_table(record: Record) -> str:
    """A row a run, and how often PPO is above the best of n."""
    rows = list(record["figures"].values())
    heads = ["recipe", "seed", "SFT", "best of 4", "best of 16", "PPO", "PPO over SFT, paired", *JUDGED]
    cells = [
        [row["recipe"], str(row["seed"]), *(value(row["policies"].get(each)) for each in POLICIES), *_judged(row)]
        for row in rows
    ]
    return f"{opening(record)}\n\n{table(heads, cells)}\n\n{_beside(rows, 'best4')} {_beside(rows, 'best16')}"


def variants_table(record: Record) -> str:
    """A row a recipe and variant: the gain of each seed, and means over the seeds."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in record["figures"].values():
        groups.setdefault((row["recipe"], row["name"]), []).append(row)
    heads = ["recipe", "variant", "seeds", "PPO", "PPO over SFT, paired, by seed", "judge prefers PPO", "KL"]
    cells = [
        [
            *key,
            ", ".join(str(row["seed"]) for row in rows),
            mean(row["policies"]["ppo"] for row in rows),
            "; ".join(estimate(row["gain"], signed=True) for row in rows),
            mean(row["judge_win_rate"] for row in rows),
            mean(row["kl"] for row in rows),
        ]
        for key, rows in groups.items()
    ]
    return f"{opening(record)}\n\n{table(heads, cells)}"


def real_table(record: Record) -> str:
    """A row a run."""
    heads = ["data, model", "seed", "headline", "SFT", "PPO", "PPO over SFT, paired", *JUDGED, "words: SFT, PPO"]
    cells = [
        [
            *(row["name"], str(row["seed"]), f"`{row['headline']}`"),
            *(value(row["policies"].get(policy)) for policy in ("sft", "ppo")),
            *_judged(row),
            ", ".join(f"{row['words'][policy]:.1f}" for policy in ("sft", "ppo") if policy in row["words"]),
        ]
        for row in record["figures"].values()
    ]
    return f"{opening(record)}\n\n{table(heads, cells)}"


TABLES: Mapping[str, Callable[[Record], str]] = {
    "results-worlds": worlds_table,
    "results-variants": variants_table,
    "results-real": real_table,
}
"""What the pages show, by the name of a block."""
POLICIES = ("sft", "best4", "best16", "ppo")
JUDGED = ("at temperature 1", "judge prefers PPO", "KL", "reward model (ceiling)", "verdict")


def _judged(row: Mapping[str, Any]) -> list[str]:
    ceiling = f" ({value(row['ceiling'])})" if row["ceiling"] else ""
    return [
        estimate(row["gain"], signed=True),
        estimate(row["sampled_gain"], signed=True),
        estimate(row["judge_win_rate"]),
        value(row["kl"]),
        f"{estimate(row['accuracy'])}{ceiling}",
        {"better": "better", "worse": "worse", "open": "not shown", None: "no PPO"}[row["verdict"]],
    ]


def _beside(rows: Sequence[Mapping[str, Any]], other: str) -> str:
    """In how many runs PPO's headline is above a best of n, by value."""
    both = [row for row in rows if {other, "ppo"} <= set(row["policies"])]
    below = [row for row in both if row["policies"]["ppo"]["value"] <= row["policies"][other]["value"]]
    exceptions = ", ".join(f"{row['recipe']} {row['seed']}" for row in below)
    where_not = f" (not in {exceptions})" if below else ""
    n = other.removeprefix("best")
    return f"PPO is above the best of {n} in {len(both) - len(below)} of {len(both)} runs{where_not}."


def mean(found: Iterable[Mapping[str, float] | None]) -> str:
    values = [one["value"] for one in found if one]
    return value(fmean(values)) if values else "–"


def opening(record: Record) -> str:
    minutes = sum(row["seconds"] for row in record["figures"].values()) / 60
    return (
        f"{record['command']} on {where(record['machine'])}, {record['date']}: greedy answers to held-out prompts, 95 % "
        f"intervals;\n{minutes:.0f} minutes in the stages of {len(record['figures'])} runs."
    )


if __name__ == "__main__":
    sys.exit(main())
