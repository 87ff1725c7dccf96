"""A run takes finished stages from another: as they are or not at all, and neither depends on the other afterwards."""

import json
import os
import shutil

import kills
import pytest
from conftest import main

from rlrecipes.errors import UserError
from rlrecipes.run.checksums import sealed
from rlrecipes.run.folder import Run
from rlrecipes.run.taken import take

SETTINGS = {"sft.max_steps": 2, "seed": 0}


@pytest.fixture
def runs(tmp_path):
    """A run with a finished SFT stage, and one without any."""
    mine, other = (Run(name, "translation", tmp_path / "runs") for name in ("mine", "other"))
    draft = mine.open("sft", SETTINGS)
    (draft / "adapter").mkdir()
    (draft / "adapter" / "weights").write_bytes(b"weights")
    (draft / "log.jsonl").write_text("{}\n")
    mine.close("sft", {"settings": SETTINGS, "seconds": 5})
    return mine, other


def test_the_files_are_the_same_and_the_record_says_whose_they_are(runs):
    mine, other = runs
    assert take(other, "sft", mine, SETTINGS)
    weights = [run.stage("sft") / "adapter" / "weights" for run in runs]
    assert weights[0].samefile(weights[1])
    record, theirs = other.done("sft"), mine.done("sft")
    assert record["taken"] == {"run": "mine", "sha256": theirs["sha256"]}
    assert record["files"] == theirs["files"]
    assert other.is_finished("sft", SETTINGS)
    assert not take(other, "sft", mine, SETTINGS), "it is there already"


def test_removing_one_run_leaves_the_other_whole(runs):
    mine, other = runs
    take(other, "sft", mine, SETTINGS)
    mine.remove("sft")
    shutil.rmtree(mine.folder)
    assert other.done("sft")["taken"]["run"] == "mine"
    assert (other.stage("sft") / "adapter" / "weights").read_bytes() == b"weights"


def test_on_another_disk_the_files_are_copied(runs, monkeypatch):
    def refuse(*paths):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    mine, other = runs
    assert take(other, "sft", mine, SETTINGS)
    weights = [run.stage("sft") / "adapter" / "weights" for run in runs]
    assert not weights[0].samefile(weights[1])
    assert other.done("sft")["files"] == mine.done("sft")["files"]


def test_another_setting_an_unfinished_stage_and_one_of_its_own_are_refused_in_one_line(runs):
    mine, other = runs
    with pytest.raises(UserError, match=r"sft\.max_steps = 2 where you now have 3, so it cannot be taken"):
        take(other, "sft", mine, {**SETTINGS, "sft.max_steps": 3})
    with pytest.raises(UserError, match=r"no finished reward stage in .*mine"):
        take(other, "reward", mine, SETTINGS)
    (other.open("sft", SETTINGS) / "adapter").write_text("others")
    other.close("sft", {"settings": SETTINGS})
    with pytest.raises(UserError, match="has a sft stage of its own, which differs"):
        take(other, "sft", mine, SETTINGS)
    assert (other.stage("sft") / "adapter").read_text() == "others"


def test_an_interrupted_stage_of_its_own_is_not_lost(runs):
    mine, other = runs
    (other.open("sft", SETTINGS) / "checkpoints" / "step-000001").mkdir(parents=True)
    with pytest.raises(UserError, match="has a sft stage of its own"):
        take(other, "sft", mine, SETTINGS)
    assert other.begun("sft") == SETTINGS


def test_damage_is_told_and_nothing_is_taken(runs):
    mine, other = runs
    (mine.stage("sft") / "adapter" / "weights").write_bytes(b"weightz")
    with pytest.raises(UserError, match="weights is damaged"):
        take(other, "sft", mine, SETTINGS)
    assert not other.folder.exists()


def test_a_copy_that_is_not_the_same_is_not_taken(runs, monkeypatch):
    mine, other = runs
    monkeypatch.setattr("rlrecipes.run.taken._link", lambda source, place: None)
    with pytest.raises(UserError, match="weights is missing"):
        take(other, "sft", mine, SETTINGS)
    assert other.done("sft") is None


def test_a_kill_before_any_change_to_a_file_leaves_nothing_half(runs):
    mine, other = runs
    before = {path: path.read_bytes() for path in mine.folder.rglob("*") if path.is_file()}

    def work():
        take(other, "sft", mine, SETTINGS)
        return 0

    for change in range(1, 100):
        status = kills.forked(work, kills.Moment(change=change))
        other.recover()
        record = other.done("sft")
        assert record is None or record["files"] == mine.done("sft")["files"]
        take(other, "sft", mine, SETTINGS)
        assert [path.name for path in other.folder.iterdir()] == ["sft"]
        assert {path: path.read_bytes() for path in before} == before
        other.remove("sft")
        if status == 0:
            break
    assert status == 0
    assert change > 8, "it changes more files than that"


def test_a_record_without_checksums_is_not_taken(runs):
    mine, other = runs
    path = mine.stage("sft") / "done.json"
    record = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("sha256", "files")}
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="from before checksums"):
        take(other, "sft", mine, SETTINGS)
    assert sealed(record)["files"] == {}


def test_ppo_stands_on_what_another_run_has_trained(finished, home, capsys):
    assert main(["ppo", "translation", "--run", "taking", "--from", "t", "ppo.kl_coef=0.5"]) == 0
    out = capsys.readouterr().out
    assert "sft: taken from runs/t/translation/sft" in out
    folder = home / "runs" / "taking" / "translation"
    assert {path.parent.name for path in folder.glob("*/done.json")} == {"sft", "reward", "ppo"}
    for stage in ("sft", "reward"):
        record, theirs = (json.loads((at / stage / "done.json").read_text()) for at in (folder, finished))
        assert record["taken"] == {"run": "t", "sha256": theirs["sha256"]}
    assert main(["evaluate", "translation", "--run", "taking"]) == 0
    capsys.readouterr()
    assert main(["ppo", "translation", "--run", "taking-2", "--from", "t", "reward.max_steps=3"]) == 2
    assert "reward was made with reward.max_steps = 2 where you now have 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ppo", "translation", "--from", "t"], "beside --from t name a new run, as --run"),
        (["ppo", "translation", "--from", "t", "--run", "t"], "beside --from t name a new run, as --run"),
        (["sft", "translation", "--from", "t", "--run", "x"], "`sft` does not take --from"),
        (["ppo", "translation", "--from", "tt", "--run", "x"], "there is no run 'tt'; did you mean 't'?"),
    ],
)
def test_a_source_that_cannot_be_meant_is_one_line(finished, home, capsys, arguments, said):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert not (home / "runs" / "x").exists()
