"""A stage is there whole or not at all, and is never mistaken for one made under other settings."""

import json
import os
import re
import shutil
import subprocess
import time

import pytest
from kills import Moment, counted, forked

from rlrecipes.errors import UserError
from rlrecipes.run.circumstances import Stopwatch, git_commit
from rlrecipes.run.folder import Run, write_json
from rlrecipes.run.lock import locked
from rlrecipes.run.stages import STAGES


@pytest.fixture
def run(tmp_path):
    run = Run("t", "translation", tmp_path)
    run.folder.mkdir(parents=True)  # whoever works in it has locked it
    return run


def close(run, stage, settings=None, content="weights"):
    draft = run.open(stage, {})
    (draft / "adapter").write_text(content)
    run.close(stage, {"settings": settings or {}})


def interrupted(run, stage, under):
    """A draft with a checkpoint in it, and what a stage had half done."""
    draft = run.open(stage, under)
    (draft / "checkpoints" / "step-000001").mkdir(parents=True, exist_ok=True)
    (draft / "log.jsonl").write_text("a line")
    (draft / "adapter").mkdir()
    (draft / "adapter" / "half").write_text("half")
    return draft


def power_fails(*paths):
    raise OSError("the power is off")


def test_a_stage_is_not_there_until_it_is_closed(run):
    draft = run.open("sft", {})
    (draft / "adapter").write_text("half")
    assert run.done("sft") is None
    assert not run.stage("sft").exists()


def test_a_closed_stage_holds_its_files_and_its_record(run):
    close(run, "sft", {"sft.max_steps": 1})
    assert (run.stage("sft") / "adapter").read_text() == "weights"
    record = run.done("sft")
    assert (record["stage"], record["settings"]) == ("sft", {"sft.max_steps": 1})
    assert list(record["files"]) == ["adapter"]
    assert sorted(path.name for path in run.folder.iterdir()) == ["sft"]


def test_what_a_stage_left_that_saved_nothing_is_gone_when_it_starts_again(run):
    (run.open("sft", {"a": 1}) / "adapter").write_text("half")
    assert run.begun("sft") is None
    assert [path.name for path in run.open("sft", {"a": 1}).iterdir()] == ["begun.json"]


def test_an_interrupted_stage_keeps_its_checkpoints_and_logs_and_nothing_half_written(run):
    interrupted(run, "sft", {"a": 1})
    assert run.begun("sft") == {"a": 1}
    draft = run.open("sft", {"a": 1})
    assert sorted(path.name for path in draft.iterdir()) == ["begun.json", "checkpoints", "log.jsonl"]
    assert (draft / "checkpoints" / "step-000001").is_dir()


def test_an_interrupted_stage_is_not_gone_on_with_under_other_settings(run):
    interrupted(run, "ppo", {"ppo.kl_coef": 0.1, "library.torch": "2.13.0", "pair": (1, 2)})
    run.check_begun("ppo", {"ppo.kl_coef": 0.1, "library.torch": "2.13.0", "pair": (1, 2)})
    with pytest.raises(UserError, match=r"begun with ppo.kl_coef = 0.1 where you now have 0.2.*make ppo .*FORCE=1"):
        run.check_begun("ppo", {"ppo.kl_coef": 0.2, "library.torch": "2.13.0", "pair": (1, 2)})
    with pytest.raises(UserError, match=r'library.torch = "2.13.0" where you now have'):
        run.check_begun("ppo", {"ppo.kl_coef": 0.1, "library.torch": "2.14.0", "pair": (1, 2)})


def test_a_stage_begun_anew_under_other_settings_starts_empty(run):
    interrupted(run, "ppo", {"a": 1})
    assert [path.name for path in run.open("ppo", {"a": 2}).iterdir()] == ["begun.json"]


def test_a_damaged_note_of_what_a_stage_was_begun_with_is_told(run):
    (interrupted(run, "ppo", {"a": 1}) / "begun.json").write_text("{")
    with pytest.raises(UserError, match=r"begun.json is damaged; delete the folder .*\.ppo"):
        run.check_begun("ppo", {"a": 1})


def test_a_failed_stage_leaves_a_draft_only_if_one_can_go_on_from_it(run):
    (run.open("sft", {}) / "adapter").write_text("half")
    run.abandon("sft")
    assert not run.draft("sft").exists()
    interrupted(run, "sft", {})
    run.abandon("sft")
    assert run.begun("sft") == {}


def test_a_closed_stage_holds_no_checkpoints(run):
    interrupted(run, "sft", {})
    close(run, "sft")
    assert sorted(path.name for path in run.stage("sft").iterdir()) == ["adapter", "done.json", "log.jsonl"]


def test_a_stage_made_again_replaces_the_old_one_whole(run):
    close(run, "sft", content="old")
    (run.open("sft", {}) / "scale.json").write_text("old")
    run.close("sft", {"settings": {}})
    close(run, "sft", content="new")
    assert (run.stage("sft") / "adapter").read_text() == "new"
    assert not (run.stage("sft") / "scale.json").exists()


def test_a_record_that_cannot_be_written_leaves_the_old_stage(run):
    close(run, "sft", content="old")
    run.open("sft", {})
    with pytest.raises(TypeError):
        run.close("sft", {"settings": {}, "metrics": object()})
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
    with pytest.raises(UserError, match="run `make reward RECIPE=translation RUN=t` first, with the same options"):
        run.need("reward")


def test_forgetting_takes_what_stands_above_and_nothing_else(run):
    for stage in STAGES:
        close(run, stage)
    run.forget_above("reward")
    assert [stage for stage in STAGES if run.done(stage)] == ["sft", "reward", "judge", "dpo"], (
        "which stand on sft alone"
    )


def test_a_stage_that_is_replaced_takes_down_what_stood_or_was_about_to_stand_on_it(run):
    for stage in ("sft", "reward", "ppo"):
        close(run, stage)
    interrupted(run, "evaluate", {})
    close(run, "reward", content="new")
    assert sorted(path.name for path in run.folder.iterdir()) == ["reward", "sft"]


def test_a_stage_made_anew_where_its_folder_was_taken_away_takes_down_what_stood_on_it(run):
    for stage in list(STAGES)[:3]:
        close(run, stage)
    shutil.rmtree(run.stage("sft"))
    close(run, "sft", content="new")
    assert [path.name for path in run.folder.iterdir()] == ["sft"]


# Damage, and what is not ours.


def flip(path, bit=0):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def outcome(work):
    """What comes of it, and what is told otherwise."""
    try:
        return work(), ""
    except UserError as error:
        return None, str(error)


def test_any_flipped_bit_of_a_finished_stage_is_told_or_says_the_same(run):
    (run.open("sft", {}) / "log.jsonl").write_text('{"step": 1}\n')
    (run.draft("sft") / "adapter").mkdir()
    (run.draft("sft") / "adapter" / "weights").write_bytes(bytes(64))
    run.close("sft", {"settings": {"a": 1.5}, "data": {"rows": 3}, "metrics": {"é": None}})
    record = run.done("sft")
    for path in [path for path in run.stage("sft").rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for bit in range(0, len(whole) * 8, 7):
            flip(path, bit)
            found, told = outcome(lambda: run.done("sft"))
            assert re.search(r"sft/.* is damaged.*stage again", told) or (found == record and path.name == "done.json")
            path.write_bytes(whole)
    assert run.done("sft") == record


def test_a_stage_of_which_a_file_is_missing_or_cut_short_is_told_with_the_command_that_makes_it_again(run):
    close(run, "sft")
    (run.stage("sft") / "adapter").write_text("weight")
    with pytest.raises(UserError, match=r"adapter is damaged \(it has 6 bytes instead of 7\); .*make sft .*FORCE=1"):
        run.need("sft")
    (run.stage("sft") / "adapter").unlink()
    with pytest.raises(UserError, match=r"sft/adapter is missing; make its stage again with"):
        run.is_finished("sft", {})


def test_a_stage_from_before_there_were_checksums_counts(run):
    close(run, "sft")
    write_json(run.stage("sft") / "done.json", {"stage": "sft", "settings": {"a": 1}})
    assert run.is_finished("sft", {"a": 1})


def test_any_flipped_bit_in_what_a_stage_was_begun_with_is_told_or_says_the_same(run):
    path = interrupted(run, "ppo", {"a": 1, "library.torch": "2.13.0"}) / "begun.json"
    whole = path.read_bytes()
    for bit in range(0, len(whole) * 8, 3):
        flip(path, bit)
        found, told = outcome(lambda: run.begun("ppo"))
        assert "begun.json is damaged" in told or found == {"a": 1, "library.torch": "2.13.0"}
        path.write_bytes(whole)


def somebodys(path):
    path.mkdir(parents=True)
    (path / "done.json").write_text("{}")
    (path / "thesis.tex").write_text("years of work")
    return path


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (
            lambda stage, theirs: (stage / "notes.txt").write_text("mine"),
            r"sft holds notes\.txt, which the stage did not",
        ),
        (lambda stage, theirs: (stage / "adapters").symlink_to(theirs), r"sft holds adapters, which the stage did not"),
        (
            lambda stage, theirs: [(stage / name).write_text("mine") for name in "abc"],
            "sft holds a and 2 more, which the stage did not write",
        ),
        (lambda stage, theirs: (shutil.rmtree(stage), stage.symlink_to(theirs)), "sft is a link where"),
        (lambda stage, theirs: (shutil.rmtree(stage), stage.write_text("mine")), "sft is a file where"),
        (
            lambda stage, theirs: (shutil.rmtree(stage), somebodys(stage / "in"), None),
            r"sft holds in/done.json and 1 more",
        ),
        (
            lambda stage, theirs: (
                (stage / "notes.txt").write_text("mine"),
                (stage / "done.json").write_text('{"stage": "sft"'),  # so nobody knows what the stage wrote
            ),
            r"done\.json is damaged .* delete .*sft and give the same",
        ),
        (lambda stage, theirs: stage.with_name(".sft").symlink_to(theirs), r"\.sft is a link where"),
    ],
)
def test_what_a_stage_did_not_write_is_not_deleted_with_it(run, tmp_path, put, said):
    theirs = somebodys(tmp_path / "theirs")
    close(run, "sft")
    close(run, "evaluate")
    put(run.stage("sft"), theirs)
    before = sorted(run.folder.rglob("*"))
    with pytest.raises(UserError, match=said):
        run.check_removable(["sft"])
    with pytest.raises(UserError, match=said):
        run.remove("sft")
    assert sorted(run.folder.rglob("*")) == before
    assert sorted(path.name for path in theirs.iterdir()) == ["done.json", "thesis.tex"]


@pytest.mark.parametrize(
    "name", ["mine.txt", "mine.jsonl", "checkpoints/mine.txt", "checkpoints/step-1.bak/a", "adapter"]
)
def test_what_somebody_put_into_an_unfinished_stage_is_not_deleted_with_it(run, tmp_path, name):
    close(run, "sft")
    draft = interrupted(run, "ppo", {"a": 1})
    shutil.rmtree(draft / "adapter")
    (draft / name).parent.mkdir(exist_ok=True)
    if name == "adapter":
        (draft / name).symlink_to(somebodys(tmp_path / "theirs"))
    else:
        (draft / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for remove in (
        lambda: run.check_removable(["sft"]),
        lambda: run.remove("ppo"),
        lambda: run.open("ppo", {"a": 1}),
        lambda: run.open("ppo", {"a": 2}),
        lambda: close(run, "sft"),
    ):
        with pytest.raises(UserError, match=rf"\.ppo holds {name}, which the stage did not write"):
            remove()
    assert sorted(tmp_path.rglob("*")) == before
    (draft / name).rename(tmp_path / "away")
    assert run.open("ppo", {"a": 1}) == draft
    assert run.begun("ppo") == {"a": 1}


def test_what_somebody_put_into_a_stage_while_it_was_made_is_no_part_of_it(run):
    (run.open("sft", {}) / "notes.txt").write_text("mine")
    run.abandon("sft")
    (run.draft("sft") / "adapter").write_text("new")
    with pytest.raises(UserError, match=r"\.sft holds notes\.txt"):
        run.close("sft", {"settings": {}})
    (run.draft("sft") / "notes.txt").rename(run.folder / "notes.txt")
    run.recover()
    assert [*run.done("sft")["files"]] == ["adapter"]


# As strace saw them on a road with two reward models and a value adapter; the rest of a name that ends in tmp is random.
LEFT_BY_KILLS = """
    begun.json begun.json.part done.json done.json.part scale.json scale.json.part index.html index.html.part README.md
    log.jsonl samples.jsonl answers.jsonl value_head.safetensors .tmp0SYRBs
    adapter/adapter_model.safetensors adapter/.tmpVxKJM5 adapter/tokenizer.json member-1/scale.json.part member-1/adapter/a
    value/adapter_config.json value_adapter/adapter_config.json policy/.tmpMmoUEC
    checkpoints/.step-000012/.tmpCKvD5B checkpoints/step-000011/state.json checkpoints/trainer_state.json.part
"""


def test_whatever_a_kill_leaves_of_a_stage_is_in_nobodys_way(run):
    draft = run.open("reward", {})
    for name in LEFT_BY_KILLS.split():
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        if name != "begun.json":
            (draft / name).touch()
    names = {path.name for path in run.open("reward", {}).iterdir()}
    assert names == {"begun.json", "checkpoints", "log.jsonl", "samples.jsonl", "answers.jsonl"}


def test_what_came_into_a_stages_folder_while_it_was_made_anew_stays_and_the_new_one_waits(run):
    close(run, "sft", content="old")
    (run.open("sft", {}) / "adapter").write_text("new")
    (run.stage("sft") / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        run.close("sft", {"settings": {}})
    (run.stage("sft") / "notes.txt").rename(run.folder / "notes.txt")
    run.recover()
    assert (run.stage("sft") / "adapter").read_text() == "new"


@pytest.mark.parametrize("content", ["", "{}", '{"stage": "sft", "files": {"adapter": {"bytes": 9}}, "sha256": "0"}'])
def test_a_damaged_stage_that_waits_beside_a_finished_one_does_not_take_its_place(run, content):
    close(run, "sft", content="old")
    close(run, "evaluate")
    draft = run.open("sft", {})
    (draft / "done.json").write_text(content)
    with pytest.raises(UserError, match=r"\.sft/done\.json is damaged.*; delete the folder .*\.sft and give the same"):
        run.recover()
    assert (run.stage("sft") / "adapter").read_text() == "old"
    assert run.done("evaluate")
    shutil.rmtree(draft)
    run.recover()


def test_a_run_behind_a_link_works_as_one_that_is_not(tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "big")
    run = Run("t", "translation", tmp_path / "runs")
    close(run, "sft", content="old")
    close(run, "sft", content="new")
    assert (tmp_path / "big" / "t" / "translation" / "sft" / "adapter").read_text() == "new"


# A kill at any moment.


def test_a_kill_at_any_moment_of_closing_leaves_the_old_stage_or_the_new_one_and_nothing_on_a_replaced_one(tmp_path):
    def prepared(name):
        run = Run("t", "translation", tmp_path / "runs" / name)
        for stage in STAGES:
            run.open(stage, {})
            for number in range(1, 5):  # in whatever order the files of a folder are removed
                (run.draft(stage) / f"member-{number}").touch()
            (run.draft(stage) / "adapter").write_text("old")
            run.close(stage, {"settings": {}})
        draft = run.open("reward", {})
        (draft / "adapter").write_text("new")
        (draft / "checkpoints" / "step-000001").mkdir(parents=True)
        return run

    def work(run):
        run.close("reward", {"settings": {}})
        return 0

    changes = counted(lambda: work(counting)) if (counting := prepared("counting")) else 0
    assert changes > 10
    contents = []
    for change in range(1, changes + 1):
        run = prepared(str(change))
        assert forked(lambda run=run: work(run), Moment(change=change)) == -9
        for stage in filter(run.done, STAGES):
            assert len(list(run.stage(stage).iterdir())) in (2, 6), "half removed, yet it looks finished"
        run.recover()
        content = (run.stage("reward") / "adapter").read_text()
        contents.append(content)
        above = [stage for stage in ("ppo", "answers", "evaluate", "report") if run.done(stage)]
        assert run.done("sft")
        assert run.done("reward")
        assert above == (["ppo", "answers", "evaluate", "report"] if content == "old" else [])
        if content == "new":
            assert sorted(path.name for path in run.stage("reward").iterdir()) == ["adapter", "done.json"]
    assert contents == sorted(contents, reverse=True), "first the old one, then the new one"
    assert {"old", "new"} == set(contents)


def test_recovery_may_be_killed_as_well(tmp_path):
    def prepared(name):
        run = Run("t", "translation", tmp_path / "runs" / name)
        for stage in STAGES:
            close(run, stage, content="old")
        (run.open("reward", {}) / "adapter").write_text("new")
        write_json(run.draft("reward") / "done.json", {"stage": "reward", "settings": {}})
        return run

    def work(run):
        run.recover()
        return 0

    counting = prepared("counting")
    for change in range(1, counted(lambda: work(counting)) + 1):
        run = prepared(str(change))
        assert forked(lambda run=run: work(run), Moment(change=change)) == -9
        run.recover()
        assert (run.stage("reward") / "adapter").read_text() == "new"
        assert [stage for stage in STAGES if run.done(stage)] == ["sft", "reward", "judge", "dpo"]


def test_removing_a_stage_takes_what_was_begun_and_what_stands_on_it(run):
    close(run, "sft")
    close(run, "reward")
    interrupted(run, "ppo", {"a": 1})
    run.remove("reward")
    assert run.done("sft")
    assert not any(path.exists() for path in (run.stage("reward"), run.draft("ppo")))


# Two processes.


def held(folder, seconds):
    """A process that keeps `folder` locked; returns once it does."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(folder):
            os.write(writer, b"x")
            time.sleep(seconds)
        os._exit(0)
    os.read(reader, 1)
    return child


def test_a_second_process_is_told_or_waits_and_a_killed_one_holds_nothing(tmp_path, capsys):
    folder = tmp_path / "runs" / "t"
    child = held(folder, 60)
    with (
        pytest.raises(
            UserError, match=rf"at work in .*t \(process {child}, since 2.*: .*\); wait for it or name another run"
        ),
        locked(folder),
    ):
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)
    with locked(folder):
        (folder / "something").touch()
    child = held(folder, 0.3)
    with locked(folder, wait=True):
        assert "waiting for another process" in capsys.readouterr().out
    os.waitpid(child, 0)


def test_a_folder_that_nothing_came_into_is_gone_after_its_lock(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "kept").touch()
    with locked(tmp_path / "runs" / "t" / "translation"):
        assert (tmp_path / "runs" / "t" / "translation").is_dir()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["kept"]
    shutil.rmtree(tmp_path / "runs")


def test_a_stopwatch_gives_seconds_and_megabytes():
    watch = Stopwatch()
    assert watch.seconds() >= 0
    assert 5 < watch.peak_memory_mb() < 200_000


def test_the_commit_of_another_project_that_the_package_is_installed_in_is_not_ours(tmp_path, monkeypatch):
    package = tmp_path / ".venv" / "rlrecipes" / "run"
    package.mkdir(parents=True)
    (package / "folder.py").touch()
    (tmp_path / ".gitignore").write_text(".venv\n", encoding="utf-8")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "theirs"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr("rlrecipes.run.circumstances.__file__", str(package / "folder.py"))
    assert git_commit() is None
    subprocess.run(["git", "add", "-f", "."], cwd=tmp_path, check=True)
    assert re.fullmatch(r"[0-9a-f]{40}\+changes", git_commit())
