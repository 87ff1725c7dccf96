"""The runs of `make results`, and the rows and tables that they become."""

import sys

import pytest

from benchmarks import results
from benchmarks.results import RUNS, TABLES, Trial, command, keep, main, make, real, variants, worlds
from rlrecipes.__main__ import commands
from rlrecipes.command.job import profile_of
from rlrecipes.command.options import parse
from rlrecipes.errors import UserError
from rlrecipes.model.embedded import SHARING
from rlrecipes.profile import with_weights
from rlrecipes.recipe import load_recipe
from rlrecipes.run.folder import read_json

MACHINE = {"cpu": "EPYC", "cores": 2, "threads": 1, "torch": "2.1"}


def estimate(middle):
    return {"value": middle, "low": middle - 0.1, "high": middle + 0.1}


def row(name="default", recipe="translation", seed=0, ppo=0.9, best16=0.8, **others):
    return {
        "name": name,
        "recipe": recipe,
        "seed": seed,
        "machine": MACHINE,
        "commit": "0123abc",
        "date": "2026-01-02",
        "headline": "chrf",
        "policies": {"sft": estimate(0.5), "best4": estimate(0.7), "best16": estimate(best16), "ppo": estimate(ppo)},
        "gain": estimate(ppo - 0.5),
        "sampled_gain": estimate(0.3),
        "judge_win_rate": estimate(0.75),
        "kl": estimate(2.0),
        "words": {"sft": 10.0, "ppo": 9.0},
        "accuracy": estimate(0.8),
        "longer_wins": estimate(0.5),
        "ceiling": 0.95,
        "verdict": "better",
        "seconds": 90.0,
    } | others


def lines(name, *rows):
    record = {"command": command(name), "machine": MACHINE, "date": "2026-01-02"}
    figures = {f"{one['recipe']} {one['name']} {one['seed']}": one for one in rows}
    return TABLES[name]({**record, "figures": figures}).splitlines()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder for runs and rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "KEPT", tmp_path)
    return tmp_path


@pytest.fixture
def real_folder(tmp_path):
    for name in ("sentiment.jsonl", "poems.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "stories260k").mkdir()
    return tmp_path


def test_every_run_has_settings_that_its_recipe_knows(real_folder):
    for trial in [*worlds(), *variants(), *real(real_folder)]:
        arguments = parse(trial.command()[3:], commands())
        profile, weights = profile_of(arguments, None)
        with_weights(load_recipe(trial.recipe).reward, weights)
        assert (arguments.run, arguments.seed, profile.evaluate is not None) == (trial.run, trial.seed, True)


def test_no_two_runs_share_a_folder(real_folder):
    trials = [*worlds(), *variants(), *real(real_folder)]
    assert len({(trial.recipe, trial.run) for trial in trials}) == len(trials)
    assert len({trial.key for trial in trials}) == len(trials)


def test_a_variant_stands_on_the_world_of_its_seed():
    for trial in variants():
        start = trial.options[trial.options.index("--from") + 1] if "--from" in trial.options else None
        assert start == (None if trial.name == "full precision" else RUNS[trial.seed])
    assert {trial.recipe for trial in variants()} == set(SHARING)


def test_real_runs_are_those_whose_data_and_model_are_there(real_folder):
    assert {trial.name for trial in real(real_folder)} == {"sentiment, stories260k", "poems"}


def test_a_run_that_fails_is_named_and_the_others_are_made(home, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(results, "make", lambda trial: made.append(trial) or int(trial.recipe == "dialogue"))
    assert main(["--only", "worlds", "--seeds", "1"]) == 1
    assert {trial.recipe for trial in made} == set(SHARING)
    assert {trial.seed for trial in made} == {1}
    assert "these failed, see their logs in runs/results/: dialogue · default · 1" in capsys.readouterr().err
    assert not list(home.glob("*.json"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--only", "real"], "--only real needs --real FOLDER"),
        (["--real", "nowhere"], "--real nowhere: none of the data"),
    ],
)
def test_what_would_make_no_run_is_refused(home, monkeypatch, capsys, given, said):
    monkeypatch.setattr(results, "make", lambda trial: pytest.fail("a run was made"))
    assert main(given) == 2
    assert said in capsys.readouterr().err


def test_the_log_of_a_run_holds_what_it_said(home, monkeypatch):
    monkeypatch.setattr(Trial, "command", lambda trial: [sys.executable, "-c", "print('said'); raise SystemExit(3)"])
    assert make(worlds()[0]) == 3
    assert (home / "runs/results/tiny-dialogue.log").read_text() == "said\n"


def test_rows_are_kept_beside_those_whose_runs_are_gone(home, monkeypatch):
    first, second = worlds()[:2]
    for trial, ppo in ((first, 0.6), (second, 0.7), (first, 0.8)):
        monkeypatch.setattr(results, "row_of", lambda each, ppo=ppo: row(recipe=each.recipe, seed=each.seed, ppo=ppo))
        keep("worlds", [trial])
    record = read_json(home / "results-worlds.json")
    assert [one["policies"]["ppo"]["value"] for one in record["figures"].values()] == [0.8, 0.7]
    assert (record["command"], record["machine"], record["commits"]) == ("`make results`", MACHINE, ["0123abc"])


def test_rows_of_two_machines_are_not_mixed(home, monkeypatch):
    first, second = worlds()[:2]
    monkeypatch.setattr(
        results, "row_of", lambda each: row(seed=each.seed, machine=MACHINE | {"threads": each.seed + 1})
    )
    keep("worlds", [first])
    with pytest.raises(UserError, match=r"figures of EPYC, 2 cores, 1 thread, torch 2.1; EPYC, 2 cores, 2 threads"):
        keep("worlds", [second])


def test_a_world_says_where_ppo_is_not_above_the_best_of_n():
    *_, said = lines("results-worlds", row(), row(seed=1, ppo=0.75))
    assert said == (
        "PPO is above the best of 4 in 2 of 2 runs. PPO is above the best of 16 in 1 of 2 runs (not in translation 1)."
    )


def test_a_variant_has_its_seeds_in_a_row():
    table = lines("results-variants", row("no KL penalty"), row("no KL penalty", seed=1, ppo=0.7))
    assert table[-1] == (
        "| translation | no KL penalty | 0, 1 | 0.800 | +0.400 [0.300, 0.500]; +0.200 [0.100, 0.300] | 0.750 | 2.000 |"
    )


def test_a_run_without_ppo_is_a_row_that_says_so():
    without = {"sft": estimate(0.5)}
    nothing = dict.fromkeys(("gain", "sampled_gain", "judge_win_rate", "kl", "accuracy", "ceiling", "verdict"))
    table = lines("results-real", row("poems", policies=without, words={"sft": 9.0}, **nothing))
    assert table[-1] == "| poems | 0 | `chrf` | 0.500 | – | – | – | – | – | – | no PPO | 9.0 |"
