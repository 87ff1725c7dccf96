"""A recipe's data: the built-in world, or files of the user's own (`hub` has the public data sets).

    data/train.jsonl, row 1: {"prompt": "Hello!", "completion": "Hello, what can I do for you?", "score": 0.9}

gives a `Rating`. What training needs and the files do not bring (a held-out split, demonstrations, comparisons) is made
here from what they do bring, and told in `Data.notes`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from rlrecipes.errors import UserError
from rlrecipes.files import find
from rlrecipes.formats import Record, check_names, records
from rlrecipes.recipe import BUILT_IN, Comparison, Data, Example, Prompt, Rating, Recipe

HELD_OUT = 1000
"""Held-out prompts that are kept: more make evaluation slow and its interval hardly narrower."""

_TEST = re.compile(r"(?<![a-z])(test|eval)(set|s|uation)?(?![a-z])")
_VALIDATION = re.compile(r"(?<![a-z])(val|valid|validation|dev)(set)?(?![a-z])")


def load(recipe: Recipe, source: str | None, columns: Mapping[str, str]) -> Data:
    """The data of a recipe: its built-in world, or what the file or folder `source` holds.

    `columns` says which column of the files is read under which name: `{"target": "post_edit"}`.

    Raises:
        UserError: whatever is wrong with the files, in one sentence.
    """
    if source in (None, BUILT_IN):
        if columns:
            raise UserError(
                "--columns maps the columns of a file, but no file is named; name one with DATA=… or --data"
            )
        return recipe.builtin()
    check_names(recipe, columns)
    train, held_out, dropped, notes = _split(recipe, source, columns)
    return finished(recipe, source, _complete(recipe, train), _complete(recipe, held_out), notes, dropped)


def finished(
    recipe: Recipe, source: str, training: Part, judged: Part, notes: list[str], dropped: Mapping[str, int]
) -> Data:
    """The data of two splits, with a judge fitted to the held-out one where the recipe has such."""
    judge = recipe.judge(judged.prompts) if recipe.judge else None
    if judge:
        notes.append(f"The metric {judge.name} is a judge fitted to the held-out rows alone.")
    return Data(
        source=source,
        demonstrations=training.demonstrations,
        prompts=training.prompts,
        comparisons=training.comparisons,
        held_out=judged.prompts,
        held_out_comparisons=judged.comparisons,
        ratings=training.ratings,
        held_out_ratings=judged.ratings,
        notes=notes + _told(training, judged),
        dropped=dropped,
        metrics=(judge,) if judge else (),
    )


def fingerprint(data: Data) -> str:
    """16 hex digits that change with anything that is trained on or judged by, and not with where it was read from."""
    parts = (
        data.demonstrations,
        data.prompts,
        data.comparisons,
        data.held_out,
        data.held_out_comparisons,
        data.ratings,
        *((data.held_out_ratings,) if data.held_out_ratings else ()),  # data without any keep the fingerprint they had
    )
    return hashlib.sha256(_canonical([list(part) for part in parts]).encode()).hexdigest()[:16]


# What is trained on, and what is held out.


def _split(
    recipe: Recipe, source: str, columns: Mapping[str, str]
) -> tuple[list[Record], list[Record], dict[str, int], list[str]]:
    """Training records, held-out records, rows dropped by reason, and notes on how the two were told apart."""
    train_files, held_out_files, notes = _files(source)
    train, dropped = _gather(recipe, train_files, columns)
    held_out, dropped_there = _gather(recipe, held_out_files, columns)
    if not held_out_files:
        train, held_out, note = one_in_five(train)
        notes.append(note)
    kept = without_prompts_of(held_out, train)
    reasons = dropped + dropped_there + Counter({"prompt is held out": len(train) - len(kept)})
    check_enough(source, kept, held_out, reasons)
    held_out, cut = at_most(HELD_OUT, held_out)
    return kept, held_out, dict(+reasons), notes + cut


def _files(source: str) -> tuple[list[Path], list[Path], list[str]]:
    """Files of the training split, files of the held-out split (none where no name says so), and notes."""
    paths = find(source)
    if not Path(source).expanduser().is_dir():
        return paths, [], []
    tests = [path for path in paths if _TEST.search(path.name.lower())]
    validations = [path for path in paths if path not in tests and _VALIDATION.search(path.name.lower())]
    train = [path for path in paths if path not in tests and path not in validations]
    notes = [f"{path.name} is not used, since the folder has a test split." for path in validations if tests]
    held_out = tests or validations
    if held_out:
        notes.append(f"The held-out split is {', '.join(path.name for path in held_out)}.")
    return train, held_out, notes


def _gather(recipe: Recipe, paths: Sequence[Path], columns: Mapping[str, str]) -> tuple[list[Record], Counter[str]]:
    kept: list[Record] = []
    dropped: Counter[str] = Counter()
    for path in paths:
        found, reasons = records(recipe, path, columns)
        kept += found
        dropped += reasons
    different = unique(kept)
    dropped["duplicate row"] += len(kept) - len(different)
    return different, dropped


def unique(rows: Sequence[Record]) -> list[Record]:
    """The rows in their order, each only where it first stands."""
    return list(reversed({_canonical(row): row for row in reversed(rows)}.values()))


def one_in_five(rows: Sequence[Record]) -> tuple[list[Record], list[Record], str]:
    """Draws by the prompt alone, so that appended rows never move old ones and a prompt is never on both sides."""
    held_out = [row for row in rows if _draw(row.prompt) % 5 == 0]
    train = [row for row in rows if _draw(row.prompt) % 5 != 0]
    note = f"No file is named as held out, so {len(held_out):,} of {len(rows):,} rows are, drawn by their prompts."
    return train, held_out, note


def _draw(prompt: Prompt) -> int:
    return int(hashlib.sha256(_canonical(prompt).encode()).hexdigest(), 16)


def without_prompts_of(held_out: Sequence[Record], train: Sequence[Record]) -> list[Record]:
    prompts = {row.prompt for row in held_out}
    return [row for row in train if row.prompt not in prompts]


def check_enough(source: str, train: Sequence[Any], held_out: Sequence[Any], dropped: Counter[str]) -> None:
    left_out = ", ".join(f"{reason}: {count}" for reason, count in dropped.items() if count)
    why = f" (left out: {left_out})" if left_out else ""
    if len(train) < 2:
        raise UserError(
            f"{source} leaves {len(train)} rows to train on{why}; give at least 2, with prompts of their own"
        )
    if not held_out:
        todo = "give more rows with different prompts, or a folder with train.jsonl and test.jsonl"
        raise UserError(f"{source} leaves no rows to hold out for evaluation, of {len(train)}{why}; {todo}")


def at_most(limit: int, held_out: list[Record]) -> tuple[list[Record], list[str]]:
    """The records of `limit` prompts, drawn by hash since files are often sorted, and a note if that cuts."""
    prompts = {row.prompt for row in held_out}
    if len(prompts) <= limit:
        return held_out, []
    kept = set(sorted(prompts, key=_draw)[:limit])
    note = f"Of {len(prompts):,} held-out prompts {limit:,} are kept; the others are not trained on either."
    return [row for row in held_out if row.prompt in kept], [note]


def drawn(limit: int, examples: Sequence[Example]) -> list[Example]:
    """`limit` examples in their order, drawn by hash of the prompt: the first ones of a sorted file would be of one kind."""
    chosen = sorted(range(len(examples)), key=lambda i: _draw(examples[i].prompt))[:limit]
    return [examples[i] for i in sorted(chosen)]


# What the rows do not bring.


@dataclass(frozen=True)
class Part:
    """Everything that one split gives."""

    demonstrations: list[Example]
    prompts: list[Example]
    comparisons: list[Comparison]
    ratings: list[Rating]
    told: Mapping[str, int]
    """What was derived, with how many there are of it."""


def _complete(recipe: Recipe, rows: Sequence[Record]) -> Part:
    """Derives demonstrations and comparisons within one split, so that neither split knows of the other."""
    told: dict[str, int] = {}
    examples = [row.example for row in rows if row.example]
    comparisons = [row.comparison for row in rows if row.comparison]
    ratings = [row.rating for row in rows if row.rating]
    alone = sum(row.comparison is None for row in rows)
    if examples and comparisons and alone:
        told["Rows that bring no rejected answer, or the right one as such, give no comparison"] = alone
    if ratings:
        best, pairs = from_ratings(ratings, told)
        examples, comparisons = examples + best, comparisons + pairs
    return completed(recipe, examples, comparisons, ratings, told)


def completed(
    recipe: Recipe,
    examples: list[Example],
    comparisons: list[Comparison],
    ratings: list[Rating],
    told: dict[str, int],
) -> Part:
    """One split with what it lacks derived from what it has; `told` takes up what was, with how many there are of it."""
    if ratings and not comparisons:
        told["Ratings that make no pairs teach the reward model by regression"] = len(ratings)
    if not examples:
        examples = [Example(pair.prompt, (pair.chosen,)) for pair in comparisons]
        told["Demonstrations are the chosen answers of the comparisons"] = len(examples)
    prompts = merged(examples)
    if not comparisons and not ratings:
        rng = Random(0)
        comparisons = [pair for example in prompts if (pair := recipe.compare(example, prompts, rng))]
        told[f"The data bring no preferences: {recipe.compared.rstrip('.')}"] = len(comparisons)
    return Part(examples, prompts, comparisons, ratings, told)


def from_ratings(ratings: Sequence[Rating], told: dict[str, int]) -> tuple[list[Example], list[Comparison]]:
    """Demonstrations and comparisons; a few prompts that recur by chance do not make a file one of graded alternatives."""
    by_prompt: dict[Prompt, list[Rating]] = {}
    for rating in ratings:
        by_prompt.setdefault(rating.prompt, []).append(rating)
    groups = [sorted(group, key=lambda rating: rating.score, reverse=True) for group in by_prompt.values()]
    if 2 * sum(len(group) > 1 for group in groups) < len(groups):
        return _at_or_above_median([group[0] for group in groups], told), []
    pairs = [
        Comparison(best.prompt, best.answer, worst.answer)
        for best, *_, worst in (group for group in groups if len(group) > 1)
        if best.score > worst.score and best.answer != worst.answer
    ]
    told["Demonstrations are the best graded answers of each prompt"] = len(groups)
    told["Comparisons are the best against the worst graded answer of a prompt"] = len(pairs)
    return [Example(best.prompt, (best.answer,)) for best, *_ in groups], pairs


def _at_or_above_median(ratings: Sequence[Rating], told: dict[str, int]) -> list[Example]:
    middle = median(rating.score for rating in ratings)
    good = [Example(rating.prompt, (rating.answer,)) for rating in ratings if rating.score >= middle]
    told["Answers scored at or above the median serve as demonstrations and references"] = len(good)
    told["Answers scored below the median do not"] = len(ratings) - len(good)
    return good


def merged(examples: Sequence[Example]) -> list[Example]:
    """One example for each prompt and truth, with all its different answers."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(_canonical([example.prompt, example.truth]), []).append(example)
    return [
        Example(
            first.prompt, tuple(dict.fromkeys([*first.answers, *(a for e in others for a in e.answers)])), first.truth
        )
        for first, *others in groups.values()
    ]


def _told(training: Part, held_out: Part) -> list[str]:
    sentences = {**training.told, **held_out.told}
    return [
        f"{sentence} ({training.told.get(sentence, 0):,} in training, {held_out.told.get(sentence, 0):,} held out)."
        for sentence in sentences
    ]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: field for name, field in vars(value).items() if not (name == "margin" and field is None)}
    if isinstance(value, Mapping):
        return dict(value)
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
