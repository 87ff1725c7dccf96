"""The built-in data of `arithmetic`: sums to find, without a single one that is worked out, and what the base has read.

    Add: 47 + 38
    worked out:  7 + 8 = 15, 4 + 3 + 1 = 8: 85
    slipped:     7 + 8 = 16, 4 + 3 + 1 = 8: 86
    hasty:       75

The base has read people who mostly guess. It can work a sum out, and seldom does: a reward brings that out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from rlrecipes.recipe import Data, Example, Prompt, Split

HELD_OUT_EVERY = 7
"""One in so many pairs of numbers is kept from training, and from what the base has read."""
READ = 8000
OFTEN = (0.25, 0.15, 0.6)
"""How often a sum is worked out, slipped, or hasty, in what the base has read."""

Ask = Callable[[int, int], Prompt]
Style = Callable[[int, int, Random], str]


def generate(ask: Ask, seed: int = 0) -> Data:
    """The built-in data as a recipe's; `ask` makes the prompt of two numbers."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    Random(seed).shuffle(pairs)
    train = [_example(ask, a, b) for a, b in pairs if not is_held_out(a, b)]
    test = [_example(ask, a, b) for a, b in pairs if is_held_out(a, b)]
    return Data(
        source="built-in",
        train=Split(prompts=train[:2000]),
        held_out=Split(prompts=test[:300]),
        notes=("There are no demonstrations: begin at the base, with run.start=base.",),
    )


def documents(ask: Ask, seed: int = 1) -> Sequence[Example]:
    """Sums as the base has read them: mostly hasty, some slipped, a quarter worked out."""
    rng, read = Random(seed), list[Example]()
    while len(read) < READ:
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        if not is_held_out(a, b):
            (style,) = rng.choices((worked_out, slipped, hasty), OFTEN)
            read.append(Example(ask(a, b), (style(a, b, rng),)))
    return read


def is_held_out(a: int, b: int) -> bool:
    return (3 * a + b) % HELD_OUT_EVERY == 0


def worked_out(a: int, b: int, rng: Random) -> str:
    """Units, then tens with what is carried, then the sum."""
    return _steps(a, b, a % 10 + b % 10)


def slipped(a: int, b: int, rng: Random) -> str:
    """Worked out, with a slip in the units."""
    return _steps(a, b, max(0, a % 10 + b % 10 + rng.choice((-2, -1, 1, 2))))


def hasty(a: int, b: int, rng: Random) -> str:
    """A guess near the sum: right one time in ten."""
    return str(a + b + rng.choice((-20, -10, -10, -2, -1, 0, 1, 2, 10, 20)))


def _steps(a: int, b: int, units: int) -> str:
    tens, carried = a // 10 + b // 10 + units // 10, f" + {units // 10}" if units > 9 else ""
    return f"{a % 10} + {b % 10} = {units}, {a // 10} + {b // 10}{carried} = {tens}: {10 * tens + units % 10}"


def _example(ask: Ask, a: int, b: int) -> Example:
    return Example(ask(a, b), (worked_out(a, b, Random(0)),), {"sum": a + b})
