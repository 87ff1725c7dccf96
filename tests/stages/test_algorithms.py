"""RLOO and GRPO are stages beside PPO, on the same SFT and reward model, and judged, talked to and exported as it is."""

import io
import json
from dataclasses import replace

import pytest
from conftest import SHORTEST, SMALLEST, SMALLEST_BASE, main

from rlrecipes import run_recipe
from rlrecipes.profile import load_profile

GROUPS = [
    f"{table}.{setting}"
    for table in ("rloo", "grpo")
    for setting in ("total_episodes=16", "per_device_train_batch_size=8", "num_iterations=2", "anyway=true")
]
WITHOUT_PPO = [
    s for s in (*SMALLEST_BASE, *SHORTEST) if not s.startswith("ppo.") or s.startswith("ppo.response_length")
]


def records(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/done.json")}


def test_one_run_has_every_algorithm_on_the_same_reward(home, capsys, monkeypatch):
    folder, options = home / "runs" / "every" / "translation", ("translation", "--run", "every")
    begun = (*options, "--data", "pairs.jsonl", *SMALLEST, *GROUPS)
    assert main(["run", *begun, "run.algorithms=ppo rloo grpo", "evaluate.policies=all"]) == 0
    said = capsys.readouterr().out
    assert "16 episodes in 2 updates of 8 (4 to each prompt)" in said
    evaluated = records(folder)["evaluate"]
    assert {"rloo", "grpo", "ppo"} <= evaluated["metrics"].keys()
    assert {"rloo_over_sft", "grpo_over_sft", "ppo_over_sft"} <= evaluated["comparisons"].keys()
    for name in ("rloo", "grpo"):
        assert not (folder / name / "value_head.safetensors").exists()
        assert records(folder)[name]["metrics"]["groups/spread"] >= 0
        assert f"{name}.beta" in records(folder)["answers"]["settings"]

    made = {path: path.stat().st_mtime_ns for path in folder.glob("*/done.json")}
    assert main(["run", *options]) == 0, "settings.toml says which"
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/done.json")} == made
    monkeypatch.setattr("sys.stdin", io.StringIO("Das 1. Kind liest.\n"))
    assert main(["chat", *options, "--policy", "rloo"]) == 0
    assert main(["export", *options, "--policy", "grpo"]) == 0
    assert "by GRPO against the recipe's reward" in (folder / "export" / "README.md").read_text()


def test_an_algorithm_that_is_asked_for_by_name_is_the_runs_from_then_on(home, capsys):
    folder, options = home / "runs" / "later" / "translation", ("translation", "--run", "later")
    small = [*SMALLEST, "evaluate.policies=all"]
    assert main(["run", *options, "--data", "pairs.jsonl", *small]) == 0
    assert records(folder).keys() == {"sft", "reward", "ppo", "answers", "evaluate", "report"}
    of_ppo = records(folder)["answers"]["settings"]
    assert not [name for name in of_ppo if name.startswith(("rloo", "grpo"))]

    before = {stage: (folder / stage / "done.json").stat().st_mtime_ns for stage in ("sft", "reward", "ppo")}
    assert main(["grpo", *options, *[s for s in GROUPS if s.startswith("grpo")]]) == 0
    assert records(folder).keys() == {"sft", "reward", "ppo", "grpo"}, "what compared the policies has to be made again"
    assert main(["run", *options]) == 0
    assert {"grpo", "ppo"} <= records(folder)["evaluate"]["metrics"].keys()
    assert {s: (folder / s / "done.json").stat().st_mtime_ns for s in before} == before


def test_a_run_does_without_ppo(home, capsys):
    folder, options = home / "runs" / "grpo-alone" / "translation", ("translation", "--run", "grpo-alone")
    grpo = [s for s in GROUPS if s.startswith("grpo")]
    begun = (*options, "--data", "pairs.jsonl", *WITHOUT_PPO, *grpo, "evaluate.policies=all")
    assert main(["run", *begun, "run.algorithms=grpo"]) == 0
    assert "GRPO over SFT" in capsys.readouterr().out
    assert not (folder / "ppo").exists()
    assert list(records(folder)["evaluate"]["metrics"]) == ["base", "sft", "best4", "best16", "grpo"]


def test_evaluation_takes_the_algorithms_that_are_finished(home):
    folder, options = home / "runs" / "one-of-two" / "translation", ("translation", "--run", "one-of-two")
    grpo = [s for s in GROUPS if s.startswith("grpo")]
    begun = (*options, "--data", "pairs.jsonl", *SMALLEST, *grpo, "evaluate.policies=all", "run.algorithms=ppo grpo")
    for stage in ("sft", "reward", "grpo", "evaluate"):
        assert main([stage, *begun]) == 0
    assert "ppo" not in records(folder)["evaluate"]["metrics"]


def test_an_algorithm_that_is_not_run_on_a_weak_reward_model_leaves_a_finished_run_as_it_is(finished, home, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("*/done.json")}
    assert main(["run", "translation", "--run", "t", "run.algorithms=ppo grpo"]) == 0
    said = capsys.readouterr().out
    assert "translation · grpo: not run: the reward model's held-out accuracy" in said
    assert "grpo.anyway=true" in said
    assert {path: path.stat().st_mtime_ns for path in finished.glob("*/done.json")} == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["grpo.beta=0.1"], "grpo.beta=0.1 has no effect on a run without grpo; add it to run.algorithms"),
        (["run.algorithms=grpo", "ppo.kl_coef=0.1"], "ppo.kl_coef=0.1 has no effect on a run without ppo"),
        (["run.algorithms=grop"], "there is no algorithm 'grop'; did you mean 'grpo'?"),
        (["run.algorithms=,"], "run.algorithms names none; there are ppo, rloo, grpo, dpo, distill"),
        (["run.algorithms=grpo", "grpo.num_generations=1"], "it must be 2 or more"),
        (["run.algorithms=rloo", "rloo.num_generations=7"], "does not divide a batch of 64 answers"),
        (["evaluate.policies=sft grpo"], "evaluate.policies names grpo, and run.algorithms=ppo leaves that out"),
    ],
)
def test_what_would_do_nothing_is_refused_before_anything_is_trained(settings, said, home, capsys):
    assert main(["show", "translation", "--run", "no-effect", *settings]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_python_runs_an_algorithm_by_name(home):
    every = load_profile("tiny", [*SMALLEST, *GROUPS, "run.algorithms=ppo,rloo,grpo"])
    profile = replace(every, run=replace(every.run, algorithms="ppo"))
    options = {"run": "python-rloo", "data": "pairs.jsonl"}
    made = run_recipe("translation", profile, ("sft", "reward", "rloo"), **options)
    assert "groups/flat" in made["rloo"]["metrics"]
    assert (home / "runs" / "python-rloo" / "translation" / "rloo" / "adapter").is_dir()


def test_answers_that_do_not_differ_are_told_once_and_kept_as_the_one_warning(home, finished, capsys):
    settings = [s for s in GROUPS if s.startswith("rloo")] + [
        "rloo.temperature=0.01",
        "rloo.dynamic_sampling=true",
        *("rloo.total_episodes=40", "rloo.learning_rate=1e-7"),
    ]
    begun = ("rloo", "translation", "--run", "cold", "--from", "t", "--data", "pairs.jsonl")
    assert main([*begun, *SMALLEST, *settings]) == 0
    said = capsys.readouterr().out
    assert "40 episodes in 5 updates of 8 (4 to each prompt), from at most 10 draws" in said
    assert said.count("are the same, so they teach nothing; raise rloo.temperature (0.01)") == 1
    record = records(home / "runs" / "cold" / "translation")["rloo"]
    (warning,) = record["warnings"]
    assert "most of these answers were the same: raise rloo.temperature (0.01)" in warning
    assert record["drawn"]["of_batches"] == 40
    assert record["drawn"]["answers"] > 40
    assert f"{record['drawn']['answers']} answers were drawn for batches of 40 in all" in said
