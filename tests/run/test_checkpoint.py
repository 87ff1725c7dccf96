"""A checkpoint gives back what was saved; a damaged one is found, named and passed over; nothing is pickled."""

import io
import json
import pickle
import random
import re
import threading
import zipfile
from concurrent.futures import wait

import numpy as np
import pytest
import torch
from kills import Moment, counted, forked

from rlrecipes.errors import UserError
from rlrecipes.run import checkpoint, interrupts
from rlrecipes.run.checkpoint import (
    Checkpoints,
    PartsCheckpoints,
    load_newest,
    random_states,
    save,
    set_random_states,
    set_trainable,
    trainable,
)
from rlrecipes.run.interrupts import Interrupted
from rlrecipes.run.tracking import Tracker

FILES = ("tensors.safetensors", "state.json", "manifest.json")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "checkpoints"


def saved(folder, *steps):
    for step in steps:
        save(folder, step, {"weights": {"a": torch.full((3,), float(step))}, "loss": step / 10})


def steps(folder):
    return sorted(path.name for path in folder.iterdir())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_a_state_comes_back_as_it_was(folder):
    state = {
        "tensors": [torch.randn(2, 3), torch.tensor(3), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16)],
        "by_number": {0: {"step": torch.tensor(1.0)}, 7: None},
        "betas": (0.9, 0.999),
        "tenth": 0.1,
        "text": "Grüße\u2028",
        "flags": [True, None, 3, -0.0],
        "empty": {},
    }
    save(folder, 4, state)
    found = load_newest(folder)
    assert found.step == 4
    assert same(found.state, state)


def test_views_of_one_tensor_come_back_as_tensors_of_their_own(folder):
    rows = torch.arange(6.0).reshape(2, 3)
    save(folder, 1, {"rows": rows, "again": rows, "row": rows[0], "column": rows[:, 1]})
    state = load_newest(folder).state
    assert state["rows"].tolist() == state["again"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert state["row"].tolist() == [0, 1, 2]
    assert state["column"].tolist() == [1, 4]


def test_what_json_cannot_hold_is_refused_and_leaves_the_one_before(folder):
    saved(folder, 1)
    with pytest.raises(TypeError, match="/odd is a set"):
        save(folder, 2, {"odd": {1}})
    assert load_newest(folder).step == 1


def test_the_last_two_are_kept(folder):
    saved(folder, 8, 9, 10, 11)
    assert steps(folder) == ["step-000010", "step-000011"]


def test_no_checkpoint_is_no_news(folder, capsys):
    assert load_newest(folder) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(folder, capsys, name, damage):
    saved(folder, 1, 2)
    damage(folder / "step-000002" / name)
    found = load_newest(folder)
    assert found.step == 1
    assert found.state["weights"]["a"].tolist() == [1, 1, 1]
    assert f"step-000002/{name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "state.json has been changed"),
        (truncate, r"state.json has \d+ bytes instead of \d+"),
        (lambda path: path.unlink(), "state.json is missing"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(folder, capsys, damage, said):
    saved(folder, 1)
    damage(folder / "step-000001" / "state.json")
    load_newest(folder)
    assert re.search(said, capsys.readouterr().out)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_found(folder, name):
    saved(folder, 1)
    path = folder / "step-000001" / name
    content = path.read_bytes()
    for place in range(0, len(content), 11):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert load_newest(folder) is None, place


def test_when_all_are_damaged_the_stage_starts_from_the_beginning_and_says_so(folder, capsys):
    saved(folder, 1, 2)
    for name in ("step-000001", "step-000002"):
        flip(folder / name / "tensors.safetensors")
    assert load_newest(folder) is None
    out = capsys.readouterr().out
    assert "step-000001/tensors.safetensors" in out
    assert "step-000002/tensors.safetensors" in out
    assert "starting from the beginning" in out


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_reached_again(folder):
    saved(folder, 1, 2)
    flip(folder / "step-000002" / "state.json")
    saved(folder, 2)
    assert load_newest(folder).step == 2


def test_a_pickle_in_a_checkpoints_place_is_never_opened(folder):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    saved(folder, 1)
    torch_file = io.BytesIO()
    with zipfile.ZipFile(torch_file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    for name in FILES:
        saved(folder, 1)
        for content in (pickle.dumps(Bomb()), torch_file.getvalue()):
            (folder / "step-000001" / name).write_bytes(content)
            assert load_newest(folder) is None


def test_nothing_in_a_checkpoint_is_a_pickle(folder):
    save(folder, 1, {"random": random_states(), "optimizer": torch.optim.AdamW([torch.zeros(2)]).state_dict()})
    (path,) = folder.iterdir()
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    for name in ("state.json", "manifest.json"):
        json.loads((path / name).read_text())
    header = (path / "tensors.safetensors").read_bytes()
    json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])  # safetensors: a length, JSON, numbers


def test_a_kill_at_any_moment_of_saving_leaves_whole_checkpoints_alone(tmp_path, capsys):
    def work(folder):
        saved(folder, 4)
        return 0

    def prepared(name):
        folder = tmp_path / "runs" / name
        saved(folder, 1, 2, 3)
        return folder

    counting = prepared("counting")
    changes = counted(lambda: work(counting))
    assert changes > 5
    found = set()
    for change in range(1, changes + 1):
        folder = prepared(str(change))
        assert forked(lambda folder=folder: work(folder), Moment(change=change)) == -9
        found.add(load_newest(folder).step)
        saved(folder, 4, 5)
        assert steps(folder) == ["step-000004", "step-000005"]
    assert found == {3, 4}
    assert "not used" not in capsys.readouterr().out


# What is saved.


def draws():
    return [random.random(), np.random.rand(), torch.rand(()).item(), np.random.randn()]


def test_random_states_bring_every_generator_back(folder):
    np.random.randn()  # leaves half of a pair behind, which is state too
    save(folder, 1, random_states())
    before = draws()
    draws()
    set_random_states(load_newest(folder).state)
    assert draws() == before


def test_only_what_training_moves_is_saved_and_it_comes_back(folder):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].requires_grad_(False)
    save(folder, 1, trainable(model))
    before = model[1].weight.detach().clone()
    torch.nn.init.zeros_(model[1].weight)
    weights = load_newest(folder).state
    assert weights.keys() == {"1.weight", "1.bias"}
    set_trainable(model, weights)
    assert torch.equal(model[1].weight, before)


# A stage's checkpoints.


def test_a_disk_without_room_for_what_training_writes_is_told_before_it(tmp_path, monkeypatch):
    class Usage:
        free = 2_000_000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    model = torch.nn.Linear(
        100_000, 1, bias=False
    )  # 0.4 MB; four times that in each of three checkpoints, and once more
    with pytest.raises(
        UserError, match=r"up to 0\.0052 GB of checkpoints and weights, and the disk has 0\.002 GB left; free"
    ):
        Checkpoints(tmp_path, 30).check_room(model)
    saved(tmp_path / "checkpoints", 1)
    model.weight.requires_grad_(False)
    Checkpoints(tmp_path, 30).check_room(model)


def test_a_checkpoint_is_due_after_its_seconds_or_after_every_step_or_when_a_signal_came(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    assert Checkpoints(tmp_path, 0).due()
    checkpoints = Checkpoints(tmp_path, 30)
    clock[0] += 29
    assert not checkpoints.due()
    clock[0] += 1
    assert checkpoints.due()
    checkpoints.save(1, {})
    assert not checkpoints.due()
    monkeypatch.setattr(interrupts._signals, "requested", True)
    assert checkpoints.due()


def test_a_signal_ends_the_stage_once_its_state_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupts._signals, "requested", True)
    with pytest.raises(Interrupted, match="saved after step 3"):
        Checkpoints(tmp_path, 30).save(3, {"a": 1})
    assert Checkpoints(tmp_path, 30).newest().state == {"a": 1}


class Disk:
    """Takes the place of what writes checkpoints: it waits until it may, and fails if it is told to."""

    def __init__(self, monkeypatch, error=None):
        self.free, self.error, self.write = threading.Event(), error, checkpoint._write
        monkeypatch.setattr("rlrecipes.run.checkpoint._write", self)

    def __call__(self, *arguments):
        assert self.free.wait(60)
        if self.error:
            raise self.error
        self.write(*arguments)


def test_training_goes_on_while_a_checkpoint_of_what_it_was_is_written(tmp_path, monkeypatch):
    disk, weights, counts = Disk(monkeypatch), torch.ones(2), [1]
    checkpoints = Checkpoints(tmp_path, 0)
    with checkpoints.finishing_first():
        checkpoints.save(1, {"weights": weights, "counts": counts})
        assert checkpoints.due()
        weights += 1
        counts.append(2)
        assert not list(tmp_path.rglob("step-*"))
        disk.free.set()
    state = load_newest(tmp_path / "checkpoints").state["stage"]
    assert state["weights"].tolist() == [1, 1]
    assert state["counts"] == [1]


def then_saves(checkpoints):
    checkpoints.save(2, {})
    pytest.fail("it goes on as if nothing were")


def then_asks(checkpoints):
    wait([checkpoints._writing])
    checkpoints.due()
    pytest.fail("it goes on as if nothing were")


@pytest.mark.parametrize("go_on", [then_saves, then_asks, lambda checkpoints: None])
def test_what_keeps_a_checkpoint_from_the_disk_ends_the_training(tmp_path, monkeypatch, go_on):
    def train():
        checkpoints = Checkpoints(tmp_path, 0)
        with checkpoints.finishing_first():
            checkpoints.save(1, {})
            disk.free.set()
            go_on(checkpoints)

    disk = Disk(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        train()


def test_a_signal_ends_the_stage_once_its_state_is_on_the_disk(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    threading.Timer(0.2, disk.free.set).start()
    monkeypatch.setattr(interrupts._signals, "requested", True)
    with pytest.raises(Interrupted, match="saved after step 3"):
        Checkpoints(tmp_path, 30).save(3, {"a": 1})
    assert load_newest(tmp_path / "checkpoints").step == 3


def test_discarded_checkpoints_do_not_come_back_from_what_was_being_written(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    checkpoints = Checkpoints(tmp_path, 0)
    checkpoints.save(1, {})
    threading.Timer(0.2, disk.free.set).start()
    checkpoints.discard()
    checkpoints._writer.shutdown()
    assert not (tmp_path / "checkpoints").exists()


def test_what_a_finished_part_left_is_on_the_disk_before_the_next_begins(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    threading.Timer(0.2, disk.free.set).start()
    PartsCheckpoints(tmp_path, 0, None, 2).finish({"loss": 1.0}, 5)
    assert PartsCheckpoints(tmp_path, 0, None, 2).finished == [{"loss": 1.0}]


def save_now(folder, tracker, step):
    checkpoints = Checkpoints(folder, 0, tracker)
    with checkpoints.finishing_first():
        checkpoints.save(step, {})


def test_the_logs_are_cut_back_to_the_checkpoint(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log({"loss": 3.0}, 1)
    save_now(tmp_path, tracker, 1)
    tracker.log({"loss": 2.0}, 2)
    tracker.table("samples", [{"answer": "a"}], 2)
    assert Checkpoints(tmp_path, 0, tracker).newest().step == 1
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "loss": 3.0}\n'
    assert not (tmp_path / "samples.jsonl").exists()


def test_a_damaged_log_takes_the_stage_back_to_the_checkpoint_before_the_damage(tmp_path, capsys):
    tracker = Tracker(tmp_path)
    for step in (1, 2):
        tracker.log({"loss": float(step)}, step)
        save_now(tmp_path, tracker, step)
    log = tmp_path / "log.jsonl"
    tracker.log({"loss": 3.0}, 3)
    assert load_newest(tmp_path / "checkpoints").step == 2, "what came behind the checkpoint is cut off"
    log.write_text(log.read_text().replace("2.0", "9.0"))
    assert Checkpoints(tmp_path, 0, tracker).newest().step == 1
    assert "step-000002/log.jsonl has been changed" in capsys.readouterr().out
    assert log.read_text() == '{"step": 1, "loss": 1.0}\n'
    log.write_text(log.read_text().replace("1.0", "8.0"))
    assert Checkpoints(tmp_path, 0, tracker).newest() is None


def test_without_a_checkpoint_the_logs_begin_again(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log({"loss": 3.0}, 1)
    assert Checkpoints(tmp_path, 0, tracker).newest() is None
    assert not (tmp_path / "log.jsonl").exists()


def test_seconds_add_up_over_interruptions(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    for step in (1, 2):
        checkpoints = Checkpoints(tmp_path, 0)
        checkpoints.newest()
        clock[0] += 10
        with checkpoints.finishing_first():
            checkpoints.save(step, {})
    last = Checkpoints(tmp_path, 0)
    last.newest()
    assert last.resumed == {"step": 2, "seconds": 20.0}


def test_the_seconds_of_a_stage_in_parts_are_those_that_it_took(tmp_path, monkeypatch):
    clock = iter((5000.0, 5002.0))
    monkeypatch.setattr("rlrecipes.run.checkpoint.time.monotonic", lambda: next(clock, 5002.0))
    PartsCheckpoints(tmp_path, 0, None, 2).finish({}, steps=3)
    assert PartsCheckpoints(tmp_path, 0, None, 2).resumed == {"step": 4, "seconds": 2.0}
