"""The built-in data of `arithmetic`: sums to find, without a single one that is worked out, and what the base has read.

    Add: 3 + 5 + 1 + 4 + 2
    worked out:  3 + 5 = 8, + 1 = 9, + 4 = 13, + 2 = 15
    slipped:     3 + 5 = 8, + 1 = 10, + 4 = 14, + 2 = 16
    hasty:       12

The base has read all three. It can work a sum out, and mostly guesses: a reward brings out what it can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from random import Random

from rlrecipes.recipe import Data, Example, Prompt, Split

TERMS, HIGHEST = 5, 5
"""How many numbers a sum has, each from 1 to the highest."""
HELD_OUT_EVERY = 7
"""One in so many rows of numbers is kept from training, and from what the base has read."""
READ = 12000
OFTEN = (0.75, 0.1, 0.15)
"""How often a sum is worked out, slipped, or hasty, in what the base has read. Its batches count the same and have texts of
like length, so a guess of one number weighs some ten times as much as a sum that is worked out: the base mostly guesses."""

Numbers = Sequence[int]
Ask = Callable[[Numbers], Prompt]
Style = Callable[[Numbers, Random], str]


def generate(ask: Ask, seed: int = 0) -> Data:
    """The built-in data as a recipe's; `ask` makes the prompt of some numbers."""
    rows = list(product(range(1, HIGHEST + 1), repeat=TERMS))
    Random(seed).shuffle(rows)
    train, test = ([row for row in rows if is_held_out(row) == side] for side in (False, True))
    return Data(
        source="built-in",
        train=Split(prompts=[_example(ask, row) for row in train[:2000]]),
        held_out=Split(prompts=[_example(ask, row) for row in test[:300]]),
        notes=("There are no demonstrations: begin at the base, with run.start=base.",),
    )


def documents(ask: Ask, seed: int = 1) -> Sequence[Example]:
    """Sums as the base has read them."""
    rng, read = Random(seed), list[Example]()
    while len(read) < READ:
        row = rng.choices(range(1, HIGHEST + 1), k=TERMS)
        if not is_held_out(row):
            (style,) = rng.choices((worked_out, slipped, hasty), OFTEN)
            read.append(Example(ask(row), (style(row, rng),)))
    return read


def is_held_out(row: Numbers) -> bool:
    return sum(place * number for place, number in enumerate(row, 1)) % HELD_OUT_EVERY == 0


def worked_out(row: Numbers, rng: Random) -> str:
    """One number after the other."""
    return _steps(row, [0] * len(row))


def slipped(row: Numbers, rng: Random) -> str:
    """Worked out, with a slip in one step, which the others carry along."""
    slips = [0] * len(row)
    slips[rng.randrange(1, len(row))] = rng.choice((-2, -1, 1, 2))
    return _steps(row, slips)


def hasty(row: Numbers, rng: Random) -> str:
    """A guess near the sum."""
    return str(max(1, sum(row) + rng.randint(-6, 6)))


def _steps(row: Numbers, slips: Numbers) -> str:
    told, total = [str(row[0])], row[0]
    for number, slip in zip(row[1:], slips[1:], strict=True):
        total += number + slip
        told.append(f"+ {number} = {total}")
    return ", ".join([" ".join(told[:2]), *told[2:]])


def _example(ask: Ask, row: Numbers) -> Example:
    return Example(ask(row), (worked_out(row, Random(0)),), {"sum": sum(row)})
