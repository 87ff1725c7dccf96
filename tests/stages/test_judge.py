"""The judge of evaluation: a second reward model that PPO never climbs, or a person's own function."""

import json

import pytest
from conftest import SMALLEST, changed, main, sentences, write_rows

from rlrecipes.before.needed import needed
from rlrecipes.pipeline import prepare
from rlrecipes.profile import load_profile
from rlrecipes.reward.judge import judge_job, missing


def record(folder, stage):
    return json.loads((folder / stage / "done.json").read_text(encoding="utf-8"))


@pytest.fixture
def many(home):
    """As many rows as leave a judge enough held-out comparisons."""
    return str(write_rows(home / "judged.jsonl", sentences(1300)))


def test_the_judge_learns_from_held_out_preferences_that_the_reward_model_never_saw(many):
    job = prepare("translation", load_profile("tiny"), data=many, run="halves")
    judge = judge_job(job)
    train, held_out = ({row.prompt for row in split.comparisons} for split in (judge.data.train, judge.data.held_out))
    assert min(len(train), len(held_out)) >= 100
    assert not train & held_out
    assert not {row.prompt for row in job.data.train.comparisons} & (train | held_out)
    assert {*judge.data.train.comparisons, *judge.data.held_out.comparisons} == {*job.data.held_out.comparisons}
    assert judge.seed != job.seed


def test_without_enough_held_out_preferences_there_is_no_judge_and_evaluation_says_why(finished, home, capsys):
    job = prepare("translation", load_profile("tiny"), data="pairs.jsonl", run="few")
    assert not needed(job, "judge")
    assert "needs 100 held-out comparisons to learn from" in missing(job)
    assert not (finished / "judge").exists()
    assert record(finished, "evaluate")["judge"] == {"missing": missing(job)}
    assert "judge" not in record(finished, "evaluate")["metrics"]["ppo"]
    assert main(["judge", "translation", "--run", "few", "--data", "pairs.jsonl", *SMALLEST]) == 2
    assert "leave out the stage 'judge'" in capsys.readouterr().err


def test_a_judge_that_is_no_better_than_guessing_is_not_asked_and_one_that_is_judges_every_answer(many, home):
    folder, road = home / "runs" / "judged" / "translation", ["--run", "judged", "--data", many, *SMALLEST]
    assert main(["run", "translation", *road, "reward.learning_rate=1e-9"]) == 0
    assert "judge" not in record(folder, "ppo")["adapters"]
    judge = record(folder, "judge")["metrics"]
    assert record(folder, "evaluate")["judge"]["accuracy"] == judge["accuracy"]

    better = {"value": 0.8, "low": 0.7, "high": 0.9}
    for accuracy, asked in (({"value": 0.55, "low": 0.45, "high": 0.65}, False), (better, True)):
        changed(folder / "judge" / "done.json", metrics=judge | {"accuracy": accuracy})
        assert main(["evaluate", "translation", *road, "reward.learning_rate=1e-9", "--force"]) == 0
        done = record(folder, "evaluate")
        assert ("missing" in done["judge"]) != asked
        assert ("judge" in done["metrics"]["sft"]) == asked
    assert (
        done["judge"]["train"] + done["judge"]["held_out"]
        == record(folder, "evaluate")["data"]["kept"]["held_out_comparisons"]
    )
    assert {"judge_gain", "judge_win_rate"} <= done["comparisons"]["ppo_over_sft"].keys()
    rows = [json.loads(line) for line in (folder / "evaluate" / "samples.jsonl").read_text().splitlines()]
    mean = sum(row["policies"]["ppo"]["judge"] for row in rows) / len(rows)
    assert done["metrics"]["ppo"]["judge"]["value"] == pytest.approx(mean, abs=1e-6)


def test_the_judge_looks_at_ppo_and_moves_no_weight(many, home, capsys):
    folder, road = home / "runs" / "looked-at" / "translation", ["--run", "looked-at", "--data", many, *SMALLEST]
    for stage in ("sft", "reward", "ppo"):
        assert main([stage, "translation", *road]) == 0
    assert "no judge looks at PPO: the stage judge is not made yet" in capsys.readouterr().out
    without = {path.name: path.read_bytes() for path in (folder / "ppo").rglob("*.safetensors")}
    assert not any("slice/judge" in row for row in record(folder, "ppo")["watch"]["rows"])

    assert main(["judge", "translation", *road]) == 0
    better = {"value": 0.8, "low": 0.7, "high": 0.9}
    changed(folder / "judge" / "done.json", metrics=record(folder, "judge")["metrics"] | {"accuracy": better})
    assert main(["ppo", "translation", *road, "--force"]) == 0
    done = record(folder, "ppo")
    assert all("slice/judge" in row for row in done["watch"]["rows"])
    assert "judge" not in done["adapters"]
    assert without == {path.name: path.read_bytes() for path in (folder / "ppo").rglob("*.safetensors")}
    last = [json.loads(line) for line in (folder / "ppo" / "log.jsonl").read_text().splitlines()][-1]
    assert last["slice/judge"] == done["watch"]["rows"][-1]["slice/judge"]


def test_a_judge_that_ended_ppo_is_told_as_one_that_had_a_say(many, home):
    folder, road = home / "runs" / "looked-at" / "translation", ["--run", "looked-at", "--data", many, *SMALLEST]
    watch = record(folder, "ppo")["watch"]
    changed(folder / "ppo" / "done.json", watch=watch | {"ended_by_judge": True})
    assert main(["run", "translation", *road]) == 0
    assert record(folder, "evaluate")["judge"]["ended"] == ["ppo"]
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "PPO never climbed it, but it ended PPO, so it is not wholly independent of the policy." in page


def test_a_persons_own_function_judges_by_prompt_answer_and_references(home):
    (home / "judges.py").write_text(
        "def near(prompt, answer, references):\n    return -abs(len(answer) - len(references[0])) + len(prompt)\n"
    )
    folder = home / "runs" / "own-judge" / "translation"
    road = ["--run", "own-judge", "--data", "pairs.jsonl", *SMALLEST, "evaluate.judge=judges.py:near"]
    assert main(["run", "translation", *road]) == 0
    assert record(folder, "evaluate")["judge"]["name"] == "judges.py:near"
    for line in (folder / "evaluate" / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        for given in row["policies"].values():
            assert given["judge"] == 1 - abs(len(given["answer"]) - len(row["references"][0]))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("something", "say auto, none, or a function of yours"),
        ("nowhere.py:near", "there is no file nowhere.py"),
        ("broken.py:near", "cannot be imported (ZeroDivisionError: division by zero)"),
        ("empty.py:near", "there is no function 'near'"),
        ("notes.txt:near", "is no Python file"),
    ],
)
def test_a_judge_that_cannot_be_loaded_is_refused_in_a_sentence_before_any_stage(
    setting, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name, text in {"broken.py": "1 / 0", "empty.py": "", "notes.txt": ""}.items():
        (tmp_path / name).write_text(text)
    assert main(["evaluate", "translation", f"evaluate.judge={setting}"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert len(error) < 300
    assert not (tmp_path / "runs").exists()


def test_a_judge_that_fails_on_an_answer_is_told_with_the_row(home, capsys):
    (home / "failing_judge.py").write_text("def near(prompt, answer, references):\n    return 'good'\n")
    road = ["--run", "failing-judge", "--data", "pairs.jsonl", *SMALLEST, "evaluate.judge=failing_judge.py:near"]
    for stage in ("sft", "reward", "ppo"):
        assert main([stage, "translation", *road]) == 0
    assert main(["evaluate", "translation", *road]) == 2
    assert "the judge failing_judge.py:near gave 'good', which is no number on the answer" in capsys.readouterr().err
