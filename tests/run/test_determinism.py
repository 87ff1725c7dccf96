"""Strict mode: on a GPU unless it is switched off, never on a CPU, and the whole road stands it."""

import os

import pytest
import torch
from conftest import SMALLEST, main

from rlrecipes.before.checks import check_device
from rlrecipes.errors import UserError
from rlrecipes.profile import load_profile
from rlrecipes.run import determinism
from rlrecipes.run.circumstances import machine
from rlrecipes.run.determinism import FIXED, WORKSPACE, orders_told, repeatable
from rlrecipes.run.folder import read_json

NO_WORKSPACE = (
    "Deterministic behavior was enabled with `torch.use_deterministic_algorithms(True)`, but this operation …"
)


def state():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture
def gpu(monkeypatch):
    """What asks for a GPU finds one, on which products work."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(determinism, "_multiply", lambda: None)
    before = state()
    yield
    assert state() == before


@pytest.fixture
def strict():
    """Strict mode as a GPU has it, with NaN in all memory that nothing was written to."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_a_gpu_is_strict_inside_with_a_workspace_and_as_before_outside(gpu):
    with repeatable(True):
        assert state() == (True, False, False)
        assert os.environ[WORKSPACE] == FIXED[0]
        assert machine().items() >= {"gpu": "Some GPU", "deterministic": True}.items()
    with pytest.raises(KeyError), repeatable(True):
        raise KeyError


def test_nothing_changes_where_it_is_switched_off_or_there_is_no_gpu(gpu, monkeypatch):
    before = state()
    with repeatable(False):
        assert state() == before
        assert not machine()["deterministic"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with repeatable(True):
        assert state() == before
    assert WORKSPACE not in os.environ
    assert "deterministic" not in machine()


def test_the_workspace_is_there_before_the_first_product(gpu, monkeypatch):
    found = []
    monkeypatch.setattr(determinism, "_multiply", lambda: found.append((os.environ[WORKSPACE], state()[0])))
    with repeatable(True):
        assert found == [(FIXED[0], True)]


@pytest.mark.parametrize("fixed", FIXED)
def test_a_workspace_of_the_users_own_stays_if_it_fixes_the_order(gpu, monkeypatch, fixed):
    monkeypatch.setenv(WORKSPACE, fixed)
    with repeatable(True):
        assert os.environ[WORKSPACE] == fixed


def test_any_other_workspace_is_refused(gpu, monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(
        UserError, match=r"=:0:0 lets cuBLAS add in any order; unset it, or set run.deterministic=false"
    ):
        repeatable(True).__enter__()
    with repeatable(False):
        pass


def test_a_process_whose_gpu_began_without_a_workspace_is_refused(gpu, monkeypatch):
    def late():
        raise RuntimeError(NO_WORKSPACE)

    monkeypatch.setattr(determinism, "_multiply", late)
    with pytest.raises(
        UserError, match=r"used the GPU before CUBLAS_WORKSPACE_CONFIG was set; set it to :4096:8 before"
    ):
        repeatable(True).__enter__()


def test_an_operation_without_a_fixed_order_is_told_and_other_errors_pass(strict):
    with (
        pytest.raises(
            UserError, match=r"\(put_ does not have a deterministic implementation.*run.deterministic=false"
        ) as error,
        orders_told(),
    ):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    assert len(str(error.value)) <= 300
    with pytest.raises(RuntimeError, match="size"), orders_told():
        torch.zeros(3) @ torch.zeros(4)


def test_every_stage_runs_in_strict_mode_to_the_same_bytes_and_reads_no_memory_that_nothing_wrote(
    finished, home, strict
):
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert main(["run", "translation", "--run", "strict", "--data", "pairs.jsonl", *SMALLEST]) == 0
    folder = home / "runs" / "strict" / "translation"
    for name in (
        *(f"{stage}/adapter/adapter_model.safetensors" for stage in ("sft", "reward", "ppo")),
        "answers/answers.jsonl",
    ):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


def test_it_is_no_setting_of_a_stage_so_that_none_has_to_be_made_again(finished):
    for stage in ("sft", "reward", "ppo", "evaluate"):
        assert not any("deterministic" in name for name in read_json(finished / stage / "done.json")["settings"])


def test_a_cpu_refuses_to_be_told_not_to(gpu, monkeypatch):
    profile = load_profile("tiny", ["run.deterministic=false", "model.quantization=none"])
    monkeypatch.setattr("rlrecipes.before.checks._check_optimizer", lambda *given: None)
    check_device(profile)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device(load_profile("tiny", ["run.deterministic=true", "model.quantization=none"]))
    with pytest.raises(
        UserError, match=r"run.deterministic=false would have no effect on a CPU, which adds in a fixed order"
    ):
        check_device(profile)
