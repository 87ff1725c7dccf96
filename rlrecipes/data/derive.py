"""Makes what training needs and the rows lack from what the rows bring.

"Demonstrations are the best graded answers of each prompt (700 in training, 98 held out)."
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from statistics import median

from rlrecipes.data.layouts import Record
from rlrecipes.data.split import canonical
from rlrecipes.recipe import Comparison, Example, Prompt, Rating, Recipe, Service, Split

Part = tuple[Sequence[Service], Sequence[Record]]
"""What the records of one source serve as, and the records."""

Counts = dict[str, int]
"""A sentence for each thing that was derived, with its count."""


def derive(recipe: Recipe, parts: Sequence[Part]) -> tuple[Split, Counts]:
    """One split of all sources, and the counts of what it lacked and what was derived within it.

    The training rows and the held-out rows go through here apart, so that nothing passes from one to the other.
    """
    counts: Counts = {}
    examples = _examples(parts, "demonstrations", "held out")
    preferences = _serving(parts, "preferences")
    comparisons = [row.comparison for row in preferences if row.comparison]
    ratings = [row.rating for row in _serving(parts, "ratings") if row.rating]
    if examples and comparisons and (unpaired := len(preferences) - len(comparisons)):
        counts["Rows that bring no rejected answer, or the right one as such, give no comparison"] = unpaired
    # Files mix rows of all kinds, and their graded answers stand beside the others; a set of ratings only fills a gap.
    mixed = any({"demonstrations", "ratings"} <= set(services) for services, _ in parts)
    if ratings and (mixed or not (examples and comparisons)):
        groups = _by_prompt(ratings)
        best = _good_answers(groups, counts) if mixed or not examples else []
        pairs = _best_against_worst(groups, counts) if mixed or not comparisons else []
        examples, comparisons = examples + best, comparisons + pairs
    if ratings and not comparisons:
        counts["Ratings that make no pairs teach the reward model by regression"] = len(ratings)
    if not examples:
        examples = [Example(pair.prompt, (pair.chosen,)) for pair in comparisons]
        counts["Demonstrations are the chosen answers of the comparisons"] = len(examples)
    prompts = _merge(examples)
    if recipe.compare and not comparisons and not ratings:
        rng = Random(0)
        comparisons = [pair for example in prompts if (pair := recipe.compare(example, prompts, rng))]
        counts[f"The data bring no preferences: {recipe.compared.rstrip('.')}"] = len(comparisons)
    return Split(examples, _merge(_examples(parts, "prompts", "held out")) or prompts, comparisons, ratings), counts


def derivation_notes(train: Counts, held_out: Counts) -> list[str]:
    """The sentences of both splits' counts, for the console and `Data.notes`."""
    return [
        f"{sentence} ({train.get(sentence, 0):,} in training, {held_out.get(sentence, 0):,} held out)."
        for sentence in {**train, **held_out}
    ]


def _serving(parts: Sequence[Part], *services: Service) -> list[Record]:
    return [row for serves, rows in parts if not set(services).isdisjoint(serves) for row in rows]


def _examples(parts: Sequence[Part], *services: Service) -> list[Example]:
    return [row.example for row in _serving(parts, *services) if row.example]


def _by_prompt(ratings: Sequence[Rating]) -> list[list[Rating]]:
    """Each prompt's graded answers, the best first."""
    groups: dict[Prompt, list[Rating]] = {}
    for rating in ratings:
        groups.setdefault(rating.prompt, []).append(rating)
    return [sorted(group, key=lambda rating: rating.score, reverse=True) for group in groups.values()]


def _alternatives(groups: Sequence[Sequence[Rating]]) -> bool:
    """Whether at least half of the prompts have several answers; a few prompts also recur by chance."""
    return 2 * sum(len(group) > 1 for group in groups) >= len(groups)


def _good_answers(groups: Sequence[Sequence[Rating]], counts: Counts) -> list[Example]:
    """Each prompt's best answer or, where prompts have one answer, those at or above the median."""
    best = [group[0] for group in groups]
    if _alternatives(groups):
        counts["Demonstrations are the best graded answers of each prompt"] = len(best)
    else:
        middle = median(rating.score for rating in best)
        good = [rating for rating in best if rating.score >= middle]
        counts["Answers scored at or above the median serve as demonstrations and references"] = len(good)
        counts["Answers scored below the median do not"] = len(best) - len(good)
        best = good
    return [Example(rating.prompt, (rating.answer,)) for rating in best]


def _best_against_worst(groups: Sequence[Sequence[Rating]], counts: Counts) -> list[Comparison]:
    """A comparison for each prompt whose best answer differs from its worst in text and score."""
    if not _alternatives(groups):
        return []
    pairs = [
        Comparison(best.prompt, best.answer, worst.answer)
        for best, *_, worst in (group for group in groups if len(group) > 1)
        if best.score > worst.score and best.answer != worst.answer
    ]
    counts["Comparisons are the best against the worst graded answer of a prompt"] = len(pairs)
    return pairs


def _merge(examples: Sequence[Example]) -> list[Example]:
    """One example for each prompt and truth, with all its different answers."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(canonical([example.prompt, example.truth]), []).append(example)
    return [
        Example(group[0].prompt, tuple(dict.fromkeys(text for one in group for text in one.answers)), group[0].truth)
        for group in groups.values()
    ]
