"""Tracking tells what happens and never stops it."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import wandb
from conftest import ROOT, Listener

from rlrecipes.profile import TrackSettings
from rlrecipes.run.folder import Run
from rlrecipes.run.tracking import Tracker, progress, sync_command, tracked


def translation(tmp_path, mode):
    """A run of one recipe, and how it is tracked."""
    return Run("t", "translation", tmp_path), TrackSettings(mode, "mine")


class FakeRun:
    resumed = True

    def __init__(self, broken=False):
        self.broken, self.logged, self.exit_code = broken, [], None
        self.summary = {}

    def log(self, values, step):
        if self.broken:
            raise ConnectionError("gone")
        self.logged.append((step, values))

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def started(monkeypatch):
    """What `wandb.init` was asked for; `refuse` holds the modes that fail, `run` is what it returns."""

    asked = SimpleNamespace(calls=[], refuse=set(), run=FakeRun())

    def init(**arguments):
        asked.calls.append(arguments)
        if arguments["mode"] in asked.refuse:
            raise wandb.errors.CommError("unreachable")
        return asked.run

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr("rlrecipes.run.tracking._logged_in", lambda: False)
    monkeypatch.setattr("rlrecipes.run.tracking._kept_mode", lambda: None)
    monkeypatch.setattr("rlrecipes.run.tracking._process.unreached", False)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    return asked


def test_values_go_to_a_file_line_by_line(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log({"loss": 2.0}, 1)
    tracker.log({"loss": 1.0}, 2)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_tables_of_several_steps_stand_in_one_file_and_grow_in_one_table_of_wandb(tmp_path):
    tracker = Tracker(tmp_path, run := FakeRun())
    tracker.table("samples", [{"prompt": "Grüß", "answer": "b"}], 1)
    tracker.table("samples", [{"prompt": "Grüß", "answer": "c"}], 2)
    assert len((tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert [list(values) for _, values in run.logged] == [["samples"], ["samples"]]
    first, second = (values["samples"] for _, values in run.logged)
    assert first is second
    assert (second.log_mode, second.columns) == ("INCREMENTAL", ["step", "prompt", "answer"])
    assert second.data == [[1, "Grüß", "b"], [2, "Grüß", "c"]]


def test_a_resumed_stage_tells_its_new_wandb_run_what_had_been_told_by_then(tmp_path):
    before = Tracker(tmp_path, first := FakeRun())
    before.log({"loss": 2.0}, 1)
    before.table("samples", [{"answer": "a\u2028"}, {"answer": "b"}], 1)
    before.log({"loss": 1.0}, 2)
    positions = before.positions()
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    before.log({"loss": 0.5}, 3)
    before.table("samples", [{"answer": "c"}], 3)

    Tracker(tmp_path, second := FakeRun()).go_back(positions)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == contents
    assert [(step, list(values)) for step, values in second.logged] == [
        (1, ["loss"]),
        (1, ["samples"]),
        (2, ["loss"]),
    ]
    assert [values["loss"] for _, values in second.logged if "loss" in values] == [2.0, 1.0]
    assert second.logged[1][1]["samples"].data == [[1, "a\u2028"], [1, "b"]]
    assert len(first.logged) == 5


@pytest.mark.parametrize(("mode", "tables"), [("offline", [[1, "a"], [2, "b"]]), ("online", [[2, "b"]])])
def test_a_stage_that_goes_on_goes_on_with_its_wandb_run_and_sends_no_row_twice(
    tmp_path, started, monkeypatch, mode, tables
):
    monkeypatch.setattr("rlrecipes.run.tracking._logged_in", lambda: True)
    draft = tmp_path / "draft"
    draft.mkdir()

    def process():
        started.run = FakeRun()
        return tracked(*translation(tmp_path, mode), "ppo", draft, {})

    with process() as tracker:
        tracker.go_back({})
        tracker.log({"loss": 3.0}, 1)
        tracker.table("samples", [{"answer": "a"}], 1)
        positions = tracker.positions()
        tracker.log({"loss": 2.0}, 2)
    (draft / "checkpoints" / "step-000001").mkdir(parents=True)
    for _ in range(2):  # the second is cut off before it comes to the row that the first one sent
        with process() as tracker:
            tracker.go_back(positions)
    with process() as tracker:
        tracker.go_back(positions)
        tracker.log({"loss": 2.0}, 2)
        tracker.table("samples", [{"answer": "b"}], 2)
        tracker.log({"loss": 1.0}, 3)
    assert len({call["id"] for call in started.calls}) == 1
    assert [call["resume"] for call in started.calls] == ["never", "allow", "allow", "allow"]
    assert [values["loss"] for _, values in started.run.logged if "loss" in values] == [1.0]
    (table, *_) = [values["samples"] for _, values in started.run.logged if "samples" in values]
    assert table.data == tables

    (draft / "checkpoints" / "step-000001").rmdir()
    with process():
        pass
    assert len({call["id"] for call in started.calls}) == 2, "a stage that begins again is a run of its own"


def test_a_run_that_breaks_down_is_told_once_and_the_file_goes_on(tmp_path, capsys):
    tracker = Tracker(tmp_path, FakeRun(broken=True))
    tracker.log({"loss": 2.0}, 1)
    tracker.log({"loss": 1.0}, 2)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    assert capsys.readouterr().out.count("training goes on without it") == 1


def test_a_stage_is_one_run_in_the_group_of_its_recipe(tmp_path, started):
    with tracked(*translation(tmp_path, "offline"), "sft", tmp_path, {"sft.max_steps": 1}) as tracker:
        tracker.summary({"accuracy": 1.0})
    (call,) = started.calls
    assert (call["project"], call["group"], call["job_type"]) == ("mine", "t-translation", "sft")
    assert call["config"] == {"sft.max_steps": 1}
    assert call["mode"] == "offline"
    assert started.run.summary == {"accuracy": 1.0}
    assert started.run.exit_code == 0


def test_a_trial_of_a_sweep_is_the_run_that_the_agent_names_and_only_its_evaluation(tmp_path, started, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    for stage in ("ppo", "answers", "evaluate", "report"):
        with tracked(*translation(tmp_path, "offline"), stage, tmp_path, {}):
            pass
    assert [(call["job_type"], call["id"]) for call in started.calls] == [("evaluate", "abc")]


class Artifacts(FakeRun):
    """A run that remembers what its artifacts hold and what they stand on."""

    def __init__(self, offline, there=True):
        super().__init__()
        self.offline, self.there, self.used, self.left = offline, there, [], {}

    def use_artifact(self, name):
        if self.offline or not self.there:
            raise TypeError("no such artifact")
        self.used.append(name)

    def log_artifact(self, artifact):
        self.left[artifact.name] = (artifact.type, sorted(artifact.manifest.entries))


@pytest.mark.parametrize(
    ("offline", "there", "used", "said"),
    [
        (False, True, ["t-translation-sft:latest", "t-translation-reward:latest"], 0),
        (False, False, [], 2),
        (True, True, [], 1),
    ],
)
def test_an_artifact_holds_what_a_stage_leaves_and_names_what_it_stands_on(
    tmp_path, monkeypatch, capsys, offline, there, used, said
):
    monkeypatch.setattr("rlrecipes.run.tracking._process.told", False)
    for folder in (tmp_path, *(Run("t", "translation", tmp_path).stage(stage) for stage in ("sft", "reward"))):
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter" / "weights").write_text("w")
    (tmp_path / "samples.jsonl").write_text("{}")
    tracker = Tracker(tmp_path, run := Artifacts(offline, there))
    for _ in range(1 + offline):
        tracker.artifact(Run("t", "translation", tmp_path), "ppo", tmp_path)
    assert run.left == {"t-translation-ppo": ("model", ["adapter/weights"])}
    assert run.used == used
    assert capsys.readouterr().out.count("stand on") == said


def test_a_stage_that_fails_is_marked_as_failed(tmp_path, started):
    with pytest.raises(ValueError, match="broken"), tracked(*translation(tmp_path, "offline"), "sft", tmp_path, {}):
        raise ValueError("broken")
    assert started.run.exit_code == 1


@pytest.mark.parametrize(("logged_in", "mode"), [(True, "online"), (False, "offline")])
def test_auto_is_online_for_who_is_logged_in(tmp_path, started, monkeypatch, logged_in, mode):
    monkeypatch.setattr("rlrecipes.run.tracking._logged_in", lambda: logged_in)
    with tracked(*translation(tmp_path, "auto"), "sft", tmp_path, {}):
        pass
    assert [call["mode"] for call in started.calls] == [mode]


def test_who_is_not_logged_in_is_not_asked_but_tracked_offline(tmp_path, started, capsys):
    with tracked(*translation(tmp_path, "online"), "sft", tmp_path, {}):
        pass
    assert [call["mode"] for call in started.calls] == ["offline"]
    assert "not logged in to Weights & Biases" in capsys.readouterr().out


def test_what_cannot_be_reached_online_goes_on_offline(tmp_path, started, monkeypatch, capsys):
    monkeypatch.setattr("rlrecipes.run.tracking._logged_in", lambda: True)
    started.refuse = {"online"}
    with tracked(*translation(tmp_path, "online"), "sft", tmp_path, {}) as tracker:
        assert tracker.wandb_run is started.run
    assert [call["mode"] for call in started.calls] == ["online", "offline"]
    assert "cannot start online" in capsys.readouterr().out


def test_what_could_not_be_reached_is_asked_once_a_run_and_again_after_an_hour(tmp_path, started, monkeypatch):
    monkeypatch.setattr("rlrecipes.run.tracking._logged_in", lambda: True)
    started.refuse = {"online"}

    def modes(run_of):
        started.calls.clear()
        with tracked(*translation(run_of, "auto"), "sft", run_of, {}):
            pass
        return [call["mode"] for call in started.calls]

    assert modes(tmp_path / "a") == ["online", "offline"]
    assert modes(tmp_path / "b") == ["offline"], "the process remembers it for its other runs"
    monkeypatch.setattr("rlrecipes.run.tracking._process.unreached", False)
    assert modes(tmp_path / "a") == ["offline"], "the run remembers it for other processes"
    (mark,) = (tmp_path / "a").rglob("unreached")
    os.utime(mark, (0, 0))
    assert modes(tmp_path / "a") == ["online", "offline"]


OURS = {"project": "rlrecipes", "group": "t-translation", "mode": "online"}


@pytest.mark.parametrize(
    ("settings", "environment", "expected"),
    [
        (("auto",), {}, OURS),
        (("auto",), {"WANDB_MODE": "offline"}, OURS | {"mode": "offline"}),
        (("auto",), {"WANDB_MODE": "dryrun"}, OURS | {"mode": "offline"}),
        (("auto",), {"WANDB_MODE": "onlin"}, OURS | {"mode": "offline"}),
        (("auto",), {"WANDB_MODE": "disabled"}, None),
        (("auto",), {"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, None),
        (("auto",), {"WANDB_DISABLED": "false"}, OURS),
        (("auto",), {"WANDB_PROJECT": "theirs"}, OURS | {"project": "theirs"}),
        (("auto", "mine"), {"WANDB_PROJECT": "theirs"}, OURS | {"project": "mine"}),
        (("auto",), {"WANDB_RUN_GROUP": "sweep"}, OURS | {"group": "sweep"}),
        (("offline",), {"WANDB_MODE": "online"}, OURS | {"mode": "offline"}),
        (("online",), {"WANDB_MODE": "offline"}, OURS),
        (("online",), {"WANDB_DISABLED": "true"}, OURS),
        (("off",), {"WANDB_MODE": "online"}, None),
    ],
)
def test_the_environments_word_counts_where_the_profile_has_none(
    tmp_path, started, monkeypatch, settings, environment, expected
):
    monkeypatch.setattr("rlrecipes.run.tracking._logged_in", lambda: True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with tracked(Run("t", "translation", tmp_path), TrackSettings(*settings), "sft", tmp_path, {}):
        pass
    assert [{key: call[key] for key in OURS} for call in started.calls] == ([] if expected is None else [expected])


def test_a_mode_that_there_is_not_is_told_by_its_name_and_wandb_starts_offline(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "weird")
    with tracked(Run("t", "translation", tmp_path), TrackSettings(), "sft", tmp_path, {}) as tracker:
        assert tracker.wandb_run is not None
        assert tracker.wandb_run.offline
    assert "WANDB_MODE=weird is none of online, offline and disabled, so tracked offline" in capsys.readouterr().out


STAGES = """
import sys
from pathlib import Path
from rlrecipes.profile import TrackSettings
from rlrecipes.run.folder import Run
from rlrecipes.run.tracking import tracked
for stage in ("sft", "ppo"):
    with tracked(Run("t", "translation", Path(".")), TrackSettings(), stage, Path("."), {}) as tracker:
        run = tracker.wandb_run
        print(run.id, run.project, run.group, run.entity, *run.tags, run.offline)
"""


def stages(folder, **environment):
    """What two stages' real W&B runs are called, and what a server of W&B heard of them."""
    with Listener() as server:
        given = subprocess.run(
            [sys.executable, "-c", STAGES],
            **{"cwd": folder, "capture_output": True, "text": True},
            env=server.environment() | {"PYTHONPATH": str(ROOT), "WANDB_BASE_URL": server.url} | environment,
        )
    assert given.returncode == 0, given.stderr
    return [line.split() for line in given.stdout.splitlines() if not line.startswith(" ")], server.heard


KEY = {"WANDB_API_KEY": "a" * 40}


def test_with_a_key_and_wandb_mode_offline_nothing_leaves_the_machine(tmp_path):
    names = {"WANDB_RUN_ID": "one", "WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team", "WANDB_TAGS": "a,b"}
    lines, heard = stages(tmp_path, **KEY, **names, WANDB_RUN_GROUP="sweep", WANDB_MODE="offline")
    assert heard == []
    assert [words[1:] for words in lines] == [["theirs", "sweep", "team", "a", "b", "True"]] * 2
    assert len({"one", *(words[0] for words in lines)}) == 3, "each stage is a run of its own"


def test_with_a_key_nothing_leaves_the_machine_where_wandb_offline_was_said_before(tmp_path):
    settings = tmp_path / "wandb" / "settings"  # which the command `wandb offline` writes
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nmode = offline\n", encoding="utf-8")
    lines, heard = stages(tmp_path, **KEY, HOME=str(tmp_path))
    assert heard == []
    assert [words[-1] for words in lines] == ["True", "True"]


def test_with_a_key_alone_the_server_is_asked_by_the_first_stage_of_a_run_alone(tmp_path):
    lines, heard = stages(tmp_path, **KEY)
    assert [words[-1] for words in lines] == ["True", "True"]
    assert heard, "the listener hears what leaves"
    assert stages(tmp_path, **KEY)[1] == [], "the run remembers it"


def test_what_cannot_start_at_all_goes_on_without(tmp_path, started):
    started.refuse = {"online", "offline"}
    with tracked(*translation(tmp_path, "online"), "sft", tmp_path, {}) as tracker:
        tracker.log({"loss": 1.0}, 1)
    assert (tmp_path / "log.jsonl").is_file()


@pytest.mark.parametrize(("mode", "stage"), [("off", "sft"), ("offline", "report")])
def test_off_and_the_report_start_nothing(tmp_path, started, mode, stage):
    with tracked(*translation(tmp_path, mode), stage, tmp_path, {}):
        pass
    assert started.calls == []


def test_offline_runs_name_the_command_that_uploads_them(tmp_path):
    run = Run("t", "translation", tmp_path)
    assert sync_command(run) is None
    (run.folder / "wandb" / "offline-run-1").mkdir(parents=True)
    assert sync_command(run).endswith(f"wandb sync {run.folder}/wandb/offline-run-*")


def test_a_trainers_numbers_are_logged_and_its_closing_summary_is_not(tmp_path):
    class State:
        global_step, max_steps = 3, 10

    callback = progress("sft", Tracker(tmp_path))
    callback.on_log(None, State, None, logs={"loss": 1.5, "note": "text"})
    callback.on_log(None, State, None, logs={"train_runtime": 5.0, "train_loss": 1.0})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 3, "loss": 1.5}\n'


def test_a_stage_has_a_page_while_it_is_tracked_online():
    page = "https://wandb.ai/me/rlrecipes/runs/abc"
    assert Tracker(None).link is None
    assert Tracker(None, SimpleNamespace(url=page, offline=False)).link == page
    assert Tracker(None, SimpleNamespace(url=page, offline=True)).link is None
