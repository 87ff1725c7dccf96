"""One measurement a process: `measure("plain", work)` runs it in a fresh one on one core and returns what it found.

    {"cpu_s": 12.9, "wall_s": 13.1, "peak_mb": 301.2, "absolute_peak_mb": 842.0, "updates": [{"objective/kl": 0.0, …}, …]}

Memory is the peak of resident memory (VmHWM, reset after the libraries are loaded and used once) less what the process
held at that moment, so that the half gigabyte of the libraries themselves does not pull every ratio towards 1.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.work import Work, to_json
from rlrecipes.errors import UserError
from rlrecipes.run.circumstances import processor

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
QUIET = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def measure(task: str, work: Work, device: str = "cpu", apart: bool = True, **options: Any) -> dict[str, Any]:
    """Runs `task` (a function of `benchmarks.child`) on `work` in a process of its own, or in this one.

    On the CPU, a process of its own is pinned to one core and uses one thread, and sees no GPU.

    Raises:
        UserError: the process failed; what it said last is in the sentence.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        order = {"task": task, "work": to_json(work), "options": options, "folder": folder, "core": None}
        if apart:
            return _in_a_process(order | {"core": core() if device == "cpu" else None}, device)
        from benchmarks.child import perform

        return perform(order)


def _in_a_process(order: dict[str, Any], device: str) -> dict[str, Any]:
    result, said = Path(order["folder"], "result.json"), Path(order["folder"], "said.txt")
    hidden = ONE_THREAD | {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    with said.open("w", encoding="utf-8") as output:
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.child"],
            input=json.dumps(order | {"result": str(result)}),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | QUIET | hidden,
        )
    if not result.exists():
        last = " / ".join(said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])
        raise UserError(
            f"measuring '{order['task']}' on '{order['work']['name']}' ended with status {process.returncode}: {last}"
        )
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "error" in found:
        raise UserError(found["error"])
    return found


def core() -> int:
    """The core that all processes of a comparison run on: the last one that this process may use."""
    return max(os.sched_getaffinity(0))


def settle() -> None:
    """Takes the objects of the libraries out of later garbage collections.

    TRL's loop collects twice an update; walking through everything that is imported would cost it half a second each time,
    which says nothing about PPO.
    """
    gc.collect()
    gc.freeze()


def reset_peak() -> float:
    """Sets the peak of resident memory back to what is resident now, and returns it in MB (10^6 bytes)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> float:
    """Peak of resident memory in MB since `reset_peak`."""
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def require_linux() -> None:
    """Refuses a system whose memory and cores cannot be read and set as this benchmark does it.

    Raises:
        UserError: always elsewhere.
    """
    if not (hasattr(os, "sched_setaffinity") and os.access("/proc/self/clear_refs", os.W_OK)):
        raise UserError("the benchmark pins processes to a core and reads /proc/self/status; run it on Linux")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import importlib.metadata
    import platform

    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "trl", "transformers", "peft")},
    }
