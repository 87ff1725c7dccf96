"""Several processes that train as one: each does the same, and what is heavy in it is divided among them.

    with together():
        losses = divided(rows, lambda own: [loss(row) for row in own])    # all losses, on each process

Each process takes the same steps with the same rows, weights and random numbers, as one process alone would. Only the rows of
a batch are divided, and what came of them is brought together. So a global batch, the order of the data, whitening, the
control of KL, means and decisions are the same by construction, however many there are. The first process alone writes files
and talks. Outside of `together()`, and where there is one process, everything here is plain and costs nothing.

The group is ours and not torch's default one, so Accelerate, Transformers and TRL see one process, and stay as they are.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from rlrecipes.errors import UserError
from rlrecipes.run.alive import (
    ANSWER,
    BROKE,
    ERROR,
    INTERRUPTED,
    JOINING,
    SILENCE,
    Alive,
    OthersEndedError,
    here,
    meeting,
    wait_for_all,
)
from rlrecipes.run.environment import ApartError, Standing, check_environment, hide, rank_said, standing
from rlrecipes.run.interrupts import Interrupted

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
FOREVER = timedelta(days=100)
"""How long a process waits for another one that is alive: the first may write, or ask a judge, for long."""
LOOK = timedelta(seconds=1)
"""How often a process that waits looks whether the others are alive, and whether a signal came."""


@dataclass
class _Group:
    place: Standing
    alive: Alive
    store: Any
    gloo: Any
    nccl: Any = None
    """For tensors on GPUs; made when the first is summed."""
    dividing: bool = False
    """Whether work is divided now, as it is in `together()`."""

    def wait(self, work: Any) -> None:
        """Waits for a collective operation.

        Raises:
            OthersEndedError: it cannot end, since a process is gone.
        """
        looks, vain = self.alive.looks, 0
        while True:
            try:
                work.wait(LOOK)
                return
            except RuntimeError as error:
                looks, vain = self.alive.looks, vain + 1 if looks == self.alive.looks else 0
                if vain > (SILENCE + ANSWER) / LOOK.total_seconds():
                    raise self.alive.unanswered() from None
                if self.alive.ended is not None:
                    raise self.alive.sentence() from None
                if work.is_completed():
                    raise self.alive.why() from error


@dataclass
class _Process:
    group: _Group | None = None


_process = _Process()


def is_first() -> bool:
    """Whether this process writes and talks; true where there is one."""
    return (_process.group.place.rank if _process.group else rank_said()) == 0


def several() -> int:
    """How many processes a launcher started; 1 where it started none."""
    return _process.group.place.world if _process.group else 1


def local_rank() -> int | None:
    """This process's place among those on this machine; None where there is one process."""
    return _process.group.place.local_rank if _process.group else None


def world() -> int:
    """How many processes divide the work here; 1 outside of `together()`."""
    return _process.group.place.world if _process.group and _process.group.dividing else 1


def rank() -> int:
    """This process's place among those that divide the work; 0 outside of `together()`."""
    return _process.group.place.rank if _process.group and _process.group.dividing else 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Brings the processes together that a launcher started; inside, an error in one of them ends all.

    Raises:
        UserError: they cannot meet, or the environment asks for what is refused.
        OthersEndedError: another process ended.
    """
    if _process.group is None and (place := standing()) is not None:
        check_environment()
        _join(place)
    group = _process.group
    if group is None:
        yield
        return
    group.alive.resting = False
    try:
        yield
        group.alive.resting = True  # from here on the others may end
        with together():
            gather(None)
    except BaseException as error:
        parted = isinstance(error, Interrupted) and group.alive.resting
        if parted or isinstance(error, OthersEndedError):
            raise
        interrupted = isinstance(error, KeyboardInterrupt)
        if interrupted:
            group.alive.look()  # a launcher that lost one interrupts the others
        note = group.alive.ended
        if note is None:
            _tell(group, error)
        elif not (interrupted and note["kind"] == INTERRUPTED):  # this one was interrupted by the other's end
            raise group.alive.sentence() from error
        raise


def _tell(group: _Group, error: BaseException) -> None:
    if isinstance(error, UserError):
        group.alive.tell(ERROR, str(error))
    elif isinstance(error, KeyboardInterrupt):
        group.alive.tell(INTERRUPTED, "")
    else:
        group.alive.tell(BROKE, f"{type(error).__name__}: {' '.join(str(error).split())[:100]}")


def _join(place: Standing) -> None:
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # of a process that is gone we tell in a sentence, not in frames
    from torch.distributed.distributed_c10d import PrefixStore, ProcessGroupGloo

    hide()
    store = meeting(place, place.rank == 0 and not place.served)
    wait_for_all(store, place)
    try:
        gloo = ProcessGroupGloo(PrefixStore("gloo", store), place.rank, place.world, JOINING)
    except RuntimeError as error:
        raise ApartError(
            f"process {place.rank} of {place.world} met not all of the others within {JOINING.seconds} s "
            f"({str(error).splitlines()[0][:80]}); start all of them, with the same command"
        ) from None
    gloo._set_default_timeout(FOREVER)
    group = _process.group = _Group(place, Alive(place), store, gloo)
    group.alive.start()
    with together():
        there = gather((place.rank, here(), os.getpid()))
    group.alive.others = [one for one in there if one[0] != place.rank]


def broken() -> bool:
    """Whether a process of this run ended before its time: what still waits for it keeps this one from ending by itself."""
    return _process.group is not None and _process.group.alive.ended is not None


def together() -> contextlib.AbstractContextManager[None]:
    """Inside, work is divided: every process has to come here, and take the same steps."""
    return _dividing(True)


def alone() -> contextlib.AbstractContextManager[None]:
    """Inside, a process works by itself, also in the midst of `together()`."""
    return _dividing(False)


@contextlib.contextmanager
def _dividing(now: bool) -> Iterator[None]:
    group = _process.group
    if group is None:
        yield
        return
    before, group.dividing = group.dividing, now
    try:
        yield
    finally:
        group.dividing = before


def part() -> None:
    """Waits for all, after which each ends by itself: one that is gone takes none with it any more."""
    gather(None)
    if _process.group is not None:
        _process.group.alive.resting = True


def dismiss() -> None:
    """Tells the other processes that the first calls them for nothing more of a job (`stages.attempt`)."""
    with together():
        from_first(lambda: None)


def own(rows: Sequence[T]) -> list[T]:
    """This process's share of rows: every n-th, so that rows ordered by length are shared out evenly."""
    return list(rows[rank() :: world()])


def divided(rows: Sequence[T], act: Callable[[Sequence[T]], Sequence[Any]]) -> list[Any]:
    """What `act` makes of rows, one for each, where every process does its share of them; all of it on each process."""
    if world() == 1:
        return list(act(rows))
    parts = gather(list(act(mine)) if (mine := own(rows)) else [])
    return interleaved(parts)


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """What the processes made of their shares, in the order of the rows."""
    whole: list[Any] = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        whole[number :: len(parts)] = part
    return whole


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, on each: for what takes its time, reads files, or is somebody's own code."""
    if world() == 1:
        return make()
    group = _needed()
    content = pickle.dumps(make()) if rank() == 0 else b""
    size = _bytes_of(len(content).to_bytes(8, "little"))
    group.wait(_broadcast(group, size))
    sent = _bytes_of(content) if rank() == 0 else _room(int.from_bytes(bytes(size.tolist()), "little"))
    group.wait(_broadcast(group, sent))
    found: T = pickle.loads(sent.numpy().tobytes())
    return found


def each_after_first(make: Callable[[], T]) -> T:
    """What each process makes for itself, the first before the others: that one fills what all read, such as a cache."""
    if _process.group is None:
        return make()
    with together():
        for turn in (True, False):
            if turn == (rank() == 0):
                with alone():
                    found = make()
            gather(None)
    return found


def gather(value: T) -> list[T]:
    """Each process's value, in the order of the processes; tensors in it have to be on the CPU."""
    if world() == 1:
        return [value]
    group, content = _needed(), pickle.dumps(value)
    sizes = [_room(8) for _ in range(world())]
    group.wait(group.gloo.allgather([sizes], [_bytes_of(len(content).to_bytes(8, "little"))]))
    lengths = [int.from_bytes(bytes(size.tolist()), "little") for size in sizes]
    parts = [_room(max(lengths)) for _ in lengths]
    group.wait(group.gloo.allgather([parts], [_bytes_of(content.ljust(max(lengths), b"\0"))]))
    return [pickle.loads(part[:length].numpy().tobytes()) for part, length in zip(parts, lengths, strict=True)]


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Makes a tensor the sum over all processes, the same bits on each, and returns it."""
    if world() > 1:
        group = _needed()
        if tensor.is_cuda:
            _nccl(group).allreduce([tensor]).wait()  # on the GPU's queue; with a limit it would break off by itself
        else:
            group.wait(group.gloo.allreduce([tensor]))
    return tensor


def _nccl(group: _Group) -> Any:
    if group.nccl is None:
        from torch.distributed.distributed_c10d import PrefixStore, ProcessGroupNCCL

        store, options = PrefixStore("nccl", group.store), ProcessGroupNCCL.Options()
        group.nccl = ProcessGroupNCCL(store, group.place.rank, group.place.world, options)
    return group.nccl


def _needed() -> _Group:
    assert _process.group is not None, "`world()` is 1 without a group"
    return _process.group


def _broadcast(group: _Group, tensor: torch.Tensor) -> Any:
    return group.gloo.broadcast(tensor, 0)


def _bytes_of(content: bytes) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)


def _room(size: int) -> torch.Tensor:
    import torch

    return torch.empty(max(size, 1), dtype=torch.uint8)
