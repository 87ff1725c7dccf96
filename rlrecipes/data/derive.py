"""What training needs and the rows do not bring, made from what they do bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

from rlrecipes.data.layouts import Record
from rlrecipes.data.split import canonical
from rlrecipes.recipe import Comparison, Example, Prompt, Rating, Recipe

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


def complete(recipe: Recipe, rows: Sequence[Record]) -> Part:
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
    if recipe.compare and not comparisons and not ratings:
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
        groups.setdefault(canonical([example.prompt, example.truth]), []).append(example)
    return [
        Example(
            first.prompt, tuple(dict.fromkeys([*first.answers, *(a for e in others for a in e.answers)])), first.truth
        )
        for first, *others in groups.values()
    ]


def derivation_notes(training: Part, held_out: Part) -> list[str]:
    sentences = {**training.told, **held_out.told}
    return [
        f"{sentence} ({training.told.get(sentence, 0):,} in training, {held_out.told.get(sentence, 0):,} held out)."
        for sentence in sentences
    ]
