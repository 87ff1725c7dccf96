"""Text generation: continue the opening of a review or a story, fluently and in good spirits.

Continue: The new film my sister saw on Friday
-> was charming, and the acting was so perfect that everyone smiled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from recipes.text_generation import builtin, hub, judge
from recipes.text_generation.texts import LABELS, cut, disordered, form_of, in_form, label_of, verses
from rlrecipes import metrics
from rlrecipes.recipe import Columns, Comparison, Evaluation, Example, Metric, Prompt, Recipe, Reward, Term, user
from rlrecipes.text import words

TASK = "Continue: "


def ask(opening: str) -> Prompt:
    return user(f"{TASK}{opening}")


def read(row: Mapping[str, Any]) -> Example:
    """A text, cut into opening and continuation, with its label if it has one and its form if it is a Chinese poem."""
    opening, continuation = cut(row["text"])
    return Example(ask(opening), (continuation,), label_of(row.get("label")) | form_of(row["text"]))


def compare(example: Example, others: Sequence[Example], rng: Random) -> Comparison | None:
    """A positive text's continuation against a negative one's, or, without labels, against itself in disorder.

    The labelled pair stands under either text's opening: were it always the positive one, a reward model could prefer
    what fits the opening and never look at the sentiment.
    """
    label, answer = example.truth.get("label"), example.answers[0]
    if label is None:
        rejected = disordered(answer, rng)
        return Comparison(example.prompt, answer, rejected) if rejected != answer else None
    drawn = (rng.choice(others) for _ in range(100 if others else 0))  # one in twenty is found, without a pass over all
    opposite = next((other for other in drawn if other.truth.get("label") == 1 - label), None)
    if opposite is None or opposite.answers[0] == answer:
        return None
    better, worse = (example, opposite) if label else (opposite, example)
    return Comparison(rng.choice((example, opposite)).prompt, better.answers[0], worse.answers[0])


def fluent(prompt: Prompt, answer: str, example: Example) -> float:
    """1 for six words or more that do not repeat themselves, less for fewer words and for repeated word trigrams."""
    return min(1.0, len(words(answer)) / 6) * (1 - metrics.repetition(answer, example))


def form(prompt: Prompt, answer: str, example: Example) -> float:
    """The share of a poem's further verses that have as many characters as its first; 1: all, in whole couplets."""
    return in_form(verses(answer), example.truth["form"])


def readable(held_out: Sequence[Example]) -> bool:
    """Whether the texts are in a language whose praise and blame are known; there is nothing to count in others."""
    return judge.reads([" ".join((example.prompt[-1].content, *example.answers)) for example in held_out])


def unreadable(held_out: Sequence[Example]) -> bool:
    return not readable(held_out)


def caution(demonstrations: Sequence[Example]) -> str | None:
    """How many of the texts that SFT imitates are labelled negative: it learns to write both, and PPO what is preferred."""
    negative = sum(example.truth.get("label") == 0 for example in demonstrations)
    if not negative:
        return None
    return (
        f"Of the {len(demonstrations):,} texts that SFT imitates, {negative:,} are labelled negative: it learns to write "
        "both, and PPO what is preferred. If SFT should not, leave these rows out and bring comparisons."
    )


def fitted_judge(held_out: Sequence[Example]) -> Metric | None:
    """The mean P(positive | continuation) by a judge fitted to the labelled held-out texts; None without labels.

    A probability, not a verdict: a doubtful text then counts for half, and the mean tells two policies apart sooner.
    """
    labelled = [example for example in held_out if "label" in example.truth]
    texts = [f"{example.prompt[-1].content.removeprefix(TASK)} {example.answers[0]}" for example in labelled]
    probability = judge.fitted(texts, [example.truth["label"] for example in labelled])
    return metrics.mean_of("positive", lambda answer, example: probability(answer)) if probability else None


RECIPE = Recipe(
    name="text_generation",
    summary="continue a review or a story so that it is fluent and positive; English and Chinese",
    columns=Columns(required=("text",), example=read, optional=("label",), values={"label": LABELS}),
    reward=Reward(terms=(Term("fluent", fluent, weight=3.0), Term("form", form, weight=1.0, needs="form"))),
    evaluation=Evaluation((
        metrics.mean_of("well_formed", lambda answer, example: float(form((), answer, example) == 1), needs="form"),
        metrics.mean_of("positive", lambda answer, example: float(judge.is_positive(answer)), applies=readable),
        metrics.mean_of("fluent", lambda answer, example: fluent((), answer, example), applies=unreadable),
        metrics.mean_of("repetition", metrics.repetition),
        metrics.distinct(2),
        metrics.mean_of("length", metrics.length),
    )),
    builtin=lambda: builtin.generate(ask),
    documents=lambda: builtin.documents(ask),
    compare=compare,
    compared="the rejected answer is a negative text's continuation or, without labels, the answer's words in disorder",
    caution=caution,
    judge=fitted_judge,
    hub=hub.sets(ask),
    prefix=TASK,
)  # fmt: skip
