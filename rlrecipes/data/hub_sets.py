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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from rlrecipes.data.derive import Part, completed, from_ratings, merged
from rlrecipes.data.files import Row, read
from rlrecipes.data.layouts import Record, hub_record, missing_column
from rlrecipes.data.load import finished
from rlrecipes.data.split import HELD_OUT, at_most, check_enough, one_in_five, unique, without_prompts_of
from rlrecipes.errors import UserError, first_line
from rlrecipes.hub.reach import reach_data
from rlrecipes.recipe import HUB, Data, Example, HubSet, Recipe, Service, unknown
from rlrecipes.run.console import bar, say
from rlrecipes.run.folder import locked, read_json, write_json
from rlrecipes.text import shortened

TOLD = {"revision", "rows", "passed_over", "licence"}
"""What is recorded of kept rows, beside what decides which they are."""


def load_hub(recipe: Recipe, source: str, root: Path) -> Data:
    """The data that `source` names, fetched into `root/.hub` unless they are there.

    Raises:
        UserError: no such set, none of its rows can be used, or it can be had neither from the hub nor from its cache.
    """
    sets = chosen_sets(recipe, source)
    judged = any("held out" in hub_set.serves for hub_set in sets)
    splits = {hub_set.id: not judged or _is_compared(hub_set) for hub_set in sets}
    sets = [hub_set if splits[hub_set.id] else dataclasses.replace(hub_set, test=None) for hub_set in sets]
    parts = [_read(hub_set, _fetched(hub_set, root), splits[hub_set.id]) for hub_set in sets]
    cut = [at_most(HELD_OUT, part.held_out) for part in parts]
    held_out = [rows for rows, _ in cut]
    train = [without_prompts_of([row for part in parts for row in part.held_out], part.train) for part in parts]
    dropped = sum((part.dropped for part in parts), Counter[str]())
    dropped["prompt is held out"] = sum(len(part.train) - len(rows) for part, rows in zip(parts, train, strict=True))
    pinned = _pinned(parts)
    check_enough(pinned, [row for rows in train for row in rows], [row for rows in held_out for row in rows], dropped)
    notes = [note for part in parts for note in part.notes]
    notes += [f"{part.hub_set.id}: {note}" for part, (_, told) in zip(parts, cut, strict=True) for note in told]
    training, test = (_served(recipe, parts, rows) for rows in (train, held_out))
    data = finished(recipe, pinned, training, test, notes, dict(+dropped))
    own = [metric for part in parts for metric in part.hub_set.metrics if part.held_out]
    return dataclasses.replace(data, metrics=(*data.metrics, *own), hub=[_recorded(part) for part in parts])


def chosen_sets(recipe: Recipe, source: str) -> list[HubSet]:
    """The sets that `source` names, with the revisions it gives them.

    Raises:
        UserError: the recipe has no such set, or names none, or nothing of these would be trained on.
    """
    if not recipe.hub:
        raise UserError(f"{recipe.name} names no data sets of the hub; give files as DATA=…")
    names = source.removeprefix(HUB).removeprefix(":")
    if not names:
        return [hub_set for hub_set in recipe.hub if hub_set.default]
    known = {hub_set.id: hub_set for hub_set in recipe.hub}
    chosen: dict[str, HubSet] = {}
    for name in names.split(","):
        id, at, revision = name.strip().partition("@")
        if id not in known:
            raise UserError(f"DATA={source}: {unknown('data set', id, list(known), 'there are ' + ', '.join(known))}")
        if at and not revision:
            raise UserError(f"DATA={source}: name a branch, a tag or a commit after @, or leave out the @")
        chosen[id] = dataclasses.replace(known[id], revision=revision) if revision else known[id]
    if all("held out" in hub_set.serves for hub_set in chosen.values()):
        other = next(hub_set.id for hub_set in recipe.hub if "held out" not in hub_set.serves)
        raise UserError(
            f"DATA={source} is only held out, and leaves nothing to train on; "
            f"name another set beside it, such as DATA={source},{other}"
        )
    return list(chosen.values())


# Rows, from the hub or from where they were kept.


@dataclass(frozen=True)
class _Kept:
    """One split of a set on the disk: `<name>.jsonl.gz` with its rows, and `<name>.json` with where they came from.

    Where either is missing or says too little, nothing is kept.
    """

    path: Path
    told: Mapping[str, Any]

    @property
    def rows(self) -> list[Row]:
        return read(self.path)


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
    return {
        "id": hub_set.id,
        "config": hub_set.config,
        "split": split,
        "take": hub_set.take,
        "where": dict(hub_set.where),
    }


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
            f"cannot fetch {hub_set.id}, {split}: {reason}; give the same command again, or its files as DATA=<folder>"
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
            f"pin a revision that has it (DATA=hub:{hub_set.id}@<commit>)"
        )


# What the rows say, and what they serve as.


@dataclass(frozen=True)
class _Read:
    """One set, read and split."""

    hub_set: HubSet
    train: list[Record]
    held_out: list[Record]
    dropped: Counter[str]
    notes: list[str]
    told: Mapping[str, Any]
    """Of the split that gives `train`, or `held_out` where that is all."""


def _is_compared(hub_set: HubSet) -> bool:
    """Whether it teaches the reward model, which needs held-out rows of the same kind whatever else is held out."""
    return bool({"preferences", "ratings"} & set(hub_set.serves))


def _read(hub_set: HubSet, kept: Sequence[_Kept], splits: bool = True) -> _Read:
    """The set's own held-out split, or one row in five, or none at all (`splits`) where another set is judged on."""
    dropped: Counter[str] = Counter()
    train, *test = (_records(hub_set, split, dropped) for split in kept)
    notes = [f"{hub_set.id} serves as {', '.join(hub_set.serves)} ({_origin(kept[0])})."]
    held_out = test[0] if test else []
    if "held out" in hub_set.serves:
        train, held_out = [], train
    elif splits and not test:
        train, held_out, note = one_in_five(train)
        notes.append(f"{hub_set.id}: {note.replace('No file is named as held out', 'It has no held-out split')}")
    return _Read(hub_set, train, held_out, dropped, notes, kept[0].told)


def _records(hub_set: HubSet, kept: _Kept, dropped: Counter[str]) -> list[Record]:
    found: list[Record] = []
    reasons: Counter[str] = Counter()
    for row in kept.rows:
        try:
            found.append(hub_record(hub_set, row))
        except ValueError as reason:
            reasons[f"{hub_set.id}: {reason}"] += 1
    if not found:
        raise UserError(
            f"{hub_set.id}: no row of {kept.path} can be used ({next(iter(reasons))}); name another revision"
        )
    different = unique(found)
    Random(0).shuffle(different)  # what looks at the first so many sees all kinds, though files are often sorted
    reasons[f"{hub_set.id}: duplicate row"] += len(found) - len(different)
    dropped.update(reasons)
    return different


def _origin(kept: _Kept) -> str:
    """Where the rows came from, as a note says it."""
    commit = (kept.told["revision"] or "unknown")[:12]
    some = f"{kept.told['rows']:,} rows of {kept.told['split']}"
    return f"{some}, commit {commit}, licence: {kept.told['licence']}; kept as {kept.path.name}"


def _served(recipe: Recipe, read: Sequence[_Read], rows: Sequence[Sequence[Record]]) -> Part:
    """One split of all sets together: each set's rows as what it serves as, and the rest derived."""

    def of(*services: Service) -> list[Record]:
        return [
            row
            for part, some in zip(read, rows, strict=True)
            if set(services) & set(part.hub_set.serves)
            for row in some
        ]

    told: dict[str, int] = {}
    examples = [example for row in of("demonstrations", "held out") if (example := _as_example(row))]
    comparisons = [row.comparison for row in of("preferences") if row.comparison]
    ratings = [row.rating for row in of("ratings") if row.rating]
    if ratings and not (examples and comparisons):
        graded: dict[str, int] = {}
        best, pairs = from_ratings(ratings, graded)
        told |= {sentence: number for sentence, number in graded.items() if not examples or "omparisons" in sentence}
        examples, comparisons = examples or best, comparisons or pairs
    part = completed(recipe, examples, comparisons, ratings, told)
    prompts = merged([example for row in of("prompts", "held out") if (example := _as_example(row))])
    return dataclasses.replace(part, prompts=prompts or part.prompts)


def _as_example(row: Record) -> Example | None:
    pair = row.comparison
    return row.example or (Example(pair.prompt, (pair.chosen,)) if pair else None)


def _recorded(part: _Read) -> dict[str, Any]:
    """What `done.json` keeps of a set."""
    told = {
        key: part.told[key] for key in ("id", "config", "split", "revision", "take", "where", "rows", "passed_over")
    }
    return told | {"test": part.hub_set.test, "licence": part.hub_set.licence, "serves": list(part.hub_set.serves)}


def _pinned(parts: Sequence[_Read]) -> str:
    """The DATA that gives exactly these rows again."""
    pinned = (part.told["id"] + (f"@{part.told['revision']}" if part.told["revision"] else "") for part in parts)
    return f"{HUB}:{','.join(pinned)}"
