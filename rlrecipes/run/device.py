"""What a device or its driver did, by whatever error it shows: its memory ran out, or one sentence on anything else.

    error: the GPU's memory is faulty (CUDA error: uncorrectable ECC error encountered); take another GPU (model.device), …

torch, cuBLAS, cuDNN and bitsandbytes have a `RuntimeError` each, and quote CUDA's words.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from rlrecipes.errors import UserError, errors_told, first_line
from rlrecipes.text import shortened

_MEMORY = re.compile(
    r"out of memory|CU[A-Z]+_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory",
    re.IGNORECASE,
)
_NO_HANDLE = "CUBLAS_STATUS_NOT_INITIALIZED"
ROOM = 256 << 20
"""Bytes that must be free for cuBLAS to have failed over something else: it takes its workspace when it begins."""

_TRACE = "run it with CUDA_LAUNCH_BLOCKING=1 to see which operation it was"
FAULTS = (
    (
        r"device-side assert",
        "a kernel on the GPU met a number out of its bounds, such as a token without an embedding",
        _TRACE,
    ),
    (
        r"illegal memory access|misaligned address|illegal address|illegal instruction",
        "a kernel read the GPU's memory where it may not",
        "{again}; if that comes to the same, update the driver, or set model.quantization=none and optim=adamw_torch",
    ),
    (
        r"uncorrectable ECC",
        "the GPU's memory is faulty",
        "take another GPU (model.device), or have this one reset (nvidia-smi --gpu-reset)",
    ),
    (
        r"no kernel image",
        "torch or bitsandbytes is built for other GPUs than this one",
        "install builds for its generation, or take another GPU (model.device)",
    ),
    (
        r"(driver/library|nvml).*mismatch|driver version is insufficient|unsupported display driver"
        r"|driver on your system is too old|forward compatibility was attempted",
        "the GPU's driver does not fit the libraries",
        "restart the machine after an update of the driver, or install a torch for the driver that is there",
    ),
    (
        r"busy or unavailable",
        "another process has the GPU to itself",
        "wait for its end, or take another GPU (model.device)",
    ),
    (
        r"launch failure|launch timed out|GPU is lost|fallen off the bus|hardware stack error",
        "the GPU stopped in the middle of its work",
        "look for its Xid in the system's log (dmesg), and {again}",
    ),
    (
        r"(CUDA|HIP|cuBLAS|cuDNN|cuSOLVER|cuSPARSE)( driver)? error",
        "the GPU failed",
        "{again}; if that comes to the same, " + _TRACE,
    ),
)
"""Patterns in the words of errors, of which the first that fits counts; what happened, and what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised over, says that memory ran out, of a device or of the machine.

    One that is told in a sentence already is none.
    """
    return not isinstance(error, UserError) and any(
        isinstance(each, MemoryError) or _says_so(each) for each in _chain(error)
    )


def _says_so(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError):
        return False
    if type(error).__name__ == "OutOfMemoryError":  # torch's; an error that is told without it must not import it
        return True
    return bool(_MEMORY.search(str(error)) or (_NO_HANDLE in str(error) and _is_full()))


def _is_full() -> bool:
    """Whether the GPU has no room for cuBLAS' workspace; where it does not answer, it has another fault."""
    import torch

    try:
        return bool(torch.cuda.mem_get_info()[0] < ROOM)
    except (RuntimeError, AssertionError):
        return False


def fault(error: BaseException, again: str = "give the same command again") -> str | None:
    """The sentence on what a device did other than running out of memory; None for any other error."""
    for each in _chain(error):
        if not isinstance(each, RuntimeError):
            continue
        for pattern, what, advice in FAULTS:
            if found := re.search(pattern, str(each), re.IGNORECASE):
                line = next(line for line in str(each).splitlines() if found[0] in line)
                return f"{what} ({shortened(line.strip().rstrip('.: '), 90)}); {advice.format(again=again)}"
    return None


def is_devices(error: BaseException) -> bool:
    """Whether an error is the device's, and so says nothing of the model or file in hand."""
    return is_out_of_memory(error) or fault(error) is not None


@contextlib.contextmanager
def device_errors_told(again: str = "give the same command again") -> Iterator[None]:
    """Turns what a device did into one sentence, wherever in the block it shows.

    Raises:
        UserError: for such an error.
    """
    with errors_told(lambda error: _sentence(error, again)):
        yield


def _sentence(error: Exception, again: str) -> str | None:
    if not is_out_of_memory(error):
        return fault(error, again)
    return (
        f"out of memory ({shortened(first_line(error), 120)}); end other processes on this device, "
        "or choose a smaller model or model.max_length"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised over."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
