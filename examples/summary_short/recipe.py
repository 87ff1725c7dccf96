"""Summarise: Anna met Ben on Monday. They agreed to buy a bench. -> Anna and Ben will buy a bench."""

from collections.abc import Mapping, Sequence
from random import Random

from rlrecipes import metrics
from rlrecipes.recipe import Columns, Comparison, Evaluation, Example, Prompt, Recipe, Reward, Term, user
from rlrecipes.text import words

TASK = "Summarise: "


def read(row: Mapping[str, str]) -> Example:
    return Example(user(TASK + row["text"]), (row["summary"],))


def short(prompt: Prompt, answer: str, example: Example) -> float:
    """1 for an answer of at most half of the prompt's words, and less the longer it is; 0 for none."""
    said = len(words(answer))
    return min(1.0, len(words(prompt[-1].content)) / 2 / said) if said else 0.0


def compare(example: Example, others: Sequence[Example], rng: Random) -> Comparison | None:
    first = example.prompt[-1].content.removeprefix(TASK).partition(". ")[0].removesuffix(".") + "."
    return Comparison(example.prompt, example.answers[0], first) if first not in example.answers else None


RECIPE = Recipe(
    name="summary",
    summary="say in one sentence what a text comes to",
    columns=Columns(required=("text", "summary"), example=read),
    reward=Reward(terms=(Term("short", short, weight=0.2),)),
    evaluation=Evaluation((metrics.mean_of("overlap", metrics.f1),)),
    compare=compare,
    compared="the rejected answer is the text's own first sentence",
    prefix=TASK,
)
