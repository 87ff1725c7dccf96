"""PPO is not run on a reward model that is not shown to know anything; all other stages are, and say why."""

import json
from types import SimpleNamespace

import pytest
from conftest import SMALLEST, main

from rlrecipes.reward.strength import too_weak

WEAK = ("translation", "--run", "weak", "--data", "pairs.jsonl", *SMALLEST)


def interval(value, low):
    return {"value": value, "low": low, "high": 2 * value - low}


def job(anyway=False, learned=1.0, **reward):
    """A job whose run has this record of the reward stage."""
    return SimpleNamespace(
        profile=SimpleNamespace(ppo=SimpleNamespace(anyway=anyway)),
        recipe=SimpleNamespace(reward=SimpleNamespace(learned=learned)),
        run=SimpleNamespace(done=lambda stage: reward or None),
    )


def compared(low, longer=0.4):
    return {"metrics": {"accuracy": interval(0.7, low), "longer_wins": interval(longer, longer - 0.1)}}


RATED = {"spearman": interval(0.2, 0.1), "pearson": interval(0.2, -0.1)}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, None),
        ({"metrics": {}}, None),
        (compared(0.51), None),
        (
            compared(0.5),
            "accuracy 0.700 [0.500, 0.900] is not shown to be above the 0.500 that guessing has; bring more",
        ),
        (compared(0.65, 0.64), None),
        (
            compared(0.63, 0.64),
            "above the 0.640 that preferring the longer answer has; bring more comparisons, also such that the shorter",
        ),
        ({"metrics": RATED}, None),
        ({"metrics": {"spearman": interval(0.2, 0.0)}}, "rank correlation 0.200 [0.000, 0.400]"),
        ({"metrics": {**compared(0.5)["metrics"], **RATED}, "objective": "regression"}, None),
        ({"metrics": {**compared(0.5)["metrics"], **RATED}, "objective": "pairwise"}, "accuracy 0.700"),
    ],
)
def test_a_reward_model_has_to_beat_guessing_and_the_longer_answer(record, said):
    reason = too_weak(job(**record), "ppo")
    assert reason is None if said is None else said in reason
    assert too_weak(job(anyway=True, **record), "ppo") is None
    assert too_weak(job(learned=0.0, **record), "ppo") is None


def test_a_run_whose_reward_model_is_too_weak_ends_without_ppo_and_says_why(home, capsys):
    folder = home / "runs" / "weak" / "translation"
    assert main(["run", *WEAK, "ppo.anyway=false"]) == 0
    reason = json.loads((folder / "evaluate" / "done.json").read_text())["withheld"]
    assert "is not shown to be above" in reason
    assert "ppo.anyway=true" in reason
    said = capsys.readouterr().out
    assert f"translation · ppo: not run: {reason}\n" in said
    assert f"\nPPO was not run: {reason}\n" in said
    assert f"PPO was not run: {reason}." in (folder / "report" / "index.html").read_text().replace("&#39;", "'")
    assert "The reward is what PPO would climb" in (folder / "report" / "index.html").read_text()
    assert not (folder / "ppo").exists()
    evaluation = json.loads((folder / "evaluate" / "done.json").read_text())
    assert list(evaluation["metrics"]) == ["base", "sft", "best4"]
    assert "ppo" not in evaluation["adapters"]

    made = {path: path.stat().st_mtime_ns for path in folder.glob("*/done.json")}
    assert main(["run", *WEAK, "ppo.anyway=false"]) == 0
    assert capsys.readouterr().out.count("done already") == len(made)
    assert main(["ppo", *WEAK, "ppo.anyway=false"]) == 2
    assert capsys.readouterr().err == f"error: PPO is not run: {reason}\n"
    assert main(["ppo", *WEAK, "ppo.anyway=false", "--force"]) == 2
    assert main(["evaluate", *WEAK, "ppo.anyway=false"]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/done.json")} == made

    assert main(["run", *WEAK, "ppo.anyway=true"]) == 0
    assert list(json.loads((folder / "evaluate" / "done.json").read_text())["metrics"]) == [
        "base",
        "sft",
        "best4",
        "ppo",
    ]
    page = (folder / "report" / "index.html").read_text()
    assert "PPO was not run" not in page
    assert "The reward is what PPO climbed" in page
    for stage in ("sft", "reward"):
        assert (folder / stage / "done.json").stat().st_mtime_ns == made[folder / stage / "done.json"]


def test_ppo_alone_cannot_be_evaluated_where_it_is_not_run(home, capsys):
    alone = ("translation", "--run", "weak-alone", "--data", "pairs.jsonl", *SMALLEST, "ppo.anyway=false")
    assert main(["run", *alone, "evaluate.policies=ppo"]) == 2
    assert "error: evaluate.policies names PPO alone, which is not run: " in capsys.readouterr().err


def test_a_reward_model_that_is_taken_is_as_weak_as_it_was(finished, home, capsys):
    taking = ("translation", "--run", "weak-taken", "--from", "t", *SMALLEST, "ppo.anyway=false")
    assert main(["ppo", *taking]) == 2
    assert "error: PPO is not run: the reward model's held-out accuracy" in capsys.readouterr().err
    assert main(["run", *taking]) == 0
    assert not (finished.parent.parent / "weak-taken" / "translation" / "ppo").exists()


def test_saying_anyway_without_a_reward_model_is_refused(home, capsys):
    assert main(["show", "translation", "terms.learned=0", "ppo.anyway=true"]) == 2
    assert "ppo.anyway=true has no effect while terms.learned is 0" in capsys.readouterr().err
