"""Rows of public data sets, streamed from the hub once and kept in `runs/.hub/`.

    runs/.hub/wmt--wmt14-train-1f0c3a5e.jsonl.gz    the rows, one JSON object a line
    runs/.hub/wmt--wmt14-train-1f0c3a5e.json        {"id": "wmt/wmt14", "revision": "b199e406…", "rows": 20000, …}

So people can look at the rows, every stage reads the same ones, and the second run needs no network.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rlrecipes.errors import UserError, first_line, option
from rlrecipes.hub.reach import reach_data
from rlrecipes.recipe import HubSet
from rlrecipes.run.checksums import check, sealed
from rlrecipes.run.console import bar, say
from rlrecipes.run.folder import read_json, write_json
from rlrecipes.run.lock import locked
from rlrecipes.text import shortened

RECORD = {"revision", "rows", "passed_over", "licence"}
"""The keys of a record beside those of `_identity`."""


class Kept(NamedTuple):
    """One split of a set on the disk: `<name>.jsonl.gz` has its rows, and `<name>.json` the record of their origin.

    A split counts as kept only if both files are there and the record is complete.
    """

    path: Path
    record: Mapping[str, Any]


def fetch(hub_set: HubSet, root: Path) -> list[Kept]:
    """The set's training split, and its held-out split if it has one: from `root/.hub`, or from the hub into it.

    Raises:
        UserError: neither the hub nor its cache gives the set, the cache is damaged, or the set lacks a column.
    """
    folder = root.absolute() / ".hub"
    splits = [hub_set.split, *([hub_set.test] if hub_set.test else [])]
    cache = [rows for split in splits if (rows := _find(folder, hub_set, split))]
    if len(cache) == len(splits):
        return cache
    place, commit = reach_data(hub_set.id, hub_set.revision)
    with locked(folder, wait=True):
        return [_find(folder, hub_set, split) or _stream(folder, hub_set, split, place, commit) for split in splits]


def _identity(hub_set: HubSet, split: str) -> dict[str, Any]:
    """The keys of a record that decide, with the revision, which rows it is about."""
    where = dict(hub_set.where)
    return {"id": hub_set.id, "config": hub_set.config, "split": split, "take": hub_set.take, "where": where}


def _find(folder: Path, hub_set: HubSet, split: str) -> Kept | None:
    for path in sorted(folder.glob(f"{hub_set.id.replace('/', '--')}-*.json")):
        record = read_json(path)
        rows = path.with_suffix(".jsonl.gz")
        same = {key: record.get(key) for key in _identity(hub_set, split)} == _identity(hub_set, split)
        whole = rows.is_file() and record.keys() >= RECORD
        if same and whole and hub_set.revision in (record.get("asked"), record.get("revision")):
            again = f"delete {path.name} there and give the same command again, which fetches it anew"
            check(record, folder, path.name, again)
            return Kept(rows, record)
    return None


def _stream(folder: Path, hub_set: HubSet, split: str, place: str, commit: str | None) -> Kept:
    """Streams one split to the disk and writes its record last."""
    selection = {**_identity(hub_set, split), "asked": hub_set.revision}
    key = hashlib.sha256(json.dumps([selection, commit]).encode()).hexdigest()[:8]
    path = folder / f"{hub_set.id.replace('/', '--')}-{split}-{key}.jsonl.gz"
    say(f"fetching {hub_set.id}, {split}" + (f", at most {hub_set.take:,} rows" if hub_set.take else ""))
    count = _write(path, hub_set, split, place, commit if place == hub_set.id else None)
    record = {
        **selection,
        "revision": commit,
        "rows": count["kept"],
        "passed_over": count["passed over"],
        "licence": hub_set.licence,
        "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    record = sealed(record, folder, [path])
    write_json(path.with_name(path.name.replace(".jsonl.gz", ".json")), record)
    return Kept(path, record)


def _write(path: Path, hub_set: HubSet, split: str, place: str, revision: str | None) -> Counter[str]:
    """Writes the rows; counts those it kept, and those it passed over because they do not match `where`."""
    aside = path.with_name(path.name + ".part")
    count: Counter[str] = Counter()
    try:
        with (
            gzip.open(aside, "wt", encoding="utf-8", compresslevel=3) as file,
            bar("fetch", hub_set.take or 0) as progress,
        ):
            for row in _rows(hub_set, split, place, revision, count):
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                count["kept"] += 1
                progress.update(1)
        if not count["kept"]:
            raise UserError(f"{hub_set.id}, {split} has no row that is wanted; name another revision after @")
        os.replace(aside, path)
    except UserError:
        raise
    except Exception as error:  # many libraries stand between the set and us
        reason = shortened(first_line(error), 200)
        raise UserError(
            f"cannot fetch {hub_set.id}, {split}: {reason}; give the same command again, "
            f"or its files as {option('data', '<folder>')}"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    return count


def _rows(
    hub_set: HubSet, split: str, place: str, revision: str | None, count: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The matching rows of a split, the same share of each of its files, since files are often sorted by content."""
    import logging

    import datasets

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    stream = datasets.load_dataset(place, hub_set.config, split=split, revision=revision, streaming=True)
    for row in islice(stream, 1):
        _check_columns(hub_set, split, row)
    files = stream.num_shards
    for number in range(files):
        remaining = hub_set.take and hub_set.take - count["kept"]
        share = remaining and -(-remaining // (files - number))
        yield from islice(_select(hub_set, stream.shard(files, number), count), share)


def _select(hub_set: HubSet, rows: Iterable[dict[str, Any]], count: Counter[str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if all(row[name] == value for name, value in hub_set.where.items()):
            yield row
        else:
            count["passed over"] += 1


def _check_columns(hub_set: HubSet, split: str, row: Mapping[str, Any]) -> None:
    if missing := missing_column(hub_set, row):
        raise UserError(
            f"{hub_set.id}, {split} has the columns {', '.join(row)}, but '{missing}' was expected; "
            f"pin a revision that has it ({option('data', f'hub:{hub_set.id}@<commit>')})"
        )


def missing_column(hub_set: HubSet, values: Mapping[str, Any]) -> str | None:
    """The first of a set's columns that a row does not have; None if it has all."""
    return next((name for name in hub_set.columns if not _has(values, name)), None)


def _has(values: Any, name: str) -> bool:
    outer, dot, inner = name.partition(".")
    return isinstance(values, Mapping) and outer in values and (not dot or _has(values[outer], inner))
