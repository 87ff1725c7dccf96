"""Arithmetic: the sum of two numbers, learned from a program that checks it; no demonstrations and no reward model.

Add: 47 + 38
-> 7 + 8 = 15, 4 + 3 + 1 = 8: 85
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from recipes.arithmetic import builtin

from rlrecipes import metrics
from rlrecipes.recipe import Columns, Evaluation, Example, Prompt, Recipe, Reward, Term, user

TASK = "Add: "
NUMBER = re.compile(r"\d+")


def ask(first: int, second: int) -> Prompt:
    return user(f"{TASK}{first} + {second}")


def read(row: Mapping[str, Any]) -> Example:
    """One row of a user's own sums."""
    try:
        first, second = int(row["first"]), int(row["second"])
    except (TypeError, ValueError):
        raise ValueError("'first' and 'second' must be whole numbers") from None
    return Example(ask(first, second), (str(first + second),), {"sum": first + second})


def right(answer: str, example: Example) -> float:
    """1 if the last number of the answer is the sum, else 0."""
    numbers = NUMBER.findall(answer)
    return float(bool(numbers) and int(numbers[-1]) == example.truth["sum"])


RECIPE = Recipe(
    name="arithmetic",
    summary="add two numbers; a program checks the sum, and nothing else teaches it",
    columns=Columns(required=("first", "second"), example=read),
    reward=Reward(
        learned=0.0,
        terms=(Term("right", lambda prompt, answer, example: right(answer, example), weight=1.0, needs="sum"),),
    ),
    evaluation=Evaluation((
        metrics.mean_of("right", right, needs="sum"),
        metrics.mean_of("length", metrics.length),
    )),
    builtin=lambda: builtin.generate(ask),
    documents=lambda: builtin.documents(ask),
    prefix=TASK,
)  # fmt: skip
