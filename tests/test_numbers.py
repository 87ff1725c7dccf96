"""A block of figures holds what its JSON holds, under a command that there is, on a machine that it names."""

import json
import re
from functools import partial
from types import SimpleNamespace

import pytest
from conftest import ROOT

from benchmarks import numbers, plan
from benchmarks.numbers import KEPT, MARK, block, demo, fill, filled, main, names_in, pages, where
from rlrecipes.errors import UserError
from rlrecipes.job import make_job
from rlrecipes.model.embedded import MACHINE, MADE_OF, made_of
from rlrecipes.profile import load_profile
from rlrecipes.recipe import BUILT_IN, recipe_names
from rlrecipes.run.folder import Run, write_json
from rlrecipes.run.stages import STAGES
from rlrecipes.text import number

KEPT_NAMES = sorted(path.stem for path in (ROOT / KEPT).glob("*.json"))
MADE_ON = {"cpu": "EPYC", "cores": 2, "threads": 2}


def kept(name):
    return json.loads((ROOT / KEPT / f"{name}.json").read_text(encoding="utf-8"))


# The project's pages.


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_what_its_json_gives(page):
    text = page.read_text(encoding="utf-8")
    assert filled(text, {name: kept(name) for name in names_in(text, page)}) == text, "run `make numbers`"


def test_the_pages_show_all_that_is_kept():
    shown = {name for page in pages(ROOT) for name in names_in(page.read_text(encoding="utf-8"), page)}
    assert shown == set(KEPT_NAMES)
    assert {"demo", "bench", "plan-bench", *recipe_names()} <= shown


@pytest.mark.parametrize("name", KEPT_NAMES)
def test_a_block_starts_with_a_command_that_there_is_and_its_machine(name):
    record = kept(name)
    first = block(name).markdown(record).partition("\n")[0]
    assert record["command"] == block(name).command
    assert first.startswith(record["command"])
    assert where(record["machine"]) in first
    assert record["date"] in first
    missing(first)


def missing(line):
    """Asserts that the Makefile has the targets and variables that a line names, and the project the folders."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    examples = {path.parent.name for path in ROOT.glob("examples/*/recipe.py")}
    targets = {*re.findall(r"^([\w-]+): \$\(READY\)", makefile, re.M), *STAGES, *recipe_names(), *examples}
    named = re.findall(r"`make ([\w-]+)", line)
    assert named
    assert set(named) <= targets
    assert set(re.findall(r"\b([A-Z]+)=", line)) <= set(re.findall(r"^([A-Z]+) \??=", makefile, re.M))
    assert all((ROOT / path).is_dir() for paths in re.findall(r"`cp -r (.*?)`", line) for path in paths.split())


@pytest.mark.parametrize(
    "line", ["`make demos`", "`make demo SEDE=1`", "`make demo`, after `cp -r examples/no recipes/`"]
)
def test_a_command_that_there_is_not_fails(line):
    with pytest.raises(AssertionError):
        missing(line)


def test_what_the_readme_says_of_another_machine_begins_with_the_figure_of_its_table():
    here = number(kept("demo")["figures"]["text_generation"]["metrics"]["positive"]["base"]["value"])
    assert f"scores {here} here" in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


# Made-up records.


def estimate(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


OUTCOME = {
    "headline": "chrf",
    "examples": 300,
    "metrics": {
        "chrf": {"base": estimate(0.25), "sft": estimate(0.5), "ppo": estimate(0.75)},
        "chrf_sampled": {"base": estimate(0.1), "sft": estimate(0.2), "ppo": estimate(0.3)},
        "overlap": {"base": estimate(0.4), "sft": estimate(0.6), "ppo": estimate(0.8)},
    },
    "gain": estimate(0.25),
    "accuracy": estimate(0.875),
    "ceiling": 0.9,
}
HEAD = {"machine": {**MADE_ON, "torch": "2.1"}, "commits": ["0123abc"], "date": "2026-01-02"}
ON = "on EPYC, 2 cores, 2 threads, torch 2.1, 2026-01-02"


def markdown(name, figures):
    return block(name).markdown({"command": block(name).command, **HEAD, "figures": figures}).splitlines()


def test_the_demo_has_a_row_a_recipe():
    assert markdown("demo", {"translation": OUTCOME}) == [
        f"`make demo` {ON}:",
        "greedy answers to 300 held-out prompts, 95 % intervals.",
        "",
        "| recipe | headline | base | SFT | PPO | PPO over SFT, paired | reward model (ceiling) |",
        "|---|---|---|---|---|---|---|",
        "| translation | chrf | 0.250 | 0.500 | 0.750 | +0.250 [0.150, 0.350] | 0.875 (0.900) |",
    ]


def test_a_card_has_a_row_a_seed():
    lines = markdown("translation", {"0": OUTCOME, "1": OUTCOME})
    assert lines[0] == f"`make translation`, and with `RUN=seed1 SEED=1` and with `RUN=seed2 SEED=2`, {ON}:"
    assert lines[1].startswith("`chrf` of greedy answers")
    row = "0.250 | 0.500 | 0.750 [0.650, 0.850] | +0.250 [0.150, 0.350] | 0.300 | 0.875 [0.775, 0.975] | 0.900 |"
    assert lines[-2:] == [f"| 0 | {row}", f"| 1 | {row}"]


def test_the_fifth_task_has_its_second_metric_below_the_headline():
    assert markdown("summary", OUTCOME)[-1] == "| `overlap` | 0.400 | 0.600 | 0.800 [0.700, 0.900] | | | | |"


def test_a_recipe_without_comparisons_shows_dashes_for_its_reward_model():
    line = markdown("demo", {"translation": {**OUTCOME, "accuracy": None, "ceiling": None}})[-1]
    assert line.endswith("| – (–) |")


def test_the_benchmark_shows_a_target_that_is_missed_and_one_that_was_not_measured():
    figures = {
        "pairs": 5,
        "targets": [
            {"name": "CPU time", "found": estimate(0.6), "limit": 0.5, "met": False},
            {"name": "GPU memory", "found": None, "limit": 24.0, "met": None},
        ],
    }
    lines = markdown("bench", figures)
    assert lines[0].startswith("`make bench` on one core of EPYC")
    assert lines[-2:] == [
        "| CPU time | 0.600 [0.500, 0.700] | at most 0.500 | missed |",
        "| GPU memory | – | at most 24.0 | not measured |",
    ]


def test_a_figure_that_was_changed_by_hand_is_put_right():
    record = {"command": "`make demo`", **HEAD, "figures": {"translation": OUTCOME}}
    text = f"Before.\n<!-- numbers: demo -->\n{demo(record)}\n<!-- end of numbers -->\nAfter.\n"
    assert filled(text.replace("0.500", "0.501"), {"demo": record}) == text


# Pages and runs in a folder of their own.


@pytest.fixture
def root(tmp_path):
    """A project whose one page has the benchmark's block, empty, and whose JSON has a target."""
    (tmp_path / "README.md").write_text("<!-- numbers: bench -->\n<!-- end of numbers -->\n", encoding="utf-8")
    (tmp_path / KEPT).mkdir(parents=True)
    write_json(
        tmp_path / KEPT / "bench.json", {"command": "`make bench`", **HEAD, "figures": {"pairs": 5, "targets": []}}
    )
    return tmp_path


def bench_record(quick):
    target = {"name": "CPU time", "found": {"value": 0.25}, "limit": 0.5, "met": True}
    machine = {"cpu": "Xeon", "cores": 8, "torch": "2.2", "python": "3.11"}
    return {
        "quick": quick,
        "shapes": {"trunk_heavy": {"pairs": [{}, {}]}},
        "targets": [target],
        "machine": machine,
        "git_commit": "4567def",
        "finished": "2026-02-03 10:00",
    }


def finish(folder, record):
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "done.json", record)


def test_a_block_whose_runs_are_not_there_keeps_its_figures_and_says_so(root, capsys):
    fill(root, root / "runs")
    assert "2 threads, torch 2.1" in (root / "README.md").read_text(encoding="utf-8")
    said = capsys.readouterr().out
    assert f"bench.json: stays as it is, without {root / 'runs' / 'bench'}; to make it anew: `make bench`" in said


def test_a_block_whose_runs_are_there_takes_their_figures_and_machine(root):
    finish(root / "runs" / "bench", bench_record(quick=False))
    fill(root, root / "runs")
    text = (root / "README.md").read_text(encoding="utf-8")
    assert "Xeon, 8 cores, torch 2.2, 2026-02-03; medians of 2 pairs" in text
    assert "| CPU time | 0.250 | at most 0.500 | met |" in text
    assert json.loads((root / KEPT / "bench.json").read_text())["commits"] == ["4567def"]


def test_a_quick_run_fills_nothing(root):
    finish(root / "runs" / "bench", bench_record(quick=True))
    with pytest.raises(UserError, match="a quick run, whose figures mean nothing"):
        fill(root, root / "runs")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- numbers -->\n<!-- end of numbers -->\n", "without a name or an end"),
        ("<!-- numbers: bench -->\n<!-- numbers: demo -->\n<!-- end of numbers -->\n", "without a name or an end"),
        ("<!-- numbers: bensh -->\n<!-- end of numbers -->\n", "did you mean 'bench'"),
        ("<!-- numbers: plan-bench -->\n<!-- end of numbers -->\n", "is not there, nor .* run `make plan-bench`"),
    ],
)
def test_a_mark_that_cannot_be_filled_is_told_and_nothing_is_written(root, text, said):
    (root / "docs" / "page.md").write_text(text, encoding="utf-8")
    before = (root / "README.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=said):
        fill(root, root / "runs")
    assert (root / "README.md").read_text(encoding="utf-8") == before


def test_the_plans_benchmark_leaves_what_its_block_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "SHAPES", plan.SHAPES[:1])
    monkeypatch.setattr(plan, "measure", lambda task, work, phase: {"peak_mb": plan.planned_mb(plan.SHAPES[0])})
    assert plan.main() == 0
    record = block("plan-bench").read(tmp_path / "runs")
    assert "| sft | wide |" in block("plan-bench").markdown({"command": "`make plan-bench`", **record})


def test_a_wrong_option_of_the_command_is_the_users(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--run", "x", "y"])
    assert "usage" in capsys.readouterr().err


@pytest.fixture(scope="module")
def job():
    """The default job of translation; its world is made once for all runs here."""
    return make_job("translation", load_profile("tiny"), Run("tiny", "translation"), source=BUILT_IN)


@pytest.fixture
def finish_recipe(job, monkeypatch):
    """Leaves a finished run of translation, as `make` leaves its records."""

    def seeded(recipe, profile, run, source, seed):
        assert (recipe, profile, source) == ("translation", job.profile, BUILT_IN)
        return SimpleNamespace(settings=lambda stage: job.settings(stage) | {"seed": seed})

    monkeypatch.setattr(numbers, "make_job", seeded)
    return partial(leave, job)


def leave(job, runs, name, seed=0, machine=MADE_ON, **settings):
    run = Run(name, "translation", runs)
    metrics = {
        policy: {metric: OUTCOME["metrics"][metric][policy] for metric in OUTCOME["metrics"]}
        for policy in ("base", "sft", "ppo")
    }
    own = {
        "reward": {"metrics": {"accuracy": OUTCOME["accuracy"], "ceiling": 0.9}},
        "evaluate": {
            "metrics": metrics,
            "headline": "chrf",
            "examples": 300,
            "comparisons": {"ppo_over_sft": {"gain": OUTCOME["gain"]}},
        },
    }
    for stage in ("sft", "reward", "ppo", "evaluate"):
        common = {"versions": {"torch": "2.1"}, "git_commit": "0123abc", "finished": "2026-01-02T03:04:05Z"}
        record = {"settings": job.settings(stage) | {"seed": seed} | settings, **common, **own.get(stage, {})}
        finish(run.stage(stage), {**record, "machine": machine} if machine else record)


def test_a_card_takes_the_figures_of_its_three_seeds(tmp_path, finish_recipe):
    for seed, name in enumerate(("tiny", "seed1", "seed2")):
        finish_recipe(tmp_path, name, seed)
    record = block("translation").read(tmp_path)
    assert {name: record[name] for name in HEAD} == HEAD
    del (expected := {**OUTCOME, "metrics": dict(OUTCOME["metrics"])})["metrics"]["overlap"]
    assert record["figures"] == {"0": expected, "1": expected, "2": expected}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"seed": 0}, "seed = 0 where you now have 1"),
        ({"seed": 1, "ppo.kl_coef": 9.0}, "ppo.kl_coef = 9.0"),
        ({"seed": 1, "machine": {**MADE_ON, "threads": 1}}, "by EPYC, 2 cores, 1 thread, torch 2.1; make them on one"),
        ({"seed": 1, "machine": None}, "does not say on which machine"),
    ],
)
def test_runs_that_do_not_belong_into_one_block_are_refused(tmp_path, finish_recipe, second, said):
    finish_recipe(tmp_path, "tiny")
    finish_recipe(tmp_path, "seed1", **second)
    finish_recipe(tmp_path, "seed2", 2)
    with pytest.raises(UserError, match=re.escape(said)):
        block("translation").read(tmp_path)


def test_a_base_that_another_number_of_threads_trained_is_refused(tmp_path, finish_recipe):
    for seed, name in enumerate(("tiny", "seed1", "seed2")):
        finish_recipe(tmp_path, name, seed)
    base = tmp_path / ".base" / "0123456789abcdef"
    base.mkdir(parents=True)
    write_json(base / "config.json", {})
    write_json(base / MADE_OF, made_of(load_profile("tiny").base, "translation"))
    write_json(base / MACHINE, {**MADE_ON, "threads": 1})
    with pytest.raises(UserError, match=r"\.base/0123456789abcdef by EPYC, 2 cores, 1 thread"):
        block("translation").read(tmp_path)


def test_the_marks_are_found_wherever_they_stand():
    assert MARK.findall("a <!-- numbers: x -->\nb\n<!-- end of numbers --> c") == [("x", "b\n")]
