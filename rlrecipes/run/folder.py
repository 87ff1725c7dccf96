"""A run is a folder, `runs/<run>/<recipe>/<stage>/`; a stage writes its `done.json` last.

    {"stage": "sft", "metrics": {"train_loss": 1.2}, "settings": {"sft.max_steps": 100, …}, "seed": 0, …, "files": …}

`files` has the checksum of each file that the stage left. Until then a stage is a draft, `.<stage>/` beside its place:
`begun.json` holds the settings and library versions it began with, `checkpoints/` its progress. A kill between any two lines
here leaves a stage finished or able to go on, never half.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError, has_make, option, program, switch
from rlrecipes.profile import profile_names
from rlrecipes.run.checksums import CHANGED, check, files_in, is_whole, sealed
from rlrecipes.run.stages import STAGES, WRITTEN, above
from rlrecipes.text import shortened

DONE, BEGUN, CHECKPOINTS = "done.json", "begun.json", "checkpoints"


@dataclass(frozen=True)
class Run:
    """The folder of a run of one recipe, and its finished stages.

    Raises:
        UserError: a name cannot be a folder's, or would lead out of `root`.
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
        """The folder of a finished stage."""
        return self.folder / stage

    def done(self, stage: str) -> dict[str, Any] | None:
        """The record in the `done.json` of `stage`; None until it finishes.

        Raises:
            UserError: the record cannot be read, or a file of the stage is damaged.
        """
        path = self.stage(stage) / DONE
        if not path.exists():
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            record["settings"] = dict(record["settings"])
        except (ValueError, TypeError, KeyError):
            record = {}
        if not record or not is_whole(record):
            raise UserError(f"{path} is damaged; delete the folder {path.parent} and run the stage again")
        check(record, path.parent, DONE, f"make its stage again with `{make(stage, self)} {switch('force')}`")
        return record

    def need(self, stage: str) -> dict[str, Any]:
        """Like `done`, for a stage that another one stands on.

        Raises:
            UserError: it is not finished, or its record cannot be read.
        """
        record = self.done(stage)
        if record is None:
            raise UserError(
                f"{self.recipe} has no finished {stage} stage in {self.folder}; run `{make(stage, self)}` first, "
                "with the same options"
            )
        return record

    def is_finished(self, stage: str, settings: Mapping[str, Any]) -> bool:
        """Whether `stage` is finished, under exactly these settings.

        Raises:
            UserError: it finished under others; the sentence says what differs.
        """
        record = self.done(stage)
        if record is None:
            return False
        if difference := differences(record["settings"], settings):
            raise UserError(
                f"{self.stage(stage)} was made with {difference}; "
                f"name another run ({option('run')}) or say {switch('force')} to make it again"
            )
        return True

    def differs(self, stage: str, settings: Mapping[str, Any]) -> bool:
        """Whether `stage` is finished, under other settings than these."""
        record = self.done(stage)
        return record is not None and bool(differences(record["settings"], settings))

    def draft(self, stage: str) -> Path:
        """The folder of an unfinished stage."""
        return self.folder / f".{stage}"

    def begun(self, stage: str) -> dict[str, Any] | None:
        """The conditions that an interrupted stage began under; None where there is no draft, or none with a checkpoint.

        Raises:
            UserError: its file cannot be read.
        """
        path = self.draft(stage) / BEGUN
        if not path.exists() or not self._has_checkpoint(stage):
            return None
        again = f"delete the folder {path.parent} and run the stage again"
        try:
            begun = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise UserError(f"{path} is damaged; {again}") from None
        check(begun, path.parent, BEGUN, again)
        return {key: value for key, value in begun.items() if key not in ("files", "sha256")}

    def check_begun(self, stage: str, conditions: Mapping[str, Any]) -> None:
        """Refuses to go on with an interrupted stage under other settings or library versions.

        Raises:
            UserError: the sentence says what differs.
        """
        earlier = self.begun(stage)
        if earlier is not None and (difference := differences(earlier, conditions)):
            raise UserError(
                f"the interrupted {stage} stage in {self.draft(stage)} was begun with {difference}; name another run "
                f"({option('run')}) or begin it again with the same options (`{make(stage, self)} {switch('force')}`)"
            )

    def open(self, stage: str, conditions: Mapping[str, Any]) -> Path:
        """The stage's draft, to fill and then `close`: an interrupted one of the same conditions, or an empty one.

        Raises:
            UserError: as `check_removable`.
        """
        self.check_removable([stage])
        draft = self.draft(stage)
        if self.begun(stage) == json.loads(json.dumps(conditions)):
            for path in draft.iterdir():
                # The stage makes anew what comes after training; the tracker cuts the logs back to the checkpoint.
                if path.name not in (BEGUN, CHECKPOINTS) and path.suffix != ".jsonl":
                    _remove(path)
            return draft
        _remove(draft)
        draft.mkdir(parents=True)
        write_json(draft / BEGUN, sealed(conditions))
        return draft

    def abandon(self, stage: str) -> None:
        """Removes the draft of a failed stage if it has no checkpoint to go on from, and holds nothing of somebody's."""
        if not self._has_checkpoint(stage) and not self._strangers(stage):
            _remove(self.draft(stage))

    def _has_checkpoint(self, stage: str) -> bool:
        return any((self.draft(stage) / CHECKPOINTS).glob("step-*"))

    def close(self, stage: str, record: Mapping[str, Any]) -> None:
        """Writes the draft's `done.json` last and moves it into place, so that a stage is there whole or not at all.

        Raises:
            UserError: something that no stage wrote is in the way; the draft stays, and the next command moves it.
        """
        draft = self.draft(stage)
        for path in draft.rglob("*"):
            sync(path)
        strangers, passing = self._strangers(stage), (BEGUN, CHECKPOINTS, DONE)
        names = {path: path.relative_to(draft) for path in files_in(draft)}
        kept = [
            path for path, name in names.items() if name.parts[0] not in passing and name.as_posix() not in strangers
        ]
        write_json(draft / DONE, sealed({"stage": stage, **record}, draft, kept))
        self._place(stage)

    def recover(self) -> None:
        """Moves stages into place whose process was killed after it wrote `done.json`; ends removals that were cut off.

        Raises:
            UserError: such a stage is damaged, and what it would take the place of stays.
        """
        for stage in STAGES:
            _remove(self._gone(stage))
            draft = self.draft(stage)
            if (draft / DONE).exists():
                again = f"delete the folder {draft} and give the same command again"
                record = read_json(draft / DONE)
                if not record:
                    raise UserError(f"{draft / DONE} is damaged; {again}")
                check(record, draft, DONE, again)
                self._place(stage)

    def _place(self, stage: str) -> None:
        draft, place = self.draft(stage), self.stage(stage)
        self.check_removable([stage])
        _remove(draft / CHECKPOINTS)
        _remove(draft / BEGUN)
        # First, so that nothing ever stands on a replaced or a missing stage.
        self.forget_above(stage)
        self._remove_stage(stage)
        draft.rename(place)
        sync(self.folder)

    def forget_above(self, stage: str) -> None:
        """Removes the finished stages and the drafts that stand on a stage."""
        for later in above(stage):
            self._remove_stage(later)
            _remove(self.draft(later))

    def remove(self, stage: str) -> None:
        """Removes a stage and its draft, with all that stands on it.

        Raises:
            UserError: a folder holds what no stage wrote; nothing is removed then.
        """
        self.check_removable([stage])
        self.forget_above(stage)
        self._remove_stage(stage)
        _remove(self.draft(stage))

    def _gone(self, stage: str) -> Path:
        return self.folder / f".{stage}-gone"

    def _remove_stage(self, stage: str) -> None:
        """Renames a stage's folder before its files go: half removed it is neither a finished stage nor somebody's folder."""
        _remove(self._gone(stage))
        if self.stage(stage).exists():
            self.stage(stage).rename(self._gone(stage))
            _remove(self._gone(stage))

    def check_removable(self, stages: Iterable[str]) -> None:
        """Refuses to remove what the stages, and those that stand on them, did not write, and to follow links out of the run.

        Raises:
            UserError: with the file or link, and how many more there are.
        """
        for stage in dict.fromkeys(each for lowest in stages for each in (lowest, *above(lowest))):
            for path in (self.stage(stage), self.draft(stage)):
                if path.is_symlink() or path.is_file():
                    raise UserError(
                        f"{path} is a {'link' if path.is_symlink() else 'file'} where the {stage} stage has its folder; "
                        "move it away and give the same command again"
                    )
            for place, others in (
                (self.stage(stage), self._others(stage)),
                (self.draft(stage), self._strangers(stage)),
            ):
                refuse_others(place, others, "the stage")

    def _others(self, stage: str) -> list[str]:
        """The files in a stage's folder that the stage did not write; none where its record is from before it had a list."""
        place = self.stage(stage)
        record = read_json(place / DONE)
        if (place / DONE).exists() and not (record and is_whole(record)):
            raise UserError(f"{place / DONE} is damaged (it {CHANGED}); delete {place} and give the same command again")
        if record and "files" not in record:
            return []
        own = {DONE, *record.get("files", ())}
        return [name for path in files_in(place) if (name := path.relative_to(place).as_posix()) not in own]

    def _strangers(self, stage: str) -> list[str]:
        """The files and links in a stage's draft that no stage writes, whenever it is killed."""
        draft = self.draft(stage)
        names = {path.relative_to(draft).as_posix(): path for path in files_in(draft)}
        return [name for name, path in names.items() if path.is_symlink() or not WRITTEN.fullmatch(name)]


def refuse_others(place: Path, others: Sequence[str], writer: str) -> None:
    """Refuses to delete a folder with `others` in it, files that its `writer` did not write.

    Raises:
        UserError: with the first of them, and how many more there are.
    """
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"{place} holds {shortened(others[0])}{more}, which {writer} did not write and which would be deleted with it; "
            "move it away and give the same command again"
        )


def make(target: str, run: Run) -> str:
    """The command that makes a stage of this run, or all of them where the target is its recipe."""
    options = [] if run.name == "tiny" else [option("profile" if run.name in profile_names() else "run", run.name)]
    if has_make():
        return " ".join(["make", target, *([] if target == run.recipe else [f"RECIPE={run.recipe}"]), *options])
    return " ".join([program(), "run" if target == run.recipe else target, run.recipe, *options])


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes aside, then renames: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(path.name + ".part")
    try:
        aside.write_text(text, encoding="utf-8")
        sync(aside)
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Forces a file's content or a folder's list of names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where the file is missing or holds no object."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _remove(path: Path) -> None:
    """Removes a file, or a folder with its `done.json` first: half removed it must not look finished."""
    if path.is_dir():
        (path / DONE).unlink(missing_ok=True)
        shutil.rmtree(path)
    elif os.path.lexists(path):  # a read-only disk refuses to remove even what is not there
        path.unlink()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first settings in which two records differ, for a sentence; empty where they are the same."""
    new = json.loads(json.dumps(new))
    changed = [key for key in [*old, *(key for key in new if key not in old)] if old.get(key) != new.get(key)]
    texts = [[shortened(json.dumps(one.get(key), ensure_ascii=False)) for one in (old, new)] for key in changed[:3]]
    pairs = [f"{key} = {was} where you now have {now}" for key, (was, now) in zip(changed, texts, strict=False)]
    return ", ".join(pairs) + (f" and {len(changed) - 3} more differences" if len(changed) > 3 else "")
