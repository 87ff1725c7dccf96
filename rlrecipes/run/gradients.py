"""One batch in several processes: each has the gradient of its own rows, and the sum of all is that of one process alone.

    inputs = own rows of the batch
    loss = whole_loss(sum of their losses / tokens of the whole batch)    the same number on each process
    loss.backward()                                                       the gradient of the own rows
    sum_gradients(parameters)                                             the gradient of the batch, the same bits on each

With one process each of these leaves everything as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rlrecipes.errors import UserError
from rlrecipes.run.processes import add_up, gather, interleaved, own, rank, world


@contextlib.contextmanager
def own_numbers(*place: int) -> Iterator[None]:
    """Inside, each process draws random numbers of its own, which `place` decides; those that all share stay where they were.

    Masks of dropout are drawn so, of each process's rows alone. They are others for another number of processes.
    """
    if world() == 1:
        yield
        return
    seed = hashlib.sha256(" ".join(map(str, (*place, rank(), world()))).encode()).digest()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int.from_bytes(seed[:8], "little"))
        yield


def drawn_on(times: int, longest: int) -> int:
    """Takes the random numbers to where they are for the process that drew most `times`, as they would be for one alone.

    Returns the most that any process has of `longest`.
    """
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    found = gather((times, longest, torch.get_rng_state(), gpu))
    _, _, numbers, of_gpu = max(found, key=lambda each: each[0])
    torch.set_rng_state(numbers)
    if of_gpu is not None:
        torch.cuda.set_rng_state(of_gpu)
    return max(each[1] for each in found)


def own_rows(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """This process's rows of a batch, and whether it has none: it then gets one that is learned by another process.

    Of the tensors those are cut that have as many rows as the first.
    """
    count = len(next(value for value in inputs.values() if isinstance(value, torch.Tensor)))
    mine = own(range(count))
    return {
        key: value[mine or [0]] if isinstance(value, torch.Tensor) and value.dim() and len(value) == count else value
        for key, value in inputs.items()
    }, not mine


def own_parts(rows: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """This process's share of a tensor's rows, `size` at a time; none where there are fewer rows than processes."""
    mine = rows[rank() :: world()]
    return mine.split(size) if len(mine) else ()


class _Whole(torch.autograd.Function):
    """Gives what several processes have together, and takes the gradient to what one of them has."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        return whole.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def whole_loss(loss: torch.Tensor) -> torch.Tensor:
    """The sum of the processes' losses, the same bits on each, whose gradient is that of this process's own loss alone."""
    if world() == 1:
        return loss
    whole: torch.Tensor = _Whole.apply(loss, add_up(loss.detach().clone()))
    return whole


def whole_rows(act: Callable[[list[int]], torch.Tensor], count: int, parameter: nn.Parameter) -> torch.Tensor:
    """What `act` makes of rows `0 … count - 1`, a row each, where every process does its own; gradients flow to these alone.

    A process without a row gets a gradient of 0 at `parameter`, so that it takes the same steps.
    """
    mine = own(range(count))
    found = act(mine) if mine else None
    parts = gather(found.detach().cpu() if found is not None else None)
    rows: list[torch.Tensor] = interleaved([[*part] if part is not None else [] for part in parts])
    whole = torch.stack(rows).to(parameter.device)
    if found is None:
        return whole + 0 * parameter.sum()
    return whole.index_copy(0, torch.tensor(mine, device=whole.device), found)


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Makes each parameter's gradient the sum over all processes; one that has none counts as zero."""
    if world() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    kinds = {(p.grad.dtype, p.grad.device) for p in parameters if p.grad is not None}
    for dtype, device in sorted(kinds, key=str):
        grads = [p.grad for p in parameters if p.grad is not None and (p.grad.dtype, p.grad.device) == (dtype, device)]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        add_up(flat)
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def check_together(what: str, *states: Any) -> None:
    """Refuses to go on where the processes no longer have the same `states`, which may hold tensors.

    Raises:
        UserError: they went apart: on each of them the same numbers came out otherwise.
    """
    if world() > 1 and len(set(gather(_digest(states)))) > 1:
        raise UserError(
            f"the processes went apart: {what} are no longer the same on each; take processors, GPUs and libraries of one "
            "kind for all of them, and give the same command again"
        )


def _digest(states: Any) -> str:
    """One for equal states; a tensor's pickle names its place in memory."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict | list | tuple):
            found.update(f"{len(value)} ".encode())
            for inner in value.items() if isinstance(value, dict) else value:
                add(inner)
        else:
            found.update(repr(value).encode())

    add(states)
    return found.hexdigest()
