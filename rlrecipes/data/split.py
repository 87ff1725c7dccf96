"""Splits rows into training and held-out ones by their prompt, so that a prompt is never on both sides.

"No file is named as held out, so 509 of 2,500 rows are, drawn by their prompts."
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rlrecipes.data.layouts import Records
from rlrecipes.data.readers import Record
from rlrecipes.data.reasons import Drop, counted
from rlrecipes.errors import UserError
from rlrecipes.recipe import Comparison, Example, Metric, Prompt, Rating, Service
from rlrecipes.text import shortened

T = TypeVar("T")

HELD_OUT = 1000
"""Most held-out prompts of a source: more make evaluation slow and its interval hardly narrower."""

ASIDE, LEAST_ASIDE = 256, 20
"""Training rows that say which step to keep: at most, and the fewest that can."""

SLICE, SAMPLES = 64, 8
"""Prompts by which PPO is looked at while it trains: training prompts that are set aside, at most, and held-out ones that are
answered for its log."""

AS_READ: tuple[Service, ...] = ("demonstrations", "preferences", "ratings")
"""What rows of files serve as; the layout decides which of these a row brings."""


@dataclass(frozen=True)
class Source:
    """The records of all files together, or of one public set. A row stands in it once."""

    name: str
    """The path, or `<id>@<revision>`."""
    train: list[Record]
    held_out: list[Record]
    drops: list[Drop]
    """Rows left out of both."""
    notes: Sequence[str] = ()
    unread: Sequence[str] = ()
    """Notes on what of its rows nobody reads."""
    undivided: bool = False
    """Nothing is marked as held out: `hold_out_fifth` draws one row in five of `train`."""
    prefix: str = ""
    """Stands before its own notes and reasons, such as `wmt/wmt14: `."""
    serves: tuple[Service, ...] = AS_READ
    metrics: tuple[Metric, ...] = ()
    """Metrics for its held-out rows."""
    record: Mapping[str, Any] | None = None
    """A public set's entry in `done.json`."""


def once_each(read: Records) -> Records:
    """The records in their order, of equal ones the first. Each row of ratings is a vote and stays.

    Rows that say the opposite of two answers to a prompt are votes too: the comparison that more rows make stays, and none
    where as many make either.
    """
    rows, drops = _without_contradictions(read)
    votes = Counter(_comparison(row) for row in rows if row.comparison)
    contents = ["" if row.rating else canonical([row.prompt, row.example, row.comparison]) for row in rows]
    seen = {""}
    kept, drops = [], list(drops)
    for row, content in zip(rows, contents, strict=True):
        for_it, against = (votes[_comparison(row)], votes[_comparison(row)[::-1]]) if row.comparison else (1, 0)
        if for_it <= against:
            many = "more" if for_it < against else "as many"
            drops.append(Drop(f"{many} rows prefer its rejected answer to the chosen one", row.place))
        elif content in seen and content:
            drops.append(Drop("duplicate row", row.place))
        else:
            kept.append(row)
        seen.add(content)
    return kept, drops


def _without_contradictions(read: Records) -> Records:
    """The records without texts that as many rows or more label differently."""
    rows, drops = read
    votes: dict[object, Counter[object]] = {}
    labelled = [(row.prompt, row.example.answers) if row.example and row.marks else None for row in rows]
    for row, text in zip(rows, labelled, strict=True):
        votes.setdefault(text, Counter())[row.marks] += 1
    kept, drops = [], list(drops)
    for row, text in zip(rows, labelled, strict=True):
        if text and any(count >= votes[text][row.marks] for marks, count in votes[text].items() if marks != row.marks):
            drops.append(Drop("as many rows or more label the same text differently", row.place))
        else:
            kept.append(row)
    return kept, drops


def _comparison(row: Record) -> tuple[str, Prompt, str]:
    """Chosen answer, prompt, rejected answer: its reverse is the opposite comparison, whatever spaces stand around them."""
    assert row.comparison
    return row.comparison.chosen.strip(), row.prompt, row.comparison.rejected.strip()


def hold_out_fifth(source: Source) -> Source:
    """Holds out about one row in five of an undivided source, and notes it.

    The prompt alone decides, so that appended rows never move old ones and a prompt is never on both sides. Of prompts that
    are nearly the same, the first decides for all.
    """
    if not source.undivided:
        return source
    first: dict[Prompt, Prompt] = {}
    drawn = [draw(first.setdefault(plain(row.prompt), row.prompt)) % 5 == 0 for row in source.train]
    held_out = [row for row, out in zip(source.train, drawn, strict=True) if out]
    train = [row for row, out in zip(source.train, drawn, strict=True) if not out]
    why = source.prefix + ("It has no held-out split" if source.prefix else "No file is named as held out")
    note = f"{why}, so {len(held_out):,} of {len(source.train):,} rows are, drawn by their prompts."
    return dataclasses.replace(source, train=train, held_out=held_out, notes=[*source.notes, note])


def plain(prompt: Prompt) -> Prompt:
    """What prompts that are nearly the same share: they differ in case, in spaces, or in how Unicode composes a letter."""
    return tuple(
        message._replace(content=" ".join(unicodedata.normalize("NFC", message.content).casefold().split()))
        for message in prompt
    )


def draw(prompt: Prompt) -> int:
    """A prompt's number in every draw: its SHA-256, the same in each process and on each machine."""
    return int(hashlib.sha256(canonical(prompt).encode()).hexdigest(), 16)


def without_held_out_prompts(sources: Sequence[Source]) -> tuple[list[Source], list[Drop]]:
    """The sources without the training rows whose prompt, or nearly the same one, any source holds out, and these rows."""
    prompts = {plain(row.prompt) for source in sources for row in source.held_out}
    clean, drops = [], []
    for source in sources:
        clashes = [plain(row.prompt) in prompts for row in source.train]
        rows = [row for row, clash in zip(source.train, clashes, strict=True) if not clash]
        clean.append(dataclasses.replace(source, train=rows))
        drops += [
            Drop("prompt is held out", row.place) for row, clash in zip(source.train, clashes, strict=True) if clash
        ]
    return clean, drops


def check_enough(name: str, sources: Sequence[Source], drops: Sequence[Drop]) -> None:
    """Refuses data without two rows to train on and one held out.

    Raises:
        UserError: with the commonest reason of the rows left out, and its count.
    """
    train = sum(len(source.train) for source in sources)
    reason, count = max(counted(drops).items(), key=lambda reason: reason[1], default=("", 0))
    why = f" (left out: {shortened(reason, 120)}: {count})" if reason else ""
    why += unread_clause(sources)
    if train < 2:
        raise UserError(f"{name} leaves {train} rows to train on{why}; give at least 2, with prompts of their own")
    if not any(source.held_out for source in sources):
        todo = "give more rows with different prompts, or a folder with train.jsonl and test.jsonl"
        raise UserError(f"{name} leaves no rows to hold out for evaluation, of {train}{why}; {todo}")


def unread_clause(sources: Sequence[Source]) -> str:
    """What nobody reads, in brackets for an error, which comes before the notes; empty where all is read."""
    others = shortened(" ".join(note for source in sources for note in source.unread), 100)
    return f" [{others}]" if others else ""


def at_most(limit: int, source: Source) -> tuple[Source, list[str]]:
    """The source with the held-out records of at most `limit` prompts, and a note if that cuts.

    A hash draws the prompts, since files are often sorted.
    """
    prompts = {row.prompt for row in source.held_out}
    if len(prompts) <= limit:
        return source, []
    sample = set(sorted(prompts, key=draw)[:limit])
    note = (
        f"{source.prefix}Of {len(prompts):,} held-out prompts {limit:,} are kept; the others are not trained on either."
    )
    return dataclasses.replace(source, held_out=[row for row in source.held_out if row.prompt in sample]), [note]


Prompted = TypeVar("Prompted", Example, Comparison, Rating)
"""A row with a prompt."""


def sample_by_hash(limit: int, examples: Sequence[Prompted]) -> list[Prompted]:
    """At most `limit` rows in their order, drawn by hash of the prompt: a sorted file begins with one kind."""
    indices = sorted(range(len(examples)), key=lambda i: draw(examples[i].prompt))[:limit]
    return [examples[i] for i in sorted(indices)]


def set_aside(rows: Sequence[T], prompts: Sequence[Prompt], most: int = ASIDE) -> tuple[list[T], list[T]]:
    """The training rows without about a tenth of them, and that tenth, `most` at most; a prompt, one a row, is on one side.

    The second list is empty where it would have fewer than `LEAST_ASIDE` rows.
    """
    room, places = min(most, len(rows) // 10), set[int]()
    groups: dict[Prompt, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(plain(prompt), []).append(place)
    for prompt in sorted(groups, key=draw):
        if len(places) + len(groups[prompt]) <= room:
            places.update(groups[prompt])
    if len(places) < LEAST_ASIDE:
        return list(rows), []
    return [row for i, row in enumerate(rows) if i not in places], [rows[i] for i in sorted(places)]


def halves(rows: Sequence[Prompted]) -> tuple[list[Prompted], list[Prompted]]:
    """The rows in two parts, drawn by hash of the prompt; prompts that are nearly the same go together."""
    even = [draw(plain(row.prompt)) % 2 == 0 for row in rows]
    first, second = ([row for row, own in zip(rows, even, strict=True) if own == side] for side in (True, False))
    return first, second


def canonical(value: Any) -> str:
    """JSON that is the same for equal values, for hashes and comparisons; keys are sorted."""
    return json.dumps(value, sort_keys=True, default=_plain)


def _is_beside(name: str, field: Any) -> bool:
    """Whether a field does not tell rows apart: a margin that is not there, and what a reward's functions read beside."""
    return (name == "margin" and field is None) or name == "columns"


def _plain(value: Any) -> Any:
    """What JSON cannot hold, as what it can. A missing margin is left out: rows from before margins keep their hash."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: field for name, field in vars(value).items() if not _is_beside(name, field)}
    if isinstance(value, Mapping):
        return dict(value)
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
