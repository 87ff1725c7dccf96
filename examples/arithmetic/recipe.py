"""Arithmetic: the sum of some numbers, learned from a program that checks it; no demonstrations and no reward model.

Add: 3 + 5 + 1 + 4 + 2
-> 3 + 5 = 8, + 1 = 9, + 4 = 13, + 2 = 15
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.arithmetic import builtin

from rlrecipes import metrics
from rlrecipes.recipe import Columns, Evaluation, Example, Prompt, Recipe, Reward, Term, user

TASK = "Add: "
NUMBER = re.compile(r"\d+")


def ask(numbers: Sequence[int]) -> Prompt:
    return user(f"{TASK}{' + '.join(map(str, numbers))}")


def read(row: Mapping[str, Any]) -> Example:
    """One row of a user's own sums, as `7 + 8 + 5`."""
    numbers = [int(number) for number in NUMBER.findall(str(row["numbers"]))]
    if len(numbers) < 2:
        raise ValueError("'numbers' must hold two whole numbers or more")
    return Example(ask(numbers), (str(sum(numbers)),), {"sum": sum(numbers)})


def right(answer: str, example: Example) -> float:
    """1 if the last number of the answer is the sum, else 0."""
    numbers = NUMBER.findall(answer)
    return float(bool(numbers) and int(numbers[-1]) == example.truth["sum"])


RECIPE = Recipe(
    name="arithmetic",
    summary="add some numbers; a program checks the sum, and nothing else teaches it",
    columns=Columns(required=("numbers",), example=read),
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
