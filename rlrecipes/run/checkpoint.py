"""Checkpoints of an interrupted stage, which goes on from the newest that is whole.

    checkpoints/step-000040/tensors.safetensors    every tensor of the state
                            state.json             everything else, with the tensors' names in their places
                            manifest.json          {"logs": …, "files": {"state.json": {"bytes": 8211, …}, …}, …}

We write a checkpoint aside, force it to the disk and then rename it, so a kill at any moment leaves the one before. We copy
the state while the training stands, and a thread writes the copy while it goes on. We pickle nothing: a state is a nest of
dictionaries, lists, tuples, texts, numbers and tensors.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rlrecipes.errors import UserError
from rlrecipes.run.checksums import MANIFEST, damage, describe, difference, sealed
from rlrecipes.run.console import say
from rlrecipes.run.folder import CHECKPOINTS, sync
from rlrecipes.run.gradients import check_together
from rlrecipes.run.interrupts import Interrupted, finishing_first, stop_requested
from rlrecipes.run.processes import from_first, gather, is_first, part
from rlrecipes.run.tracking import Tracker

TENSORS, STATE = "tensors.safetensors", "state.json"
COPIES = 2
"""Checkpoints on the disk: if the disk damages the newest, there is one more."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a stage after `step` steps."""

    step: int
    state: Any


class Checkpoints:
    """One stage's checkpoints: when the next is due, and how long the stage's logs were at each."""

    def __init__(self, draft: Path, seconds: float, tracker: Tracker | None = None, parts: int = 1) -> None:
        self.folder = draft / CHECKPOINTS
        self.seconds, self.tracker, self.parts = seconds, tracker, parts
        self.began = self.last_save = time.monotonic()
        self.resumed: dict[str, float] | None = None
        """For `done.json`: the step that this process went on from, and the seconds of training up to it."""
        self.stopping = False
        """Whether a signal asked for the end, as all processes know it."""
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, after cutting the logs back to it; None, with empty logs, if there is none."""
        newest = from_first(lambda: load_newest(self.folder))
        if self.tracker is not None:
            self.tracker.go_back(newest.state["logs"] if newest else {})
        if newest is None:
            return None
        self.resumed = {"step": newest.step, "seconds": newest.state["seconds"]}
        say(f"  going on after step {newest.step}")
        return Checkpoint(newest.step, newest.state["stage"])

    def check_room(self, model: nn.Module) -> None:
        """Refuses to begin where the disk has no room for what training `model` writes.

        Raises:
            UserError: with what it writes and what is free, in bytes.
        """
        if not is_first():
            return
        weights = sum(tensor.numel() * tensor.element_size() for tensor in trainable(model).values())
        # Each checkpoint holds the weights, the best ones and Adam's two moments, and the weights of finished parts; one is
        # written before the oldest goes.
        needed = weights * ((3 + self.parts) * (COPIES + 1) + self.parts)  # and then the adapters
        there = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(self.folder.parent).free
        if free < needed - there:
            raise UserError(
                f"{self.folder.parent}: training writes up to {needed / 1e9:.2g} GB of checkpoints and weights, and the disk "
                f"has {free / 1e9:.2g} GB left; free space and give the same command again"
            )

    @contextlib.contextmanager
    def finishing_first(self) -> Iterator[None]:
        """`interrupts.finishing_first`, at whose end what was saved is on the disk.

        Raises:
            OSError: it could not be written.
        """
        try:
            with finishing_first():
                yield
        except BaseException:
            with contextlib.suppress(OSError):
                self._written()
            raise
        self._written()

    def _written(self) -> None:
        """Waits for what is being written, and raises what kept it from the disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def due(self) -> bool:
        """Whether to save now: `seconds` have passed, or a signal asked for the end, of several processes any of them.

        Raises:
            OSError: what was saved last could not be written.
        """
        if self._writing is not None and self._writing.done():
            self._written()
        found = gather((stop_requested(), time.monotonic() - self.last_save >= self.seconds))
        self.stopping = any(stop for stop, _ in found)
        return self.stopping or found[0][1]

    def save(self, step: int, state: Any) -> None:
        """Copies the stage's state after `step` steps, and has it written; of several processes, all have it, and one writes.

        Raises:
            Interrupted: after saving, where a signal asked for the end.
            OSError: what was saved before could not be written.
            UserError: the processes no longer have the same weights and random numbers.
        """
        if isinstance(state, Mapping) and state.keys() >= {"weights", "random"}:
            check_together("weights and random numbers", state["weights"], state["random"])
        before = self.resumed["seconds"] if self.resumed else 0.0
        spent = round(before + time.monotonic() - self.began, 1)
        logs = self.tracker.positions() if self.tracker is not None else {}
        self._written()
        if is_first():
            packed = _packed({"stage": state, "logs": logs, "seconds": spent})
            self._writing = self._writer.submit(_write, self.folder, step, packed, logs)
        self.last_save = time.monotonic()
        if self.stopping or any(gather(stop_requested())):
            self._written()
            part()  # the first has written
            raise Interrupted(f"saved after step {step}")

    def discard(self) -> None:
        """Removes the checkpoints, so that the stage starts from the beginning."""
        with contextlib.suppress(OSError):
            self._written()
        shutil.rmtree(self.folder, ignore_errors=True)


class PartsCheckpoints(Checkpoints):
    """Checkpoints of a stage that trains several parts in turn: each holds what the finished ones left."""

    def __init__(self, draft: Path, seconds: float, tracker: Tracker | None, parts: int) -> None:
        super().__init__(draft, seconds, tracker, parts)
        newest = super().newest()
        self.finished: list[Any] = newest.state["finished"] if newest else []
        self.start: int = newest.state["start"] if newest else 0
        """The steps of the finished parts, with one more for the end of each."""
        self._begun = newest.state["begun"] if newest else None

    def newest(self) -> Checkpoint | None:
        """The state of the part that was begun; None where the next part begins."""
        begun, self._begun = self._begun, None
        return Checkpoint(begun["step"], begun["state"]) if begun else None

    def save(self, step: int, state: Any) -> None:
        """Saves the state of the part that is training, after `step` of its own steps."""
        check_together("weights and random numbers", state["weights"], state["random"])
        self._save_all(self.start + step, {"step": step, "state": state})

    def finish(self, left: Any, steps: int) -> None:
        """Saves what the part that was training left after `steps` steps."""
        self.finished.append(left)
        self.start += steps + 1
        self._save_all(self.start, None)
        self._written()

    def _save_all(self, step: int, begun: Any) -> None:
        super().save(step, {"finished": self.finished, "start": self.start, "begun": begun})


Packed = tuple[Any, dict[str, torch.Tensor]]
"""A state as JSON, and its tensors in the memory of the CPU, by their paths within it."""


def save(folder: Path, step: int, state: Any, logs: Mapping[str, int] | None = None) -> None:
    """Writes `folder/step-…`, and removes all but the newest `COPIES`; `logs` are the logs beside `folder` and their lengths.

    Raises:
        TypeError: the state holds something that is neither JSON nor a tensor.
    """
    _write(folder, step, _packed(state), logs)


def _packed(state: Any) -> Packed:
    tensors: dict[str, torch.Tensor] = {}
    return pack(state, "", tensors), tensors


def _write(folder: Path, step: int, packed: Packed, logs: Mapping[str, int] | None) -> None:
    plain, tensors = packed
    aside, target = folder / f".step-{step:06d}", folder / f"step-{step:06d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(tensors, aside / TENSORS)
    (aside / STATE).write_text(json.dumps(plain), encoding="utf-8")
    descriptions = {name: describe(folder.parent / name, length) for name, length in (logs or {}).items()}
    manifest = sealed({"logs": descriptions}, aside, [aside / TENSORS, aside / STATE])
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for path in (*aside.iterdir(), aside):
        sync(path)
    shutil.rmtree(target, ignore_errors=True)  # a damaged one of the same step
    aside.rename(target)
    sync(folder)
    for old in _newest_first(folder)[COPIES:]:
        shutil.rmtree(old, ignore_errors=True)


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, and the logs beside `folder` up to it; the console names the damage of others."""
    paths = _newest_first(folder)
    for path in paths:
        wrong = _damage(path, folder.parent)
        if wrong is None:
            plain = json.loads((path / STATE).read_text(encoding="utf-8"))
            return Checkpoint(_step(path), _unpack(plain, load_file(path / TENSORS)))
        say(f"  {path}/{wrong}; this checkpoint is not used")
    if paths:
        say("  no checkpoint is whole: starting from the beginning")
    return None


def trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that training moves, by name."""
    return {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def set_trainable(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copies saved weights back into a model with the same trainable parameters."""
    own = trainable(model)
    assert own.keys() == weights.keys(), "the settings are the same, so the weights have the same names"
    for name, parameter in own.items():
        parameter.copy_(weights[name])


def random_states() -> dict[str, Any]:
    """The states of the four generators that training draws from: Python's, NumPy's, torch's and CUDA's."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restores what `random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _damage(path: Path, logs: Path) -> str | None:
    """The first damaged file of a checkpoint, or of the logs as far as it knows them, and what is wrong with it."""
    try:
        manifest = dict(json.loads((path / MANIFEST).read_text(encoding="utf-8")))
        if not manifest.keys() >= {"files", "sha256"}:
            return f"{MANIFEST} cannot be read"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, TypeError):
        return f"{MANIFEST} cannot be read"
    if found := damage(manifest, path, MANIFEST):
        return f"{found[0].name} {found[1]}"
    for name, expected in manifest.get("logs", {}).items():
        if wrong := difference(logs / name, expected, expected["bytes"]):
            return f"{name} {wrong}"
    return None


def pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON; puts its tensors into `tensors`, under their paths within it."""
    if isinstance(value, torch.Tensor):
        # Copies, since 8-bit optimizers share tables and safetensors refuses shared memory.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": name}
    if isinstance(value, Mapping):
        pairs = [[key, pack(inner, f"{name}/{key}", tensors)] for key, inner in value.items()]
        return dict(pairs) if all(isinstance(key, str) for key, _ in pairs) else {"$pairs": pairs}
    if isinstance(value, list | tuple):
        items = [pack(inner, f"{name}/{i}", tensors) for i, inner in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_unpack(inner, tensors) for inner in value["$tuple"])
    if "$pairs" in value:
        return {key: _unpack(inner, tensors) for key, inner in value["$pairs"]}
    return {key: _unpack(inner, tensors) for key, inner in value.items()}
