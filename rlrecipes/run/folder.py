"""A run is a folder: `runs/<run>/<recipe>/<stage>/`, each stage closed by a `done.json` that is written last.

    {"stage": "sft", "metrics": {"train_loss": 1.2}, "settings": {"sft.max_steps": 100, …}, "seed": 0, …}

Until then a stage is a draft, `.<stage>/` beside its place: `begun.json` says under what it was begun, `checkpoints/` hold
how far it came. A process may be killed between any two lines here; what stands is then finished or goes on, never half.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError, has_make, option, program, switch
from rlrecipes.profile import profile_names
from rlrecipes.run.console import say
from rlrecipes.run.stages import STAGES, above
from rlrecipes.text import shortened

BEGUN, CHECKPOINTS = "begun.json", "checkpoints"


@dataclass(frozen=True)
class Run:
    """The folder of a run of one recipe, and what is finished in it.

    Raises:
        UserError: a name that is no folder's, or would lead out of `root`.
    """

    name: str
    recipe: str
    root: Path = Path("runs")

    def __post_init__(self) -> None:
        for kind, name in (("run", self.name), ("recipe", self.recipe)):
            if not re.fullmatch(r"\w[\w.=+-]*", name) or len(name.encode()) > 200:
                raise UserError(
                    f"'{shortened(name)}' cannot name a {kind}; use letters, digits, '-' and '_', 200 at most"
                )

    @property
    def folder(self) -> Path:
        return self.root / self.name / self.recipe

    def stage(self, stage: str) -> Path:
        """The folder that a finished stage leaves behind."""
        return self.folder / stage

    def done(self, stage: str) -> dict[str, Any] | None:
        """What `stage` recorded when it finished; None while it has not.

        Raises:
            UserError: the record cannot be read.
        """
        path = self.stage(stage) / "done.json"
        if not path.exists():
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return {**record, "settings": dict(record["settings"])}
        except (OSError, ValueError, TypeError, KeyError):
            raise UserError(f"{path} is damaged; delete the folder {path.parent} and run the stage again") from None

    def need(self, stage: str) -> dict[str, Any]:
        """Like `done`, for a stage that another one stands on."""
        record = self.done(stage)
        if record is None:
            raise UserError(
                f"{self.recipe} has no finished {stage} stage in {self.folder}; run `{make(stage, self)}` first, "
                "with the same options"
            )
        return record

    def is_finished(self, stage: str, settings: Mapping[str, Any]) -> bool:
        """Whether `stage` is done under exactly these settings.

        Raises:
            UserError: it is done under others; the sentence says what differs.
        """
        record = self.done(stage)
        if record is None:
            return False
        if difference := _difference(record["settings"], json.loads(json.dumps(settings))):
            raise UserError(
                f"{self.stage(stage)} was made with {difference}; "
                f"name another run ({option('run')}) or say {switch('force')} to make it again"
            )
        return True

    def draft(self, stage: str) -> Path:
        """Where a stage is while it is being made."""
        return self.folder / f".{stage}"

    def begun(self, stage: str) -> dict[str, Any] | None:
        """Under what an interrupted stage was begun; None where there is none, or nothing of it was saved.

        Raises:
            UserError: it cannot be read.
        """
        path = self.draft(stage) / BEGUN
        if not path.exists() or not self._saved(stage):
            return None
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise UserError(f"{path} is damaged; delete the folder {path.parent} and run the stage again") from None

    def check_begun(self, stage: str, conditions: Mapping[str, Any]) -> None:
        """Refuses to go on with an interrupted stage under other settings or library versions.

        Raises:
            UserError: the sentence says what differs.
        """
        begun = self.begun(stage)
        if begun is not None and (difference := _difference(begun, json.loads(json.dumps(conditions)))):
            raise UserError(
                f"the interrupted {stage} stage in {self.draft(stage)} was begun with {difference}; name another run "
                f"({option('run')}) or begin it again with the same options (`{make(stage, self)} {switch('force')}`)"
            )

    def open(self, stage: str, conditions: Mapping[str, Any]) -> Path:
        """The stage's draft, to be filled and then handed to `close`: an interrupted one begun under the same, or empty."""
        draft = self.draft(stage)
        if self.begun(stage) == json.loads(json.dumps(conditions)):
            for path in draft.iterdir():
                # What is made after training is made again; the tracker cuts the logs back to the checkpoint.
                if path.name not in (BEGUN, CHECKPOINTS) and path.suffix != ".jsonl":
                    _remove(path)
            return draft
        _remove(draft)
        draft.mkdir(parents=True)
        write_json(draft / BEGUN, conditions)
        return draft

    def abandon(self, stage: str) -> None:
        """After a failure: a draft from which nobody could go on is removed."""
        if not self._saved(stage):
            _remove(self.draft(stage))

    def _saved(self, stage: str) -> bool:
        return any((self.draft(stage) / CHECKPOINTS).glob("step-*"))

    def close(self, stage: str, record: Mapping[str, Any]) -> None:
        """Writes the draft's `done.json` last and puts it into its place, so that a stage is there whole or not at all."""
        draft = self.draft(stage)
        for path in draft.rglob("*"):
            sync(path)
        write_json(draft / "done.json", {"stage": stage, **record})
        self._place(stage)

    def recover(self) -> None:
        """Puts stages into place that were closed by a process that was killed before it could."""
        for stage in STAGES:
            if (self.draft(stage) / "done.json").exists():
                self._place(stage)

    def _place(self, stage: str) -> None:
        draft, place = self.draft(stage), self.stage(stage)
        _remove(draft / CHECKPOINTS)
        _remove(draft / BEGUN)
        # First, so that nothing ever stands on a replaced stage, or on one that was taken away.
        self.forget_above(stage)
        _remove(place)
        draft.rename(place)
        sync(self.folder)

    def forget_above(self, stage: str) -> None:
        """Removes everything that stands on a stage, or was about to."""
        for later in above(stage):
            _remove(self.stage(later))
            _remove(self.draft(later))

    def remove(self, stage: str) -> None:
        """Removes a stage, finished or begun, with all that stands on it."""
        self.forget_above(stage)
        _remove(self.stage(stage))
        _remove(self.draft(stage))


def make(target: str, run: Run) -> str:
    """The command that makes a stage of this run, or all of them where the target is its recipe."""
    named = [] if run.name == "tiny" else [option("profile" if run.name in profile_names() else "run", run.name)]
    if has_make():
        return " ".join(["make", target, *([] if target == run.recipe else [f"RECIPE={run.recipe}"]), *named])
    return " ".join([program(), "run" if target == run.recipe else target, run.recipe, *named])


def write_json(path: Path, value: Any) -> None:
    """Writes aside, then renames: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(aside)
    os.replace(aside, path)


def sync(path: Path) -> None:
    """Forces a file's content or a folder's list of names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made if need be and removed if nothing came into it.

    The lock goes with the process, however that ends.

    Raises:
        UserError: another process is in it, and we are not to `wait`.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder} ({error.strerror}); make room for it") from None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            os.close(handle)
            raise UserError(
                f"another process is at work in {folder}; wait for it or name another run ({option('run')})"
            ) from None
        say(f"waiting for another process that is at work in {folder}")
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        for path in (folder, folder.parent):
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()
        os.close(handle)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _remove(path: Path) -> None:
    """Removes a file, or a folder with its `done.json` first: half removed it must not look finished."""
    if path.is_dir():
        (path / "done.json").unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    """What rounds a run's float32 products, beside the libraries: the processor, its cores and torch's threads.

    The same settings give the same bytes only where all of it is the same.
    """
    import torch

    return {"cpu": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def processor() -> str:
    """The processor's name; its kind where the system does not tell the name."""
    with contextlib.suppress(OSError):  # Linux alone has the file
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


class Stopwatch:
    """Seconds and peak memory of a stage, from its creation on."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        with contextlib.suppress(OSError):  # Linux resets the peak when 5 is written; elsewhere it is the process's.
            Path("/proc/self/clear_refs").write_text("5")

    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)

    def peak_memory_mb(self) -> int:
        """Peak resident memory in MB (10^6 bytes)."""
        try:
            status = Path("/proc/self/status").read_text()
            kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            import resource

            kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kilobytes * 1024 // 1_000_000


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changed = [key for key in [*old, *(key for key in new if key not in old)] if old.get(key) != new.get(key)]
    shown = [f"{key} = {_json(old.get(key))} where you now have {_json(new.get(key))}" for key in changed[:3]]
    return ", ".join(shown) + (f" and {len(changed) - 3} more differences" if len(changed) > 3 else "")


def _json(value: Any) -> str:
    return shortened(json.dumps(value, ensure_ascii=False))


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
    """Refuses any other TRL than the one whose PPO these recipes were built on.

    Raises:
        UserError: with the command that mends it.
    """
    found = _version("trl")
    if found != TRL:
        raise UserError(
            f"these recipes need trl {TRL}, the last with PPOTrainer, and found {found}; run: pip install trl=={TRL}"
        )
