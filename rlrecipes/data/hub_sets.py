"""A recipe's public sets of the Hugging Face hub, as sources of records.

DATA=hub                                         the recipe's own choice
DATA=hub:trl-lib/tldr,trl-lib/tldr-preference    these
DATA=hub:trl-lib/tldr@a1b2c3d                    of this branch, tag or commit
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from rlrecipes.data.files import Row, read
from rlrecipes.data.layouts import Record, Records, hub_record, read_rows
from rlrecipes.data.split import Source, drop_duplicates
from rlrecipes.errors import UserError, option
from rlrecipes.hub.fetch import Kept, fetch
from rlrecipes.recipe import HUB, Example, HubSet, Recipe, unknown

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


def _read(hub_set: HubSet, root: Path, divided: bool) -> Source:
    """A set with its own held-out split, or one row in five, or (`divided` is false) none at all."""
    hub_set = hub_set if divided else dataclasses.replace(hub_set, test=None)
    kept = fetch(hub_set, root)
    (train, dropped), *test = (_records(hub_set, split) for split in kept)
    held_out = [row for rows, _ in test for row in rows]
    whole = "held out" in hub_set.serves
    record = kept[0].record
    return Source(
        name=hub_set.id + (f"@{record['revision']}" if record["revision"] else ""),
        train=[] if whole else train,
        held_out=train if whole else held_out,
        dropped=sum((left_out for _, left_out in test), dropped),
        notes=[f"{hub_set.id} serves as {', '.join(hub_set.serves)} ({_origin(kept[0])})."],
        undivided=divided and not whole and not test,
        prefix=f"{hub_set.id}: ",
        serves=hub_set.serves,
        metrics=hub_set.metrics,
        recorded=_recorded(hub_set, record),
    )


def _records(hub_set: HubSet, kept: Kept) -> Records:
    rows, dropped = drop_duplicates(read_rows(partial(_record, hub_set), read(kept.path)), f"{hub_set.id}: ")
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


def _origin(kept: Kept) -> str:
    """Where the rows came from, as a note says it."""
    commit = (kept.record["revision"] or "unknown")[:12]
    some = f"{kept.record['rows']:,} rows of {kept.record['split']}"
    return f"{some}, commit {commit}, licence: {kept.record['licence']}; kept as {kept.path.name}"


def _recorded(hub_set: HubSet, record: Mapping[str, Any]) -> dict[str, Any]:
    """What `done.json` keeps of a set."""
    kept = {key: record[key] for key in ("id", "config", "split", "revision", "take", "where", "rows", "passed_over")}
    return kept | {"test": hub_set.test, "licence": hub_set.licence, "serves": list(hub_set.serves)}
