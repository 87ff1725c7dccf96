"""Splits rows into training and held-out ones by their prompt, so that a prompt is never on both sides.

"No file is named as held out, so 509 of 2,500 rows are, drawn by their prompts."
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlrecipes.data.layouts import Record, Records
from rlrecipes.errors import UserError
from rlrecipes.recipe import Example, Metric, Prompt, Service

HELD_OUT = 1000
"""Most held-out prompts of a source: more make evaluation slow and its interval hardly narrower."""

AS_READ: tuple[Service, ...] = ("demonstrations", "preferences", "ratings")
"""What rows of files serve as; the layout decides which of these a row brings."""


@dataclass(frozen=True)
class Source:
    """The records of all files together, or of one public set. A row stands in it once."""

    name: str
    """The path, or `<id>@<revision>`."""
    train: list[Record]
    held_out: list[Record]
    dropped: Counter[str]
    """Rows left out of both, by reason."""
    notes: Sequence[str] = ()
    undivided: bool = False
    """Nothing is marked as held out: `hold_out_fifth` draws one row in five of `train`."""
    prefix: str = ""
    """Stands before its own notes and reasons, such as `wmt/wmt14: `."""
    serves: tuple[Service, ...] = AS_READ
    metrics: tuple[Metric, ...] = ()
    """Metrics for its held-out rows."""
    record: Mapping[str, Any] | None = None
    """A public set's entry in `done.json`."""


def drop_duplicates(read: Records, prefix: str = "") -> Records:
    """The records in their order without repetitions, which are counted as a reason; `prefix` opens every reason."""
    rows, reasons = read
    unique = list(reversed({canonical(row): row for row in reversed(rows)}.values()))
    reasons = reasons + Counter({"duplicate row": len(rows) - len(unique)})
    return unique, Counter({prefix + reason: count for reason, count in reasons.items()})


def hold_out_fifth(source: Source) -> Source:
    """Holds out about one row in five of an undivided source, and notes it.

    The prompt alone decides, so that appended rows never move old ones and a prompt is never on both sides.
    """
    if not source.undivided:
        return source
    held_out = [row for row in source.train if draw(row.prompt) % 5 == 0]
    train = [row for row in source.train if draw(row.prompt) % 5 != 0]
    why = source.prefix + ("It has no held-out split" if source.prefix else "No file is named as held out")
    note = f"{why}, so {len(held_out):,} of {len(source.train):,} rows are, drawn by their prompts."
    return dataclasses.replace(source, train=train, held_out=held_out, notes=[*source.notes, note])


def draw(prompt: Prompt) -> int:
    """A prompt's number in every draw: its SHA-256, the same in each process and on each machine."""
    return int(hashlib.sha256(canonical(prompt).encode()).hexdigest(), 16)


def without_held_out_prompts(sources: Sequence[Source]) -> tuple[list[Source], int]:
    """The sources without the training rows whose prompt any source holds out, and the number of these rows."""
    prompts = {row.prompt for source in sources for row in source.held_out}
    clean = [[row for row in source.train if row.prompt not in prompts] for source in sources]
    count = sum(len(source.train) for source in sources) - sum(map(len, clean))
    return [dataclasses.replace(source, train=rows) for source, rows in zip(sources, clean, strict=True)], count


def check_enough(name: str, sources: Sequence[Source], dropped: Counter[str]) -> None:
    """Refuses data without two rows to train on and one held out.

    Raises:
        UserError: with the reasons and counts of the rows left out.
    """
    train = sum(len(source.train) for source in sources)
    reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
    why = f" (left out: {reasons})" if reasons else ""
    if train < 2:
        raise UserError(f"{name} leaves {train} rows to train on{why}; give at least 2, with prompts of their own")
    if not any(source.held_out for source in sources):
        todo = "give more rows with different prompts, or a folder with train.jsonl and test.jsonl"
        raise UserError(f"{name} leaves no rows to hold out for evaluation, of {train}{why}; {todo}")


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


def sample_by_hash(limit: int, examples: Sequence[Example]) -> list[Example]:
    """At most `limit` examples in their order, drawn by hash of the prompt: a sorted file begins with one kind."""
    indices = sorted(range(len(examples)), key=lambda i: draw(examples[i].prompt))[:limit]
    return [examples[i] for i in sorted(indices)]


def canonical(value: Any) -> str:
    """JSON that is the same for equal values, for hashes and comparisons; keys are sorted."""
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON cannot hold, as what it can. A missing margin is left out: rows from before margins keep their hash."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: field for name, field in vars(value).items() if not (name == "margin" and field is None)}
    if isinstance(value, Mapping):
        return dict(value)
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
