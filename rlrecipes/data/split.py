"""What is trained on and what is held out: drawn by the prompt, so that a prompt is never on both sides.

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
"""Held-out prompts of a source that are kept: more make evaluation slow and its interval hardly narrower."""

AS_READ: tuple[Service, ...] = ("demonstrations", "preferences", "ratings")
"""What rows of files serve as: whatever their layout says."""


@dataclass(frozen=True)
class Source:
    """The records of one place: of all files together, or of one public set. A row stands in it once."""

    name: str
    """The path, or `<id>@<revision>`."""
    train: list[Record]
    held_out: list[Record]
    dropped: Counter[str]
    """Rows left out of both, by reason."""
    notes: Sequence[str] = ()
    undivided: bool = False
    """Nothing is marked as held out: one row in five of `train` is to be drawn."""
    prefix: str = ""
    """What its own notes and reasons begin with, such as `wmt/wmt14: `."""
    serves: tuple[Service, ...] = AS_READ
    metrics: tuple[Metric, ...] = ()
    """Metrics for its held-out rows."""
    recorded: Mapping[str, Any] | None = None
    """What `done.json` keeps of a public set."""


def drop_duplicates(read: Records, prefix: str = "") -> Records:
    """The records in their order, each only where it first stands; the others are counted, all reasons behind `prefix`."""
    rows, reasons = read
    kept = list(reversed({canonical(row): row for row in reversed(rows)}.values()))
    reasons = reasons + Counter({"duplicate row": len(rows) - len(kept)})
    return kept, Counter({prefix + reason: count for reason, count in reasons.items()})


def hold_out_fifth(source: Source) -> Source:
    """Draws by the prompt alone, so that appended rows never move old ones and a prompt is never on both sides."""
    if not source.undivided:
        return source
    held_out = [row for row in source.train if draw(row.prompt) % 5 == 0]
    train = [row for row in source.train if draw(row.prompt) % 5 != 0]
    why = source.prefix + ("It has no held-out split" if source.prefix else "No file is named as held out")
    note = f"{why}, so {len(held_out):,} of {len(source.train):,} rows are, drawn by their prompts."
    return dataclasses.replace(source, train=train, held_out=held_out, notes=[*source.notes, note])


def draw(prompt: Prompt) -> int:
    return int(hashlib.sha256(canonical(prompt).encode()).hexdigest(), 16)


def without_held_out_prompts(sources: Sequence[Source]) -> tuple[list[Source], int]:
    """The sources without the training rows whose prompt any of them holds out, and how many such there were."""
    prompts = {row.prompt for source in sources for row in source.held_out}
    clear = [[row for row in source.train if row.prompt not in prompts] for source in sources]
    count = sum(len(source.train) for source in sources) - sum(map(len, clear))
    return [dataclasses.replace(source, train=rows) for source, rows in zip(sources, clear, strict=True)], count


def check_enough(name: str, sources: Sequence[Source], dropped: Counter[str]) -> None:
    """Refuses what leaves fewer than two rows to train on, or none to judge by, with what was left out."""
    train = sum(len(source.train) for source in sources)
    left_out = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
    why = f" (left out: {left_out})" if left_out else ""
    if train < 2:
        raise UserError(f"{name} leaves {train} rows to train on{why}; give at least 2, with prompts of their own")
    if not any(source.held_out for source in sources):
        todo = "give more rows with different prompts, or a folder with train.jsonl and test.jsonl"
        raise UserError(f"{name} leaves no rows to hold out for evaluation, of {train}{why}; {todo}")


def at_most(limit: int, source: Source) -> tuple[Source, list[str]]:
    """With the held-out records of `limit` prompts, drawn by hash since files are often sorted, and a note if that cuts."""
    prompts = {row.prompt for row in source.held_out}
    if len(prompts) <= limit:
        return source, []
    kept = set(sorted(prompts, key=draw)[:limit])
    note = (
        f"{source.prefix}Of {len(prompts):,} held-out prompts {limit:,} are kept; the others are not trained on either."
    )
    return dataclasses.replace(source, held_out=[row for row in source.held_out if row.prompt in kept]), [note]


def sample_by_hash(limit: int, examples: Sequence[Example]) -> list[Example]:
    """`limit` examples in their order, drawn by hash of the prompt: the first ones of a sorted file would be of one kind."""
    chosen = sorted(range(len(examples)), key=lambda i: draw(examples[i].prompt))[:limit]
    return [examples[i] for i in sorted(chosen)]


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: field for name, field in vars(value).items() if not (name == "margin" and field is None)}
    if isinstance(value, Mapping):
        return dict(value)
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
