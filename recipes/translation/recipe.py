"""Translation: say a sentence in another language.

Translate: Gestern hat der alte Lehrer das Buch gelesen.
-> Yesterday the old teacher read the book.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from recipes.translation import builtin, hub
from rlrecipes import metrics
from rlrecipes.recipe import Columns, Comparison, Evaluation, Example, Prompt, Recipe, Reward, Term, user
from rlrecipes.text import characters, is_spaced

TASK = "Translate: "


def ask(source: str) -> Prompt:
    return user(f"{TASK}{source}")


def read(row: Mapping[str, Any]) -> Example:
    """One row of a user's parallel text."""
    for name in ("source", "target"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"'{name}' must be a text that is not empty")
    return Example(ask(row["source"].strip()), (row["target"].strip(),))


def compare(example: Example, others: Sequence[Example], rng: Random) -> Comparison | None:
    """The translation against another sentence's (a wrong content) or against a garbled one (a wrong form)."""
    if not example.answers:
        return None
    target = example.answers[0]
    foreign = rng.choice(others).answers[:1] if others and rng.random() < 0.5 else ()
    worse = foreign[0] if foreign and foreign[0] not in example.answers else garbled(target, rng)
    return Comparison(example.prompt, target, worse) if worse.strip() and worse not in example.answers else None


def garbled(text: str, rng: Random) -> str:
    """The words in random order, about a third of them left out or said twice: as long as before, on average."""
    spaced = is_spaced(text)  # Chinese is not; there, pairs of characters play the words
    letters = [] if spaced else characters(text)
    pieces = text.split() if spaced else ["".join(letters[i : i + 2]) for i in range(0, len(letters), 2)]
    kept = [piece for piece in pieces for _ in range(rng.choice((0, 1, 1, 1, 1, 2)))]
    rng.shuffle(kept)
    return (" " if spaced else "").join(kept)


def closeness(prompt: Prompt, answer: str, example: Example) -> float:
    """chrF against the references, 0 where there are none to compare with."""
    return metrics.chrf(answer, example) if example.answers else 0.0


RECIPE = Recipe(
    name="translation",
    summary="translate a sentence; the built-in data are German to English",
    columns=Columns(required=("source", "target"), example=read, optional=("rejected",)),
    reward=Reward(terms=(Term("chrf", closeness, weight=0.3),)),
    evaluation=Evaluation((
        metrics.mean_of("chrf", metrics.chrf),
        metrics.bleu(),
        metrics.ter(),
        metrics.mean_of("exact_match", metrics.same_words),
    )),
    builtin=lambda: builtin.generate(ask),
    documents=lambda: builtin.documents(ask),
    compare=compare,
    compared="the rejected answer is another sentence's translation or the right words garbled",
    hub=hub.SETS,
    prefix=TASK,
)  # fmt: skip
