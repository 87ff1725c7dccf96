"""A recipe's data from public sets of the Hugging Face hub.

    DATA=hub                                         the recipe's own choice
    DATA=hub:trl-lib/tldr,trl-lib/tldr-preference    these
    DATA=hub:trl-lib/tldr@a1b2c3d                    of this branch, tag or commit

Rows are read once, as a stream, and kept in `runs/.hub/`: what was trained on can be looked at, is the same in every stage
and needs no network the second time.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from rlrecipes.data.files import Row, read
from rlrecipes.data.layouts import Readable, Record, hub_record, missing_column, readable
from rlrecipes.data.split import Source, different
from rlrecipes.errors import UserError, first_line, option
from rlrecipes.hub.reach import reach_data
from rlrecipes.recipe import HUB, Example, HubSet, Recipe, unknown
from rlrecipes.run.console import bar, say
from rlrecipes.run.folder import locked, read_json, write_json
from rlrecipes.text import shortened

TOLD = {"revision", "rows", "passed_over", "licence"}
"""What is recorded of kept rows, beside what decides which they are."""

COMPARED = {"preferences", "ratings"}
"""What teaches the reward model."""


def read_sets(recipe: Recipe, source: str, root: Path) -> list[Source]:
    """The sets that `source` names, fetched into `root/.hub` unless they are there.

    Where one is there to be judged on, only those that teach the reward model hold out rows of their own: it needs
    held-out rows of the same kind whatever else is held out.

    Raises:
        UserError: no such set, none of its rows can be used, or it can be had neither from the hub nor from its cache.
    """
    sets = chosen_sets(recipe, source)
    judged = any("held out" in hub_set.serves for hub_set in sets)
    return [_read(hub_set, root, not judged or not COMPARED.isdisjoint(hub_set.serves)) for hub_set in sets]


def chosen_sets(recipe: Recipe, source: str) -> list[HubSet]:
    """The sets that `source` names, with the revisions it gives them.

    Raises:
        UserError: the recipe has no such set, or names none, or nothing of these would be trained on.
    """
    if not recipe.hub:
        raise UserError(f"{recipe.name} names no data sets of the hub; give files as {option('data')}")
    names = source.removeprefix(HUB).removeprefix(":")
    if not names:
        return [hub_set for hub_set in recipe.hub if hub_set.default]
    known = {hub_set.id: hub_set for hub_set in recipe.hub}
    chosen: dict[str, HubSet] = {}
    for name in names.split(","):
        id, at, revision = name.strip().partition("@")
        if id not in known:
            others = f"there are {', '.join(known)}"
            raise UserError(f"{option('data', source)}: {unknown('data set', id, list(known), others)}")
        if at and not revision:
            raise UserError(f"{option('data', source)}: name a branch, a tag or a commit after @, or leave out the @")
        chosen[id] = dataclasses.replace(known[id], revision=revision) if revision else known[id]
    if all("held out" in hub_set.serves for hub_set in chosen.values()):
        other = next(hub_set.id for hub_set in recipe.hub if "held out" not in hub_set.serves)
        raise UserError(
            f"{option('data', source)} is only held out, and leaves nothing to train on; "
            f"name another set beside it, such as {option('data', f'{source},{other}')}"
        )
    return list(chosen.values())


# Rows, from the hub or from where they were kept.


class _Kept(NamedTuple):
    """One split of a set on the disk: `<name>.jsonl.gz` with its rows, and `<name>.json` with where they came from.

    Where either is missing or says too little, nothing is kept.
    """

    path: Path
    told: Mapping[str, Any]


def _fetched(hub_set: HubSet, root: Path) -> list[_Kept]:
    """The set's training split, and its held-out split if it has one."""
    folder = root.absolute() / ".hub"
    splits = [hub_set.split, *([hub_set.test] if hub_set.test else [])]
    kept = [found for split in splits if (found := _find(folder, hub_set, split))]
    if len(kept) == len(splits):
        return kept
    place, commit = reach_data(hub_set.id, hub_set.revision)
    with locked(folder, wait=True):
        return [_find(folder, hub_set, split) or _fetch(folder, hub_set, split, place, commit) for split in splits]


def _asked(hub_set: HubSet, split: str) -> dict[str, Any]:
    """What decides which rows are kept, the revision aside."""
    where = dict(hub_set.where)
    return {"id": hub_set.id, "config": hub_set.config, "split": split, "take": hub_set.take, "where": where}


def _find(folder: Path, hub_set: HubSet, split: str) -> _Kept | None:
    for path in sorted(folder.glob(f"{hub_set.id.replace('/', '--')}-*.json")):
        told = read_json(path)
        rows = path.with_suffix(".jsonl.gz")
        same = {key: told.get(key) for key in _asked(hub_set, split)} == _asked(hub_set, split)
        whole = rows.is_file() and told.keys() >= TOLD
        if same and whole and hub_set.revision in (told.get("asked"), told.get("revision")):
            return _Kept(rows, told)
    return None


def _fetch(folder: Path, hub_set: HubSet, split: str, place: str, commit: str | None) -> _Kept:
    """Streams one split to the disk; the file that says so is written last."""
    asked = {**_asked(hub_set, split), "asked": hub_set.revision}
    key = hashlib.sha256(json.dumps([asked, commit]).encode()).hexdigest()[:8]
    path = folder / f"{hub_set.id.replace('/', '--')}-{split}-{key}.jsonl.gz"
    say(f"fetching {hub_set.id}, {split}" + (f", at most {hub_set.take:,} rows" if hub_set.take else ""))
    count = _write(path, hub_set, split, place, commit if place == hub_set.id else None)
    told = {
        **asked,
        "revision": commit,
        "rows": count["kept"],
        "passed_over": count["passed over"],
        "licence": hub_set.licence,
        "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(path.with_name(path.name.replace(".jsonl.gz", ".json")), told)
    return _Kept(path, told)


def _write(path: Path, hub_set: HubSet, split: str, place: str, revision: str | None) -> Counter[str]:
    """How many rows were kept, and how many were passed over because `where` asks for others."""
    aside = path.with_name(path.name + ".part")
    count: Counter[str] = Counter()
    try:
        with (
            gzip.open(aside, "wt", encoding="utf-8", compresslevel=3) as file,
            bar("fetch", hub_set.take or 0) as shown,
        ):
            for row in _streamed(hub_set, split, place, revision, count):
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                count["kept"] += 1
                shown.update(1)
        if not count["kept"]:
            raise UserError(f"{hub_set.id}, {split} has no row that is wanted; name another revision after @")
        os.replace(aside, path)
    except UserError:
        raise
    except Exception as error:  # of whatever stands between the set and us
        reason = shortened(first_line(error), 200)
        raise UserError(
            f"cannot fetch {hub_set.id}, {split}: {reason}; give the same command again, "
            f"or its files as {option('data', '<folder>')}"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    return count


def _streamed(
    hub_set: HubSet, split: str, place: str, revision: str | None, count: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The rows wanted of a split: of each of its files the same share, since files are often sorted by what they hold."""
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
        left = hub_set.take and hub_set.take - count["kept"]
        share = left and -(-left // (files - number))
        yield from islice(_wanted(hub_set, stream.shard(files, number), count), share)


def _wanted(hub_set: HubSet, rows: Iterable[dict[str, Any]], count: Counter[str]) -> Iterator[dict[str, Any]]:
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


# What the rows say.


def _read(hub_set: HubSet, root: Path, divided: bool) -> Source:
    """A set with its own held-out split, or one row in five, or (`divided` is false) none at all."""
    hub_set = hub_set if divided else dataclasses.replace(hub_set, test=None)
    kept = _fetched(hub_set, root)
    (train, dropped), *test = (_records(hub_set, split) for split in kept)
    held_out = [row for rows, _ in test for row in rows]
    whole = "held out" in hub_set.serves
    told = kept[0].told
    return Source(
        name=hub_set.id + (f"@{told['revision']}" if told["revision"] else ""),
        train=[] if whole else train,
        held_out=train if whole else held_out,
        dropped=sum((left_out for _, left_out in test), dropped),
        notes=[f"{hub_set.id} serves as {', '.join(hub_set.serves)} ({_origin(kept[0])})."],
        undivided=divided and not whole and not test,
        prefix=f"{hub_set.id}: ",
        serves=hub_set.serves,
        metrics=hub_set.metrics,
        recorded=_recorded(hub_set, told),
    )


def _records(hub_set: HubSet, kept: _Kept) -> Readable:
    rows, dropped = different(readable(partial(_record, hub_set), read(kept.path)), f"{hub_set.id}: ")
    if not rows:
        raise UserError(
            f"{hub_set.id}: no row of {kept.path} can be used ({next(iter(dropped))}); name another revision"
        )
    Random(0).shuffle(rows)  # what looks at the first so many sees all kinds, though files are often sorted
    return rows, dropped


def _record(hub_set: HubSet, row: Row) -> Record:
    """What a row says; the chosen answer of a comparison is an example too, for sets that serve as such."""
    record = hub_record(hub_set, row)
    pair = record.comparison
    return record._replace(example=Example(pair.prompt, (pair.chosen,))) if pair else record


def _origin(kept: _Kept) -> str:
    """Where the rows came from, as a note says it."""
    commit = (kept.told["revision"] or "unknown")[:12]
    some = f"{kept.told['rows']:,} rows of {kept.told['split']}"
    return f"{some}, commit {commit}, licence: {kept.told['licence']}; kept as {kept.path.name}"


def _recorded(hub_set: HubSet, told: Mapping[str, Any]) -> dict[str, Any]:
    """What `done.json` keeps of a set."""
    kept = {key: told[key] for key in ("id", "config", "split", "revision", "take", "where", "rows", "passed_over")}
    return kept | {"test": hub_set.test, "licence": hub_set.licence, "serves": list(hub_set.serves)}
