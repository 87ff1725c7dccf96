"""A recipe's public sets of the Hugging Face hub, as sources of records.

DATA=hub                                         the recipe's default sets
DATA=hub:trl-lib/tldr,trl-lib/tldr-preference    these two sets
DATA=hub:trl-lib/tldr@a1b2c3d                    one set at a branch, tag or commit
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from rlrecipes.data.files import Row, read
from rlrecipes.data.layouts import Records, hub_record, read_rows, said_of
from rlrecipes.data.readers import Record
from rlrecipes.data.split import Source, once_each
from rlrecipes.errors import UserError, option
from rlrecipes.hub.fetch import Kept, fetch
from rlrecipes.recipe import HUB, Example, HubSet, Recipe, unknown

REWARD_SERVICES = {"preferences", "ratings"}
"""What rows serve as when the reward model learns from them."""


def read_sets(recipe: Recipe, source: str, root: Path) -> list[Source]:
    """The sets that `source` names, fetched into `root/.hub` unless they are there.

    Where one of them is held out whole, only the sets that teach the reward model hold out rows of their own: its
    accuracy is measured on held-out rows of the same kind.

    Raises:
        UserError: no such set, none of its rows can be used, or neither the hub nor its cache gives it.
    """
    sets = chosen_sets(recipe, source)
    any_whole = any("held out" in hub_set.serves for hub_set in sets)
    return [
        _read(hub_set, root, not any_whole or not REWARD_SERVICES.isdisjoint(hub_set.serves), recipe.columns.keep)
        for hub_set in sets
    ]


def chosen_sets(recipe: Recipe, source: str) -> list[HubSet]:
    """The sets that `source` names, with the revisions it gives them.

    Raises:
        UserError: the recipe has no such set or none at all, or all of them are held out.
    """
    if not recipe.hub:
        raise UserError(f"{recipe.name} names no data sets of the hub; give files as {option('data')}")
    names = source.removeprefix(HUB).removeprefix(":")
    if not names:
        return [hub_set for hub_set in recipe.hub if hub_set.default]
    known = {hub_set.id: hub_set for hub_set in recipe.hub}
    sets: dict[str, HubSet] = {}
    for name in names.split(","):
        id, at, revision = name.strip().partition("@")
        if id not in known:
            others = f"there are {', '.join(known)}"
            raise UserError(f"{option('data', source)}: {unknown('data set', id, list(known), others)}")
        if at and not revision:
            raise UserError(f"{option('data', source)}: name a branch, a tag or a commit after @, or leave out the @")
        sets[id] = dataclasses.replace(known[id], revision=revision) if revision else known[id]
    if all("held out" in hub_set.serves for hub_set in sets.values()):
        other = next(hub_set.id for hub_set in recipe.hub if "held out" not in hub_set.serves)
        raise UserError(
            f"{option('data', source)} is only held out, and leaves nothing to train on; "
            f"name another set beside it, such as {option('data', f'{source},{other}')}"
        )
    return list(sets.values())


def _read(hub_set: HubSet, root: Path, hold_out: bool, keep: bool) -> Source:
    """One set as a source.

    A set that serves as held out is held out whole. Of the others, `hold_out` holds out the test split or, where there is
    none, one row in five. With `keep`, rows keep their columns.
    """
    hub_set = hub_set if hold_out else dataclasses.replace(hub_set, test=None)
    splits = fetch(hub_set, root)
    (train, drops), *test = (_records(hub_set, split, keep) for split in splits)
    held_out = [row for rows, _ in test for row in rows]
    whole = "held out" in hub_set.serves
    record = splits[0].record
    return Source(
        name=hub_set.id + (f"@{record['revision']}" if record["revision"] else ""),
        train=[] if whole else train,
        held_out=train if whole else held_out,
        drops=[*drops, *(drop for _, drops in test for drop in drops)],
        notes=[f"{hub_set.id} serves as {', '.join(hub_set.serves)} ({_origin(splits[0])})."],
        undivided=hold_out and not whole and not test,
        prefix=f"{hub_set.id}: ",
        serves=hub_set.serves,
        metrics=hub_set.metrics,
        record=_set_record(hub_set, record),
    )


def _records(hub_set: HubSet, split: Kept, keep: bool) -> Records:
    rows, drops = once_each(read_rows(partial(_record, hub_set, keep), read(split.path), said_of(hub_set)))
    drops = [drop._replace(reason=f"{hub_set.id}: {drop.reason}") for drop in drops]
    if not rows:
        raise UserError(f"{hub_set.id}: no row of {split.path} can be used ({drops[0].reason}); name another revision")
    Random(0).shuffle(rows)  # files are often sorted, and readers of the first rows should see all kinds
    return rows, drops


def _record(hub_set: HubSet, keep: bool, row: Row) -> Record:
    """A row's record. The chosen answer of a comparison is also an example, for sets that serve as demonstrations too."""
    record = hub_record(hub_set, row)
    record = dataclasses.replace(record, columns=row.values) if keep else record
    pair = record.comparison
    return dataclasses.replace(record, example=Example(pair.prompt, (pair.chosen,))) if pair else record


def _origin(split: Kept) -> str:
    """Where the rows came from, for the set's note."""
    record = split.record
    commit = (record["revision"] or "unknown")[:12]
    rows = f"{record['rows']:,} rows of {record['split']}"
    return f"{rows}, commit {commit}, licence: {record['licence']}; kept as {split.path.name}"


def _set_record(hub_set: HubSet, record: Mapping[str, Any]) -> dict[str, Any]:
    """The set's entry in `done.json`."""
    origin = {key: record[key] for key in ("id", "config", "split", "revision", "take", "where", "rows", "passed_over")}
    return origin | {"test": hub_set.test, "licence": hub_set.licence, "serves": list(hub_set.serves)}
