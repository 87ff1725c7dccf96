"""What a record says of how a stage came about: the commit, the machine, the libraries, its time and memory.

{"git_commit": "0123abc…", "machine": {"cpu": …, "cores": 2, "threads": 1}, "versions": {"trl": "1.12.0", …}, "seconds": 61}
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError
from rlrecipes.run.processes import several


def git_commit() -> str | None:
    """The project's commit, with `+changes` where files differ from it; None where git does not keep the project's files.

    An installed package may lie within another project's checkout, whose commit says nothing about it.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*command: str) -> str:
    here = Path(__file__).resolve().parent
    return subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> dict[str, Any]:
    """What the rounding of products depends on beside the libraries: processor, cores and torch's threads.

    The same settings give the same bytes only where all three are the same, and on a GPU where its name is, too, and its
    kernels add in a fixed order (`deterministic`).
    """
    import torch

    gpu = {}
    if torch.cuda.is_available():
        gpu = {"gpu": torch.cuda.get_device_name(), "deterministic": torch.are_deterministic_algorithms_enabled()}
    many = {"processes": several()} if several() > 1 else {}
    return {"cpu": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), **many, **gpu}


def processor() -> str:
    """The processor's name; its architecture where the system gives no name."""
    with contextlib.suppress(OSError):  # Linux alone has the file
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


class Stopwatch:
    """Seconds and peak memory of a stage, from the stopwatch's creation on."""

    def __init__(self) -> None:
        self.started, self.cpu_started = time.monotonic(), time.process_time()
        with contextlib.suppress(OSError):  # Linux resets the peak when 5 is written; elsewhere it is the process's.
            Path("/proc/self/clear_refs").write_text("5")

    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)

    def cpu_seconds(self) -> float:
        """User and system time of this process, of all its threads."""
        return round(time.process_time() - self.cpu_started, 1)

    def peak_memory_mb(self) -> int:
        """Peak resident memory in MB (10^6 bytes)."""
        try:
            status = Path("/proc/self/status").read_text()
            kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            import resource

            kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kilobytes * 1024 // 1_000_000


TRL = "1.12.0"
"""The last release with `PPOTrainer`; 1.13.0 removed it (huggingface/trl pull request 7020)."""
LIBRARIES = ("torch", "trl", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "wandb")


def versions() -> dict[str, str]:
    """The installed version of each library; `none` where it is missing."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def require_trl() -> None:
    """Refuses any other TRL than the one whose PPO these recipes use.

    Raises:
        UserError: with the command that installs it.
    """
    version = _version("trl")
    if version != TRL:
        raise UserError(
            f"these recipes need trl {TRL}, the last with PPOTrainer, and found {version}; run: pip install trl=={TRL}"
        )
