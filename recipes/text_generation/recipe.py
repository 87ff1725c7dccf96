"""Text generation: continue the opening of a review or a story, fluently and in good spirits.

    Continue: The new film my sister saw on Friday
    -> was charming, and the acting was so perfect that everyone smiled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from recipes.text_generation import builtin, judge
from rlrecipes import metrics
from rlrecipes.recipe import Comparison, Evaluation, Example, Native, Prompt, Recipe, Reward, Term, user
from rlrecipes.text import words

TASK = "Continue: "
LABELS = {"1": 1, "1.0": 1, "true": 1, "pos": 1, "positive": 1, "0": 0, "0.0": 0, "false": 0, "neg": 0, "negative": 0}


def ask(opening: str) -> Prompt:
    return user(f"{TASK}{opening}")


def read(row: Mapping[str, Any]) -> Example:
    """A text, cut into opening and continuation, and its label if it has one."""
    text, label = row["text"], row.get("label")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"'text' must be a text that is not empty, not {text!r}")
    if label not in (None, "") and str(label).strip().lower() not in LABELS:
        raise ValueError(f"'label' must be 1, 0, 'positive' or 'negative', not {label!r}")
    opening, continuation = cut(text.strip())
    truth = {} if label in (None, "") else {"label": LABELS[str(label).strip().lower()]}
    return Example(ask(opening), (continuation,), truth)


def cut(text: str) -> tuple[str, str]:
    """The first five words and the rest; of unspaced text (Chinese), the first clause or else the first six characters."""
    if len(words(text)) < 8:
        raise ValueError("'text' has fewer than 8 words, too few to cut into an opening and its continuation")
    spaced = len(text.split()) >= max(6, len(words(text)) / 2)
    pattern = r"(?:\S+\s+){4}\S+" if spaced else r"\w{3,11}[，。！？；：、,.!?;:](?=\W*\w)|.{6}"
    end = re.match(pattern, text, re.DOTALL)
    assert end  # six runs without a space, or eight words' characters
    return text[: end.end()], text[end.end() :].strip()


def compare(example: Example, others: Sequence[Example], rng: Random) -> Comparison | None:
    """A positive continuation against a negative text's, or, without labels, against itself in disorder.

    The labelled pair stands under either text's opening: were it always the positive one, a reward model could prefer
    what fits the opening and never look at the sentiment.
    """
    label, answer = example.truth.get("label"), example.answers[0]
    if label is None:
        pieces = answer.split() if " " in answer else list(answer)
        rejected = (" " if " " in answer else "").join(rng.sample(pieces, len(pieces)))
        return Comparison(example.prompt, answer, rejected) if rejected != answer else None
    negative = next((other for other in _drawn(others, rng) if other.truth.get("label") == 0), None)
    if label == 0 or negative is None or negative.answers[0] == answer:
        return None
    return Comparison(rng.choice((example, negative)).prompt, answer, negative.answers[0])


def _drawn(others: Sequence[Example], rng: Random) -> list[Example]:
    """A hundred draws: enough to meet a label that a twentieth of the rows have, and no pass over all of them."""
    return rng.choices(others, k=100) if others else []


def fluent(prompt: Prompt, answer: str, example: Example) -> float:
    """1 for six words or more that do not repeat themselves, less for fewer words and for repeated word trigrams."""
    return min(1.0, len(words(answer)) / 6) * (1 - metrics.repetition(answer, example))


def fitted_judge(held_out: Sequence[Example]) -> metrics.Metric | None:
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
    builtin=lambda: builtin.generate(ask),
    documents=lambda: builtin.documents(ask),
    native=Native(required=("text",), example=read, optional=("label",)),
    reward=Reward(terms=(Term("fluent", fluent, weight=0.3),)),
    evaluation=Evaluation((
        metrics.mean_of("positive", lambda answer, example: float(judge.is_positive(answer))),
        metrics.mean_of("repetition", metrics.repetition),
        metrics.distinct(2),
        metrics.mean_of("length", metrics.length),
    )),
    compare=compare,
    compared="the rejected answer is a negative text's continuation or, without labels, the answer's words in disorder",
    judge=fitted_judge,
)  # fmt: skip
