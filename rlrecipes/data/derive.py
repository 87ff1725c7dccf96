"""Makes what training needs and the rows lack from what the rows bring.

"Demonstrations are the best graded answers of each prompt (700 in training, 98 held out)."
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mean, median
from typing import NamedTuple

from rlrecipes.data.made import compared
from rlrecipes.data.readers import Record
from rlrecipes.data.split import canonical, halves, set_aside
from rlrecipes.errors import UserError
from rlrecipes.recipe import Comparison, Example, Prompt, Rating, Recipe, Service, Split
from rlrecipes.text import quoted, shortened

Part = tuple[Sequence[Service], Sequence[Record]]
"""What the records of one source serve as, and the records."""

Counts = dict[str, int]
"""A sentence for each thing that was derived, with its count."""


class Grading(NamedTuple):
    """How graded answers are read. The training rows decide it, for the held-out ones too."""

    several: bool
    """Most prompts have several answers, which are compared with each other."""
    least: float
    """The least score of a demonstration; above the lowest score there is, and infinite where all scores are equal."""


def grading_of(parts: Sequence[Part]) -> Grading | None:
    """How the ratings among the parts are to be read; None without ratings."""
    groups = _by_prompt(_averaged(_ratings(parts)))
    if not groups:
        return None
    several = _alternatives(groups)
    scores = [rating.score for group in groups for rating in group]
    above_lowest = min((score for score in scores if score > min(scores)), default=math.inf)
    middle = median(group[0].score for group in groups)
    return Grading(several, above_lowest if several else max(above_lowest, middle))


def derive(
    recipe: Recipe, parts: Sequence[Part], grading: Grading | None, held_out: bool = False
) -> tuple[Split, Counts]:
    """One split of all sources, and the counts of what it lacked and what was derived within it.

    The training rows and the held-out rows go through here apart: nothing but the grading passes from one to the other. An
    answer that the recipe takes from another example stays where that is: in the half of the held-out rows that measures the
    judge, or among the rows that a reward model or the judge learns from, and there among those that choose the best step or
    among the others. A reward model that knew it by heart would look good.
    """
    counts: Counts = {}
    examples = _examples(parts, "demonstrations", "held out")
    preferences = _serving(parts, "preferences")
    comparisons = [row.comparison for row in preferences if row.comparison]
    votes = _ratings(parts)
    ratings = _averaged(votes)
    if len(ratings) < len(votes):
        counts["Scores of one answer to one prompt are votes, and their mean counts"] = len(votes)
        counts["Answers are left with one score each"] = len(ratings)
    if examples and comparisons and (unpaired := len(preferences) - len(comparisons)):
        counts["Rows that bring no rejected answer, or the right one as such, give no comparison"] = unpaired
    # Files mix rows of all kinds, and their graded answers stand beside the others; a set of ratings only fills a gap.
    mixed = any({"demonstrations", "ratings"} <= set(services) for services, _ in parts)
    if grading and ratings and (mixed or not (examples and comparisons)):
        groups = _by_prompt(ratings)
        best = _good_answers(groups, grading, counts) if mixed or not examples else []
        pairs = _best_against_worst(groups, counts) if grading.several and (mixed or not comparisons) else []
        examples, comparisons = examples + best, comparisons + pairs
    if ratings and not comparisons:
        counts["Ratings that make no pairs teach the reward model by regression"] = len(ratings)
    if not examples:
        examples = [Example(pair.prompt, (pair.chosen,)) for pair in comparisons]
        counts["Demonstrations are the chosen answers of the comparisons"] = len(examples)
    prompts, examples = _merge(examples), [example for example in examples if example.answers]
    if not examples and (alone := len(prompts)):
        counts["The rows are prompts without answers"] = alone
    if examples and recipe.compare and not comparisons and not ratings:
        answered = [example for example in prompts if example.answers]
        learned, measured = halves(answered) if held_out else (answered, [])
        pools = *set_aside(learned, [example.prompt for example in learned]), measured
        comparisons, left_out = compared(recipe, pools)
        counts[f"The data bring no preferences: {recipe.compared.rstrip('.')}"] = len(comparisons)
        counts |= {f"Made comparisons are left out: {reason}": count for reason, count in left_out.items()}
    prompts = _merge(_examples(parts, "prompts", "held out")) or prompts
    return Split(examples, _with_columns(prompts, parts), comparisons, ratings), counts


def uniform_mark(parts: Sequence[Part], columns: Mapping[str, str]) -> tuple[str, str]:
    """The column that calls answers good or bad and says the same of all, and a clause on it; two empty texts without one.

    Args:
        columns: the files' own names of the columns that are read under others.
    """
    said: dict[str, Counter[str]] = {}
    for name, value in (mark for _, rows in parts for row in rows for mark in row.marks):
        said.setdefault(name, Counter())[value] += 1
    for name, values in said.items():
        if len(values) == 1:
            value, count = next(iter(values.items()))
            column = columns.get(name, name)
            return column, f"'{column}' is {shortened(value, 20)} in all {count:,} training rows that have it"
    return "", ""


def check_derived(
    name: str, train: Split, held_out: Split, grading: Grading | None, column: str = "", why: str = ""
) -> None:
    """Refuses graded answers of which none is good enough to imitate, or none to judge by.

    Args:
        column: the column that says the same of all, where there is one; `why` says what, and what nobody reads.

    Raises:
        UserError: all grades are equal, or the held-out ones are below all that is imitated.
    """
    if grading and not train.demonstrations:
        score = (*train.ratings, *held_out.ratings)[0].score
        said = why if column else f"{score:g} on average{why}"
        raise UserError(
            f"all grades in {name} are equal: {said}, which tells no good answer from a bad one; "
            f"bring grades that differ{column and f', or take {quoted(column)} out to imitate every answer'}"
        )
    if grading and not held_out.prompts:
        raise UserError(
            f"no held-out answer in {name} is scored {grading.least:g} or more, as what is imitated is; hold out such too"
        )


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


def _ratings(parts: Sequence[Part]) -> list[Rating]:
    return [row.rating for row in _serving(parts, "ratings") if row.rating]


def _averaged(votes: Sequence[Rating]) -> list[Rating]:
    """One rating for each prompt and answer, with the mean of its scores; spaces around an answer make no other one."""
    given: dict[tuple[Prompt, str], list[Rating]] = {}
    for vote in votes:
        given.setdefault((vote.prompt, vote.answer.strip()), []).append(vote)
    return [replace(alike[0], score=mean(vote.score for vote in alike)) for alike in given.values()]


def _by_prompt(ratings: Sequence[Rating]) -> list[list[Rating]]:
    """Each prompt's graded answers, the best first."""
    groups: dict[Prompt, list[Rating]] = {}
    for rating in ratings:
        groups.setdefault(rating.prompt, []).append(rating)
    return [sorted(group, key=lambda rating: rating.score, reverse=True) for group in groups.values()]


def _alternatives(groups: Sequence[Sequence[Rating]]) -> bool:
    """Whether at least half of the prompts have several answers; a few prompts also recur by chance."""
    return 2 * sum(len(group) > 1 for group in groups) >= len(groups)


def _good_answers(groups: Sequence[Sequence[Rating]], grading: Grading, counts: Counts) -> list[Example]:
    """Of each prompt's best answers those with the least score or more."""
    good = [group[0] for group in groups if group[0].score >= grading.least]
    if grading.several:
        counts["Demonstrations are the best graded answers of each prompt"] = len(good)
        left = f"Prompts whose best answer is scored below {grading.least:g} give none"
    else:
        counts[f"Answers scored {grading.least:g} or more serve as demonstrations and references"] = len(good)
        left = f"Answers scored below {grading.least:g} do not"
    if len(good) < len(groups):
        counts[left] = len(groups) - len(good)
    return [Example(rating.prompt, (rating.answer,)) for rating in good]


def _best_against_worst(groups: Sequence[Sequence[Rating]], counts: Counts) -> list[Comparison]:
    """A comparison for each prompt whose best answer differs from its worst in score."""
    pairs = [
        Comparison(best.prompt, best.answer, worst.answer)
        for best, *_, worst in (group for group in groups if len(group) > 1)
        if best.score > worst.score
    ]
    counts["Comparisons are the best against the worst graded answer of a prompt"] = len(pairs)
    return pairs


def _with_columns(prompts: list[Example], parts: Sequence[Part]) -> list[Example]:
    """The prompts with the columns of their row, or of the first of several, where rows have kept them."""
    kept = {row.prompt: row.columns for _, rows in reversed(parts) for row in reversed(rows) if row.columns}
    return [replace(example, columns=kept.get(example.prompt, {})) for example in prompts] if kept else prompts


def _merge(examples: Sequence[Example]) -> list[Example]:
    """One example for each prompt and truth, with all its different answers."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(canonical([example.prompt, example.truth]), []).append(example)
    return [
        replace(group[0], answers=tuple(dict.fromkeys(text for one in group for text in one.answers)))
        for group in groups.values()
    ]
