"""How a run was begun, kept beside its stages as `settings.toml`, so that a later command needs nothing typed again.

    recipe = "translation"
    profile = "tiny"
    data = "pairs.jsonl"
    seed = 0
    [columns]
    target = "post_edit"
    [terms]
    learned = 1.0
    [sft]
    max_steps = 100

The profile stands in it with every override, so that a later change of the profile's file does not touch the run.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from rlrecipes.errors import UserError, first_line
from rlrecipes.profile import Profile
from rlrecipes.recipe import BUILT_IN, Reward
from rlrecipes.run.folder import write_text

NAME = "settings.toml"
_SUM = 'sha256 = "'
_TABLES = ("columns", "terms")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Settings:
    """All that a command line says about a run but its name."""

    recipe: str
    profile: str
    """The name of the profile that the tables come from."""
    data: str
    """As it was named: a file or folder, `hub`, `hub:<id>` or `built-in`."""
    seed: int
    columns: dict[str, str] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)
    """The weight of each reward term, and of the reward model as `learned`; empty where recipes share a reward model."""
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The profile's tables, with every override; a setting that is none is left out."""


def asked_for(
    recipe: str,
    profile: Profile,
    source: str | None,
    seed: int,
    columns: Mapping[str, str] = MappingProxyType({}),
    reward: Reward | None = None,
) -> Settings:
    """What a run is asked for, in plain values; no reward where recipes share a reward model."""
    weights = {"learned": reward.learned, **{term.name: term.weight for term in reward.terms}} if reward else {}
    terms = {name: float(weight) for name, weight in weights.items()}
    source = str(source or BUILT_IN)
    return Settings(recipe, profile.name, source, int(seed), dict(columns), terms, tables_of(profile))


def tables_of(profile: Profile) -> dict[str, dict[str, Any]]:
    """The profile's tables as TOML can hold them: it has no word for none, which is the default wherever it may stand."""
    whole = asdict(Profile(**asdict(profile)))  # a default of 300 comes back from a file as 300.0, and so does it here
    tables = {name: table for name, table in whole.items() if isinstance(table, dict)}
    return {name: {k: v for k, v in table.items() if v is not None} for name, table in tables.items()}


def write_settings(folder: Path, settings: Settings) -> str | None:
    """Writes a run's `settings.toml`, aside and then renamed, and returns what stood there before."""
    values = asdict(settings)
    tables = {name: values.pop(name) for name in _TABLES} | values.pop("tables")
    body = "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
    for name, table in tables.items():
        body += f"\n[{name}]\n" + "".join(f"{_key(key)} = {_toml(value)}\n" for key, value in table.items())
    head = f"# How {folder.name} of the run {folder.parent.name} was begun. After a change, delete the next line.\n"
    path, text = folder / NAME, f'{head}{_SUM}{_digest(head + body)}"\n{body}'
    _check_regular(path)
    before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    if text != before:
        write_text(path, text)
    return before


def put_back(folder: Path, before: str | None) -> None:
    """Puts back what `write_settings` returned, after a command that left nothing of its stages."""
    if before is None:
        (folder / NAME).unlink(missing_ok=True)
    else:
        write_text(folder / NAME, before)


def read_settings(path: Path) -> Settings:
    """The settings in a file that a run has left.

    Raises:
        UserError: it is not there, is no file, is not TOML, lacks something, or is no longer what was written.
    """
    try:
        _check_regular(path)
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
        written = values.pop("sha256", None)
        own = {key: values.pop(key) for key in ("recipe", "profile", "data", "seed", *_TABLES) if key in values}
        settings = Settings(**own, tables=values)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); name a settings.toml that a run has left") from None
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise _damaged(path, f"'{place}': {error.errors()[0]['msg']}") from None
    except ValueError as error:
        raise _damaged(path, first_line(error)) from None
    head, _, rest = text.partition(_SUM)
    if written is not None and written != _digest(head + rest.partition("\n")[2]):
        raise UserError(
            f"{path} is no longer what was written; if you changed it on purpose, delete its line `sha256 = …`, else "
            "delete the file and give the run's options again"
        )
    return settings


def _check_regular(path: Path) -> None:
    """Refuses a pipe or a device, whose reading may never end."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no regular file; move it away, or name a settings.toml that a run has left")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}); delete it and give the run's options again")


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: str | int | float | Mapping[str, Any]) -> str:
    """A value as TOML: JSON's texts, numbers and switches are TOML's too, but for the character 127."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
