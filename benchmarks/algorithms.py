"""Every algorithm on the same SFT and reward models: `make compare-algorithms`, or `python -m benchmarks.algorithms`.

    equal answers  each draws as many as the profile says
    equal time     the others draw as many as take the CPU seconds that PPO took for those

The worlds of `benchmarks.results` are made where they are not there; a run that is there is not made again. What came out is
kept in `docs/numbers/results-algorithms.json`, a row a run, with the machine and the day; the page shows these rows alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import results
from benchmarks.cells import estimate, table, value
from benchmarks.results import RUNS, Record, Trial, keep, mean, opening
from rlrecipes.errors import UserError
from rlrecipes.model.embedded import SHARING
from rlrecipes.profile import ALGORITHMS, load_profile
from rlrecipes.report.records import Records, finished_records
from rlrecipes.run.console import say
from rlrecipes.run.folder import Run

EQUAL_ANSWERS, EQUAL_TIME = "equal answers", "equal time"
FIRST = "ppo"
"""The algorithm whose CPU time the others are given."""
LIMITS = (0.1, 0.25, 0.5, 1.0, 2.0)
"""KL divergences per answer, in nats, up to which the frontier looks."""


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the runs and keeps their rows; returns the exit status: 1 where a run failed, 2 for a user's error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.algorithms", description=__doc__.partition("\n")[0])
    parser.add_argument("--recipes", choices=SHARING, nargs="+", default=list(SHARING), help="these recipes alone")
    parser.add_argument("--seeds", type=int, choices=range(len(RUNS)), nargs="+", default=list(range(len(RUNS))))
    parser.add_argument("--workers", type=int, choices=range(1, 65), default=2, metavar="N", help="runs at a time (2)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the rows go (default: docs/numbers)")
    given = parser.parse_args(argv)
    worlds = [trial for trial in results.worlds() if trial.recipe in given.recipes and trial.seed in given.seeds]
    try:
        with ThreadPoolExecutor(given.workers) as pool:
            found = list(pool.map(made, worlds))
        keep("algorithms", [trial for _, trials in found for trial in trials], row_of, given.keep)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if failed := [key for key, _ in found if key]:
        print(f"error: these failed, see their logs in runs/results/: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def made(world: Trial) -> tuple[str | None, list[Trial]]:
    """Makes a world and the runs that stand on it; the key of one that failed, after which none is made, and the trials."""
    done: list[Trial] = []
    if results.make(world):
        return world.key, done
    first = equal_answers(world)
    if results.make(first):
        return first.key, done
    done.append(first)
    row = row_of(first)
    if row is None or not (episodes := equal_time_episodes(row)):
        say(f"{first.key}: the CPU time of its algorithms is not known, so there is no run of equal time")
        return None, done
    second = equal_time(world, episodes)
    if results.make(second):
        return second.key, done
    return None, [*done, second]


def equal_answers(world: Trial) -> Trial:
    """Every algorithm, as the profile has it, over a world's SFT and reward model; `distill` of as many answers as PPO."""
    profile = load_profile(RUNS[0])
    limit = f"distill.limit={profile.ppo.total_episodes // profile.distill.num_generations}"
    return _trial(EQUAL_ANSWERS, world, f"algorithms-{world.seed}", ALGORITHMS, (limit,))


def equal_time(world: Trial, episodes: Mapping[str, int]) -> Trial:
    """The algorithms beside PPO with so many answers."""
    settings = tuple(f"{name}.total_episodes={count}" for name, count in episodes.items())
    return _trial(EQUAL_TIME, world, f"algorithms-time-{world.seed}", list(episodes), settings)


def _trial(name: str, world: Trial, run: str, algorithms: Sequence[str], settings: tuple[str, ...]) -> Trial:
    asked = (f"run.algorithms={','.join(algorithms)}", f"evaluate.policies=sft,{','.join(algorithms)}", *settings)
    return Trial("algorithms", name, world.recipe, world.seed, run, (*asked, "--profile", RUNS[0], "--from", world.run))


def equal_time_episodes(row: Record) -> dict[str, int]:
    """Answers, in whole batches, that take each of the others as long as PPO took; of those that draw answers and whose CPU
    time is known. A stage's time is taken to grow with them: the table shows what it came to.

    >>> PPO, RLOO = {"cpu_seconds": 60.0, "episodes": 1024}, {"cpu_seconds": 40.0, "episodes": 1024}
    >>> equal_time_episodes({"algorithms": {"ppo": PPO, "rloo": RLOO}})
    {'rloo': 1536}
    """
    found, profile = row["algorithms"], load_profile(RUNS[0])
    most = found.get(FIRST, {}).get("cpu_seconds")
    episodes = {}
    for name, one in found.items():
        settings = getattr(profile, name)
        if name != FIRST and most and one.get("cpu_seconds") and hasattr(settings, "total_episodes"):
            batches = round(one["episodes"] * most / one["cpu_seconds"] / settings.batch)
            episodes[name] = max(1, batches) * settings.batch
    return episodes


def row_of(trial: Trial) -> dict[str, Any] | None:
    """A run's row, with what each algorithm came to."""
    row, run = results.row_of(trial), Run(trial.run, trial.recipe)
    if row is None:
        return None
    records = finished_records(run)
    return row | {"algorithms": {name: of_algorithm(run, records, name) for name in ALGORITHMS if name in records}}


def of_algorithm(run: Run, records: Records, name: str) -> dict[str, Any]:
    pair = records["evaluate"]["comparisons"].get(f"{name}_over_sft", {})
    log = run.stage(name) / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    updates = [line for line in lines if "objective/kl" in line]
    return {
        **{key: pair.get(key) for key in ("gain", "sampled_gain", "judge_win_rate", "reward_gain")},
        "kl": records["evaluate"]["kl"].get(name),
        "seconds": records[name]["seconds"],
        "cpu_seconds": records[name].get("cpu_seconds"),
        "episodes": updates[-1]["episode"] if updates else records[name].get("drawn", {}).get("answers"),
        "curve": [[round(line["objective/kl"], 4), round(line["objective/scores"], 4)] for line in updates],
    }


# to Markdown


def algorithms_table(record: Record) -> str:
    """A table for equal answers and one for equal time, a row a recipe and algorithm; and the frontiers."""
    rows = list(record["figures"].values())
    answers, time = ([row for row in rows if row["name"] == name] for name in (EQUAL_ANSWERS, EQUAL_TIME))
    parts = [opening(record), "As many answers for each algorithm:", *_outcomes(answers)]
    if time:
        beside = [_only_first(row) for row in answers if _key(row) in {_key(other) for other in time}]
        parts += ["As much CPU time as PPO takes for these:", *_outcomes([*beside, *time])]
    if any(one.get("curve") for row in answers for one in row["algorithms"].values()):
        parts += [
            "The highest mean reward of a batch in training whose KL from SFT was at most so many nats an answer, at equal "
            "answers:",
            frontier(answers),
        ]
    return "\n\n".join(parts)


def _key(row: Record) -> tuple[str, int]:
    return row["recipe"], row["seed"]


def _only_first(row: Record) -> dict[str, Any]:
    return {**row, "algorithms": {FIRST: row["algorithms"][FIRST]}}


HEADS = (
    *("recipe", "algorithm", "headline", "over SFT, paired, by seed", "beats SFT", "at temperature 1"),
    *("judge prefers it to SFT, by seed", "reward over SFT", "KL", "answers", "CPU seconds"),
)


def _outcomes(rows: Sequence[Record]) -> list[str]:
    """The table, and a sentence on which algorithm is not shown to beat SFT."""
    cells, open_ = [], []
    for recipe, name in _groups(rows):
        of = [row for row in rows if row["recipe"] == recipe and name in row["algorithms"]]
        found = [row["algorithms"][name] for row in of]
        below = [row["seed"] for row in of if not _beats(row["algorithms"][name])]
        open_ += [f"{name.upper()} in {recipe}, seed {seed}" for seed in below]
        cells.append(
            [
                *(recipe, name.upper()),
                mean(row["policies"].get(name) for row in of),
                "; ".join(estimate(one["gain"], signed=True) for one in found),
                f"{len(of) - len(below)} of {len(of)}",
                mean(one["sampled_gain"] for one in found),
                "; ".join(estimate(one["judge_win_rate"]) for one in found),
                *(mean(one[key] for one in found) for key in ("reward_gain", "kl")),
                *(_average(one.get(key) for one in found) for key in ("episodes", "cpu_seconds")),
            ]
        )
    said = f"Not shown to beat SFT: {'; '.join(open_)}." if open_ else "Each beats SFT, with all intervals above zero."
    return [table(HEADS, cells), said]


def _beats(one: Record) -> bool:
    """Whether the interval of the paired difference of greedy answers lies above zero."""
    return bool(one["gain"] and one["gain"]["low"] > 0)


def _groups(rows: Sequence[Record]) -> list[tuple[str, str]]:
    there = {(row["recipe"], name) for row in rows for name in row["algorithms"]}
    return [(recipe, name) for recipe in SHARING for name in ALGORITHMS if (recipe, name) in there]


def _average(values: Iterable[float | None]) -> str:
    known = [one for one in values if one is not None]
    return f"{fmean(known):,.0f}" if known else "–"


def frontier(rows: Sequence[Record]) -> str:
    """The reward that each algorithm reached within each KL divergence of `LIMITS`."""
    cells = []
    for recipe, name in _groups(rows):
        curves = [one["curve"] for row in rows if row["recipe"] == recipe and (one := row["algorithms"].get(name))]
        cells.append([recipe, name.upper(), *(_highest(curves, limit) for limit in LIMITS)])
    return table(["recipe", "algorithm", *(f"KL ≤ {limit:g}" for limit in LIMITS)], cells)


def _highest(curves: Sequence[Sequence[Sequence[float]]], limit: float) -> str:
    reached = [max((reward for kl, reward in curve if kl <= limit), default=None) for curve in curves]
    known = [reward for reward in reached if reward is not None]
    return value(fmean(known)) if known else "–"


if __name__ == "__main__":
    sys.exit(main())
