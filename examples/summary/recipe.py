"""Summary: minutes of a meeting in one sentence that says what was decided.

Summarise: Anna met Ben on Monday. They talked about the garden. They agreed to buy a bench.
-> Anna and Ben will buy a bench for the garden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from recipes.summary import builtin

from rlrecipes import metrics
from rlrecipes.recipe import Columns, Comparison, Evaluation, Example, Prompt, Recipe, Reward, Term, user
from rlrecipes.text import words

TASK = "Summarise: "


def ask(text: str) -> Prompt:
    return user(f"{TASK}{text}")


def read(row: Mapping[str, Any]) -> Example:
    """One row of a user's own texts."""
    for name in ("text", "summary"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"'{name}' must be a text that is not empty")
    return Example(ask(row["text"].strip()), (row["summary"].strip(),))


def facts(answer: str, example: Example) -> float:
    """Share of the facts that one sentence names; further sentences are not read."""
    told = set(words(answer.partition(". ")[0]))
    wanted: Sequence[str] = example.truth["facts"]
    return sum(fact.lower() in told for fact in wanted) / len(wanted)


def short(prompt: Prompt, answer: str, example: Example) -> float:
    """1 for an answer of at most half of the text's words, and less the longer it is; 0 for none."""
    said, told = len(words(answer)), len(words(prompt_text(prompt)))
    return min(1.0, told / 2 / said) if said else 0.0


def compare(example: Example, others: Sequence[Example], rng: Random) -> Comparison | None:
    """The summary against the text's own first sentence."""
    first = prompt_text(example.prompt).partition(". ")[0]
    if not example.answers or not first or first in example.answers:
        return None
    return Comparison(example.prompt, example.answers[0], f"{first.removesuffix('.')}.")


def prompt_text(prompt: Prompt) -> str:
    return prompt[-1].content.removeprefix(TASK)


RECIPE = Recipe(
    name="summary",
    summary="say in one sentence what minutes of a meeting decided",
    columns=Columns(required=("text", "summary"), example=read),
    reward=Reward(terms=(Term("short", short, weight=0.2),)),
    evaluation=Evaluation((
        metrics.mean_of("facts", facts, needs="facts"),
        metrics.mean_of("overlap", metrics.f1),
        metrics.mean_of("rouge_2", metrics.rouge("rouge2")),
        metrics.mean_of("rouge_l", metrics.rouge("rougeL")),
        metrics.mean_of("length", metrics.length),
    )),
    builtin=lambda: builtin.generate(ask),
    documents=lambda: builtin.documents(ask),
    compare=compare,
    compared="the rejected answer is the text's own first sentence",
    prefix=TASK,
)  # fmt: skip
