"""The runs of `make compare-algorithms`, and the tables that they become."""

import json

import pytest

from benchmarks import algorithms, results
from benchmarks.algorithms import (
    EQUAL_ANSWERS,
    EQUAL_TIME,
    RUNS,
    algorithms_table,
    equal_answers,
    equal_time,
    equal_time_episodes,
    main,
    of_algorithm,
)
from rlrecipes.__main__ import commands
from rlrecipes.command.job import profile_of
from rlrecipes.command.options import parse
from rlrecipes.profile import ALGORITHMS, load_profile
from rlrecipes.run.folder import Run

MACHINE = {"cpu": "EPYC", "cores": 2, "threads": 1, "torch": "2.1"}
WORLD = next(trial for trial in results.worlds() if (trial.recipe, trial.seed) == ("translation", 1))


def estimate(middle):
    return {"value": middle, "low": middle - 0.1, "high": middle + 0.1}


def trained(gain=0.4, cpu=60.0, episodes=1024, curve=((0.05, 1.0), (0.6, 2.0), (0.2, 1.5))):
    measured = {key: estimate(0.3) for key in ("sampled_gain", "judge_win_rate", "reward_gain", "kl")}
    times = {"seconds": 90.0, "cpu_seconds": cpu, "episodes": episodes}
    return {"gain": estimate(gain), **measured, **times, "curve": [list(point) for point in curve]}


def row(name=EQUAL_ANSWERS, seed=0, **found):
    return {
        "name": name,
        "recipe": "translation",
        "seed": seed,
        "machine": MACHINE,
        "commit": "0123abc",
        "date": "2026-01-02",
        "policies": {"sft": estimate(0.5), "ppo": estimate(0.9), "grpo": estimate(0.7)},
        "seconds": 600.0,
        "algorithms": found,
    }


def lines(*rows):
    record = {"command": "`make compare-algorithms`", "machine": MACHINE, "date": "2026-01-02"}
    return algorithms_table({**record, "figures": dict(enumerate(rows))}).splitlines()


def test_both_runs_stand_on_their_worlds_sft_and_reward_model_and_have_settings_that_there_are():
    for trial in (equal_answers(WORLD), equal_time(WORLD, {"rloo": 1536, "grpo": 1280})):
        arguments = parse(trial.command()[3:], commands())
        profile, _ = profile_of(arguments, None)
        assert arguments.seed == 1
        assert "--from seed1" in " ".join(trial.options)
    assert (profile.rloo.total_episodes, profile.grpo.total_episodes) == (1536, 1280)
    assert equal_answers(WORLD).run != equal_time(WORLD, {}).run


def test_the_others_draw_as_many_answers_in_whole_batches_as_take_ppos_time():
    found = {"ppo": trained(cpu=60.0), "rloo": trained(cpu=40.0), "grpo": trained(cpu=600.0, episodes=64)}
    assert equal_time_episodes(row(**found)) == {"rloo": 1536, "grpo": 64}


def test_an_algorithm_whose_time_is_not_known_gets_no_run_of_equal_time():
    assert equal_time_episodes(row(ppo=trained(), rloo=trained(cpu=None))) == {}
    assert equal_time_episodes(row(ppo=trained(cpu=None), rloo=trained())) == {}


def test_a_run_that_fails_is_named_and_nothing_is_made_on_it(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(results, "make", lambda trial: asked.append(trial.name) or int(trial.name == EQUAL_ANSWERS))
    monkeypatch.chdir(tmp_path)
    assert main(["--recipes", "translation", "--seeds", "1", "--keep", str(tmp_path)]) == 1
    assert asked == ["default", EQUAL_ANSWERS]
    assert f"translation · {EQUAL_ANSWERS} · 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_of_equal_time_is_given_what_was_measured_and_both_rows_are_kept(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(results, "make", lambda trial: asked.append(trial) or 0)
    found = {"ppo": trained(), "rloo": trained(cpu=30.0), "grpo": trained(cpu=20.0)}
    monkeypatch.setattr(algorithms, "row_of", lambda trial: row(trial.name, trial.seed, **found))
    assert main(["--recipes", "translation", "--seeds", "1", "--keep", str(tmp_path)]) == 0
    assert {"rloo.total_episodes=2048", "grpo.total_episodes=3072"} <= {*asked[-1].options}
    kept = json.loads((tmp_path / "results-algorithms.json").read_text(encoding="utf-8"))
    assert [*kept["figures"]] == [f"translation · {EQUAL_ANSWERS} · 1", f"translation · {EQUAL_TIME} · 1"]
    assert (kept["machine"], kept["command"]) == (MACHINE, "`make compare-algorithms`")


def test_a_row_has_the_cost_and_the_course_of_each_algorithm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("one", "translation")
    run.stage("rloo").mkdir(parents=True)
    updates = [{"objective/kl": 0.1, "objective/scores": 1.5, "episode": 64}, {"note": 1}]
    (run.stage("rloo") / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in updates))
    pair = {"gain": estimate(0.1), "judge_win_rate": estimate(0.6)}
    evaluated = {"comparisons": {"rloo_over_sft": pair}, "kl": {"rloo": estimate(1.0)}}
    found = of_algorithm(run, {"evaluate": evaluated, "rloo": {"seconds": 9.0, "cpu_seconds": 8.0}}, "rloo")
    assert (found["cpu_seconds"], found["episodes"], found["curve"]) == (8.0, 64, [[0.1, 1.5]])
    assert (found["gain"], found["judge_win_rate"], found["sampled_gain"]) == (estimate(0.1), estimate(0.6), None)


def test_each_algorithm_of_a_recipe_is_a_row_with_its_seeds():
    table = lines(row(ppo=trained(), grpo=trained(0.2)), row(seed=1, ppo=trained(), grpo=trained(0.05)))
    ppo, grpo = (next(line for line in table if f"| {name} |" in line) for name in ("PPO", "GRPO"))
    assert ppo.startswith("| translation | PPO | 0.900 | +0.400 [0.300, 0.500]; +0.400 [0.300, 0.500] | 2 of 2 |")
    assert grpo == (
        "| translation | GRPO | 0.700 | +0.200 [0.100, 0.300]; +0.050 [−0.050, 0.150] | 1 of 2 | 0.300 | "
        "0.300 [0.200, 0.400]; 0.300 [0.200, 0.400] | 0.300 | 0.300 | 1,024 | 60 |"
    )


def test_what_is_not_shown_to_beat_sft_is_said():
    assert "Not shown to beat SFT: GRPO in translation, seed 1." in lines(
        row(ppo=trained()), row(seed=1, ppo=trained(), grpo=trained(0.05))
    )
    assert "Each beats SFT, with all intervals above zero." in lines(row(ppo=trained()))


def test_at_equal_time_the_others_stand_beside_ppo_of_the_same_seed():
    table = lines(
        row(ppo=trained(cpu=50.0), grpo=trained()),
        row(seed=1, ppo=trained(cpu=70.0), grpo=trained()),
        row(EQUAL_TIME, seed=1, grpo=trained(episodes=2048)),
    )
    start = table.index("As much CPU time as PPO takes for these:")
    ppo, grpo = table[start + 4 : start + 6]
    assert ppo.endswith("| 1,024 | 70 |")
    assert grpo.endswith("| 2,048 | 60 |")


def test_the_frontier_is_the_highest_reward_within_each_divergence():
    *_, ppo, grpo = lines(row(ppo=trained(), grpo=trained(curve=((0.3, 4.0),))), row(seed=1, ppo=trained()))
    assert ppo == "| translation | PPO | 1.000 | 1.500 | 1.500 | 2.000 | 2.000 |"
    assert grpo == "| translation | GRPO | – | – | 4.000 | 4.000 | 4.000 |"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_algorithm_is_left_out_of_equal_answers(name):
    assert name in next(option for option in equal_answers(WORLD).options if "run.algorithms" in option)


def test_distill_draws_as_many_answers_as_ppo():
    profile = load_profile(RUNS[0])
    (limit,) = [option for option in equal_answers(WORLD).options if option.startswith("distill.limit=")]
    assert int(limit.partition("=")[2]) * profile.distill.num_generations == profile.ppo.total_episodes
