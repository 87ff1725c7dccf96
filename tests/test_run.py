"""A stage is there whole or not at all, and is never mistaken for one made under other settings."""

import json

import pytest

from rlrecipes.errors import UserError
from rlrecipes.run import STAGES, Run, Stopwatch, write_json


@pytest.fixture
def run(tmp_path):
    return Run("t", "translation", tmp_path)


def close(run, stage, settings=None, content="weights"):
    draft = run.open(stage)
    (draft / "adapter").write_text(content)
    run.close(stage, draft, {"settings": settings or {}})


def power_fails(*paths):
    raise OSError("the power is off")


def test_a_stage_is_not_there_until_it_is_closed(run):
    draft = run.open("sft")
    (draft / "adapter").write_text("half")
    assert run.done("sft") is None
    assert not run.stage("sft").exists()


def test_a_closed_stage_holds_its_files_and_its_record(run):
    close(run, "sft", {"sft.max_steps": 1})
    assert (run.stage("sft") / "adapter").read_text() == "weights"
    assert run.done("sft") == {"stage": "sft", "settings": {"sft.max_steps": 1}}
    assert sorted(path.name for path in run.folder.iterdir()) == ["sft"]


def test_what_an_interrupted_stage_left_is_gone_when_it_starts_again(run):
    (run.open("sft") / "half").write_text("half")
    assert list(run.open("sft").iterdir()) == []


def test_a_stage_made_again_replaces_the_old_one_whole(run):
    close(run, "sft", content="old")
    (run.stage("sft") / "more").write_text("old")
    close(run, "sft", content="new")
    assert (run.stage("sft") / "adapter").read_text() == "new"
    assert not (run.stage("sft") / "more").exists()


def test_a_record_that_cannot_be_written_leaves_the_old_stage(run):
    close(run, "sft", content="old")
    draft = run.open("sft")
    with pytest.raises(TypeError):
        run.close("sft", draft, {"settings": {}, "metrics": object()})
    assert (run.stage("sft") / "adapter").read_text() == "old"
    assert run.done("sft") is not None


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"number": 1})
    with pytest.raises(TypeError):
        write_json(path, {"number": object()})
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", power_fails)
        with pytest.raises(OSError, match="power"):
            write_json(path, {"number": 2})
    assert json.loads(path.read_text()) == {"number": 1}
    write_json(path, {"number": 3})
    assert json.loads(path.read_text()) == {"number": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", ["", '{"stage": "sft"', "[]", "null", "{}", '{"settings": 5}'])
def test_a_damaged_record_is_told_with_what_to_delete(run, content):
    close(run, "sft")
    (run.stage("sft") / "done.json").write_text(content)
    with pytest.raises(UserError, match=r"done.json is damaged; delete the folder .*sft"):
        run.is_finished("sft", {})


def test_the_same_settings_are_finished_and_others_are_refused(run):
    settings = {"sft.max_steps": 1, "lora.r": 8, "pair": (1, 2)}
    close(run, "sft", settings)
    assert run.is_finished("sft", settings)
    assert not run.is_finished("reward", settings)
    with pytest.raises(UserError, match=r"lora.r = 8 where you now have 16"):
        run.is_finished("sft", settings | {"lora.r": 16})


def test_a_setting_that_came_or_went_is_a_difference(run):
    close(run, "sft", {"old": 1, "same": 2})
    with pytest.raises(UserError, match="old = 1 where you now have null, new = null where you now have 3"):
        run.is_finished("sft", {"same": 2, "new": 3})


def test_many_differences_are_counted(run):
    close(run, "sft", {str(i): 0 for i in range(9)})
    with pytest.raises(UserError, match="and 6 more differences"):
        run.is_finished("sft", {str(i): 1 for i in range(9)})


def test_a_stage_that_another_needs_names_the_command_that_makes_it(run):
    with pytest.raises(UserError, match="run `make reward RECIPE=translation` first"):
        run.need("reward")


def test_forgetting_takes_what_stands_above_and_nothing_else(run):
    for stage in STAGES:
        close(run, stage)
    run.forget_above("reward")
    assert [stage for stage in STAGES if run.done(stage)] == ["sft", "reward"]


def test_a_stopwatch_gives_seconds_and_megabytes():
    watch = Stopwatch()
    assert watch.seconds() >= 0
    assert 5 < watch.peak_memory_mb() < 200_000
