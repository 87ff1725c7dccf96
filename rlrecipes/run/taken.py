"""Finished stages that a run takes from another one, instead of making them again.

    runs/kl/translation/sft/done.json    {…, "taken": {"run": "mine", "sha256": "9f86…"}, "files": …}

The files are hard links, or copies where the disk has no links: removing one run leaves the other whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError, option, switch
from rlrecipes.run.checksums import difference
from rlrecipes.run.folder import Run, differences, make


def take(run: Run, stage: str, other: Run, settings: Mapping[str, Any]) -> bool:
    """Puts a finished stage of another run into this one; False where it has been taken already.

    `settings` are those that this run has for the stage. The record stays the other's, with the run it is from and that
    record's checksum.

    Raises:
        UserError: the other run has not finished the stage, or made it with other settings; this run has made its own.
    """
    record = other.need(stage)
    if found := differences(record["settings"], settings):
        raise UserError(
            f"{other.stage(stage)} was made with {found}, so it cannot be taken; leave {option('from')} out to train it"
        )
    if "sha256" not in record:
        raise UserError(f"{other.stage(stage)} is from before checksums; make it again with `{make(stage, other)}`")
    own = run.done(stage)
    if own is not None and own.get("files") == record["files"]:
        return False
    if own is not None or run.begun(stage) is not None:
        raise UserError(
            f"{run.folder} has a {stage} stage of its own, which differs from that of {other.folder}; "
            f"name another run ({option('run')}) or leave {option('from')} out"
        )
    draft = run.open(stage, settings)
    for name, expected in record["files"].items():
        _link(other.stage(stage) / name, draft / name)
        if wrong := difference(draft / name, expected):
            raise UserError(
                f"{other.stage(stage) / name} {wrong}; make its stage again with `{make(stage, other)} {switch('force')}`"
            )
    kept = {key: value for key, value in record.items() if key not in ("stage", "files", "sha256")}
    run.close(stage, kept | {"taken": {"run": other.name, "sha256": record["sha256"]}})
    return True


def _link(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, place)
