"""What a GPU does beside computing is one sentence: memory that ran out as ever, and each other fault with what to do."""

import shutil

import pytest
import torch
from conftest import SMALLEST, main

from rlrecipes.errors import UserError
from rlrecipes.pipeline import run_recipe
from rlrecipes.policy.sft_trainer import ResumableSFTTrainer
from rlrecipes.profile import load_profile
from rlrecipes.run.device import FAULTS, device_errors_told, fault, is_devices, is_out_of_memory
from rlrecipes.run.out_of_memory import OutOfMemoryError, phase, release

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB"),
    torch.OutOfMemoryError(),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("Error cudaErrorMemoryAllocation at line 380 in file /src/csrc/ops.cu"),
    RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
    RuntimeError("Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to"),
    MemoryError(),
]
OTHERS = [
    (torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with"), "out of its bounds"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "read the GPU's memory where it may not"),
    (RuntimeError("CUDA error: misaligned address"), "read the GPU's memory where it may not"),
    (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "the GPU's memory is faulty"),
    (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "is built for other GPUs"),
    (RuntimeError("Error named symbol not found: no kernel image is available at line 90"), "is built for other GPUs"),
    (RuntimeError("Can't initialize NVML: Driver/library version mismatch"), "driver does not fit the libraries"),
    (RuntimeError("Unexpected error.\nError 803: system has unsupported display driver / cuda driver"), "does not fit"),
    (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)"), "does not fit the libraries"),
    (RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"), "another process has the GPU"),
    (RuntimeError("CUDA error: unspecified launch failure"), "stopped in the middle of its work"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "the GPU failed (cuDNN error: CUDNN_STATUS_EXEC"),
    (
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle)`"),
        "the GPU failed (",
    ),
    (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), "the GPU failed ("),
]
NEITHER = [
    ValueError("out of memory"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    KeyError("CUDA error"),
]


def over(inner, outer):
    """An error that was raised over another."""
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:50])
def test_memory_that_ran_out_is_known_by_whatever_name(error):
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemoryError, match="sft"), phase("sft"):
        raise error
    with (
        pytest.raises(UserError, match=r"^out of memory \(.*\); end other processes on this device"),
        device_errors_told(),
    ):
        raise error
    with pytest.raises(OutOfMemoryError), phase("sft"):
        raise over(error, ValueError("the batch failed"))


@pytest.mark.parametrize(("error", "said"), OTHERS, ids=lambda value: str(value)[:50])
def test_any_other_fault_is_one_sentence_with_what_to_do(error, said):
    assert not is_out_of_memory(error)
    with pytest.raises(UserError) as told, device_errors_told("call again"), phase("sft"):
        raise error
    sentence = str(told.value)
    assert said in sentence
    assert "; " in sentence
    assert "…" not in sentence[sentence.index(";") :]
    assert "{" not in sentence


def test_each_fault_fits_into_a_sentence_whatever_the_library_says():
    for _, what, advice in FAULTS:
        assert len(f"{what} ({'x' * 90}); {advice.format(again='give the same command again without FORCE=1')}") <= 300


@pytest.mark.parametrize("error", NEITHER, ids=repr)
def test_what_is_no_devices_error_stays_what_it_is(error):
    assert not is_devices(error)
    with pytest.raises(type(error)), device_errors_told(), phase("sft"):
        raise error


@pytest.mark.parametrize(("free", "full"), [(100 << 20, True), (10 << 30, False)])
def test_cublas_that_cannot_begin_is_out_of_memory_where_the_gpu_is_full(free, full, monkeypatch):
    error = RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 24 << 30))
    assert is_out_of_memory(error) == full
    assert is_devices(error)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (_ for _ in ()).throw(RuntimeError("device-side assert")))
    assert not is_out_of_memory(error)


def test_an_error_of_the_user_is_never_taken_for_the_devices():
    sentence = "out of memory in the phase 'sft'; lower sft.per_device_train_batch_size=4"
    for tell in (device_errors_told(), phase("sft")):
        with pytest.raises(UserError) as told, tell:
            raise over(RuntimeError("CUDA error: out of memory"), UserError(sentence))
        assert str(told.value) == sentence


def test_a_gpu_that_answers_nothing_more_does_not_hide_its_fault(monkeypatch):
    def gone():
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", gone)
    release()


def test_a_fault_in_training_ends_the_command_and_the_call_in_a_sentence(home, monkeypatch, capsys):
    def step(*arguments, **keywords):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might")

    monkeypatch.setattr(ResumableSFTTrainer, "training_step", step)
    shutil.rmtree(home / "runs" / "faulty", ignore_errors=True)
    assert main(["sft", "translation", "--run", "faulty", "--data", "pairs.jsonl", *SMALLEST]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line and "may not" in line]
    assert "(CUDA error: an illegal memory access was encountered); give the same command again; " in line
    profile = load_profile("tiny", SMALLEST)
    with pytest.raises(UserError, match="an illegal memory access was encountered"):
        run_recipe("translation", profile, "sft", data="pairs.jsonl", run="faulty")


def test_a_device_that_fails_while_a_model_is_tried_is_not_the_models_fault():
    from rlrecipes.model.adapters import check_runs

    class Failing(torch.nn.Linear):
        device = torch.device("cpu")

        def forward(self, *arguments, **keywords):
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")

    with pytest.raises(torch.AcceleratorError):
        check_runs(Failing(1, 1), "all-linear")
    assert fault(torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"))
