"""A run is a folder: `runs/<run>/<recipe>/<stage>/`, each stage closed by a `done.json` that is written last.

{"stage": "sft", "metrics": {"train_loss": 1.2}, "settings": {"sft.max_steps": 100, …}, "seed": 0, …}
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError

STAGES = ("sft", "reward", "ppo", "evaluate", "report")


@dataclass(frozen=True)
class Run:
    """The folder of a run of one recipe, and what is finished in it."""

    name: str
    recipe: str
    root: Path = Path("runs")

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
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path} is damaged; delete the folder {path.parent} and run the stage again") from None

    def need(self, stage: str) -> dict[str, Any]:
        """Like `done`, for a stage that another one stands on."""
        record = self.done(stage)
        if record is None:
            raise UserError(
                f"{self.recipe} has no finished {stage} stage in {self.folder}; run `make {stage} RECIPE={self.recipe}` first"
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
        difference = _difference(record["settings"], json.loads(json.dumps(settings)))
        if difference:
            raise UserError(
                f"{self.stage(stage)} was made with {difference}; "
                "name another run (RUN=…) or say FORCE=1 to make it again"
            )
        return True

    def open(self, stage: str) -> Path:
        """An empty folder beside the stage's own, to be filled and then handed to `close`."""
        draft = self.folder / f".{stage}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        return draft

    def close(self, stage: str, draft: Path, record: Mapping[str, Any]) -> None:
        """Writes `done.json` last and moves the filled folder into place, so that a stage is there whole or not at all."""
        write_json(draft / "done.json", {"stage": stage, **record})
        shutil.rmtree(self.stage(stage), ignore_errors=True)
        draft.rename(self.stage(stage))

    def forget_above(self, stage: str) -> None:
        """Removes everything that stands on a stage."""
        for later in STAGES[STAGES.index(stage) + 1 :]:
            shutil.rmtree(self.stage(later), ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes aside, then renames: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def git_commit() -> str | None:
    """The project's commit, with `+changes` where files differ from it; None outside a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


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
    shown = [f"{key} = {_short(old.get(key))} where you now have {_short(new.get(key))}" for key in changed[:3]]
    return ", ".join(shown) + (f" and {len(changed) - 3} more differences" if len(changed) > 3 else "")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
