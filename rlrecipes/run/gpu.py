"""Which GPU this process works on where several are visible: one, chosen before CUDA begins.

2 GPUs are visible; this uses the first, NVIDIA A10; model.device chooses another

Transformers' trainer would spread each batch over all that it sees, by `nn.DataParallel`. CUDA reads CUDA_VISIBLE_DEVICES
once, when it begins, and torch, Transformers and bitsandbytes all ask CUDA: with one entry in it, all of them see one GPU.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from rlrecipes.errors import UserError
from rlrecipes.run.processes import local_rank

VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass
class _Process:
    entry: str = ""
    """The one entry that we left in the variable; empty: we did not touch it."""
    entries: tuple[str, ...] = ()
    """What could be chosen before."""


_process = _Process()


def use_one_gpu(device: int | None = None, another: str = "model.device") -> str | None:
    """Leaves this process one of the GPUs that are visible: the one with the index `device`, or the first.

    Of several processes on this machine each takes the GPU of its own number.

    Call it before anything asks CUDA for a GPU, which the import of bitsandbytes does. Returns the line to say where it chose
    among several, once a process; it names the setting or variable `another`.

    Raises:
        UserError: there is no such GPU, or CUDA has begun in this process, which then keeps what it saw.
    """
    entries = _entries()
    if (number := local_rank()) is not None:
        _take_own(number, device, entries)
        return None
    if device is not None and device >= len(entries):
        there = f"{len(entries)} visible, counted from 0" if entries else "none visible"
        raise UserError(f"model.device={device} would have no effect: of GPUs there is {there}; leave it out")
    if len(entries) < 2 or (entry := entries[device or 0]) == _process.entry:
        return None
    name = _narrowed(entry, entries)
    place = f"number {device}, counted from 0" if device else "the first"
    return f"{len(entries)} GPUs are visible; this uses {place}, {name}; {another} chooses another"


def _take_own(number: int, device: int | None, entries: tuple[str, ...]) -> None:
    """Leaves one of several processes the GPU of its number; where there are none, all of them work on CPUs."""
    if device is not None:
        raise UserError(
            f"model.device={device} has no effect on several processes, each of which takes the GPU of its own number; leave "
            "it out"
        )
    if entries and number >= len(entries):
        raise UserError(
            f"more than {number} processes are on this machine, and GPUs visible to them are {len(entries)}; start as many "
            "processes as GPUs"
        )
    if len(entries) > 1 and entries[number] != _process.entry:
        _narrowed(entries[number], entries)


def _entries() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES may be narrowed to, an entry for each visible GPU; as they were before we narrowed it."""
    import torch

    given = os.environ.get(VARIABLE)
    if _process.entry and given == _process.entry:
        return _process.entries
    _process.entry = ""
    listed = [entry.strip() for entry in (given or "").split(",") if entry.strip()]
    if listed and listed[0].startswith("MIG-"):  # of parts of a GPU, CUDA shows a process the first alone
        return tuple(listed)
    count = torch.cuda.device_count()  # which does not begin CUDA where the driver's library NVML answers
    return tuple(listed[:count]) if listed else tuple(map(str, range(count)))


def _narrowed(entry: str, entries: tuple[str, ...]) -> str:
    """Leaves one entry in the variable, begins CUDA with it, and returns the name of the GPU.

    Raises:
        UserError: CUDA began before.
    """
    import torch

    before = os.environ.get(VARIABLE)
    again = f"start it in a process of its own, with {VARIABLE}={entry}"
    if _process.entry:
        raise UserError(f"this process works on GPU {_process.entry} already, and CUDA takes no other; {again}")
    os.environ[VARIABLE] = entry
    name = torch.cuda.get_device_name(0)
    if torch.cuda.device_count() != 1:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
        raise UserError(f"CUDA began in this process with {len(entries)} GPUs visible, and this trains on one; {again}")
    _process.entry, _process.entries = entry, entries
    return name
