"""What a row says of its two answers beside which one was chosen: a tie, a winner, scores, a margin.

    {"prompt": "Hello!", "response_a": "What?", "response_b": "Hello, you!", "winner": "model_b", "is_tie": false}

is `Comparison(user("Hello!"), "Hello, you!", "What?")`.
"""

from __future__ import annotations

import math
import re

from rlrecipes.data.files import Row
from rlrecipes.data.turns import is_empty, wrong
from rlrecipes.recipe import Comparison, Prompt, spelled, truth_of

TIES = ("is_tie", "tie")
SCORES = tuple(
    (name.format("chosen"), name.format("rejected"))
    for word in ("score", "rating", "reward")
    for name in (f"{{}}_{word}", f"{word}_{{}}", f"{{}}-{word}")
)
"""The columns of the two answers' scores: `chosen_score`, `score_chosen`, Argilla's `chosen-rating`, …"""
WINNER = "winner"
BESIDE_PAIR = ("margin", *TIES, WINNER, *(name for pair in SCORES for name in pair))
"""The columns that are read beside two answers."""
NO_WINNER = ("tie", "draw", "tie (bothbad)", "both_bad", "both bad", "bothbad", "both", "neither", "none")
"""What a winner may be called that is neither answer; the third is LMSYS's."""
OTHER_NAME = "mend the row, or give the column another name to do without it"

Sides = tuple[str, str]
"""The column of the better answer, and that of the other."""
CHOSEN: Sides = ("chosen", "rejected")


def compared(row: Row, prompt: Prompt, chosen: str, rejected: str) -> Comparison:
    """The comparison of two answers, unless the row says elsewhere that the chosen one is no better.

    Raises:
        ValueError: the row is a tie, or its scores contradict it.
        UserError: a value is of the wrong type.
    """
    for name in TIES:
        if not is_empty(said := row.values.get(name)):
            if (tied := truth_of(said)) is None:
                raise wrong(row, name, "true or false", said, OTHER_NAME)
            if tied:
                raise ValueError(f"'{name}' is true")
    return Comparison(prompt, chosen, rejected, margin=_margin(row))


def sides_of(row: Row, sides: Sides) -> Sides:
    """The columns of two answers in the order that the column 'winner' gives them; as they are beside chosen ones.

    Raises:
        ValueError: it names neither.
        UserError: it names something else.
    """
    said = row.values.get(WINNER)
    if is_empty(said) and sides == CHOSEN:
        return sides
    if is_empty(said) or spelled(said) in NO_WINNER:
        raise ValueError("'winner' names neither answer")
    if spelled(said) in (sides[0], *([] if sides == CHOSEN else ["a", "model_a"])):
        return sides
    if sides != CHOSEN and spelled(said) in (sides[1], "b", "model_b"):
        return sides[::-1]
    known = "chosen or tie" if sides == CHOSEN else f"model_a, model_b, a, b, {sides[0]}, {sides[1]} or tie"
    raise wrong(row, WINNER, known, said, OTHER_NAME)


def _margin(row: Row) -> float | None:
    """TRL's name for how much better the chosen answer is; else the difference of two scores; a row may go without."""
    gaps = [_gap(row, *names) for names in SCORES if not any(is_empty(row.values.get(name)) for name in names)]
    if row.values.get("margin") is not None:
        return number_of(row, "margin", 0, "a finite number, 0 or more")
    return gaps[0] if gaps else None


def lone_scores(row: Row) -> set[str]:
    """The columns of scores that a row has for one of its answers alone: nothing is read of them."""
    pairs = ({name for name in names if not is_empty(row.values.get(name))} for names in SCORES)
    return {name for there in pairs if len(there) == 1 for name in there}


def _gap(row: Row, chosen: str, rejected: str) -> float:
    one, other = (number_of(row, name, -math.inf, "a finite number", OTHER_NAME) for name in (chosen, rejected))
    if one == other:
        raise ValueError(f"a tie: '{chosen}' equals '{rejected}'")
    if one < other:
        raise ValueError(f"'{chosen}' is below '{rejected}'")
    return one - other


DECIMALS = re.compile(r"[+-]?\d+,(?!\d{3}$)\d+")
"""A number as spreadsheets write it in half of Europe; `1,500` may be fifteen hundred, and is refused."""


def number_of(row: Row, column: str, least: float, expected: str, todo: str = "mend the row") -> float:
    """The number in a column, also one that is written as text, with a point or a comma before its decimals.

    Raises:
        UserError: it holds none, or one below `least`.
    """
    value = row.values[column]
    written = value
    if isinstance(value, str) and "," in value:
        todo = "write decimals with a point"
        written = value.replace(",", ".") if DECIMALS.fullmatch(value.strip()) else value
    try:
        number = math.nan if isinstance(value, bool) or "_" in str(value) else float(written)  # Python reads 1_2 as 12
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= least):
        raise wrong(row, column, expected, value, todo)
    return number
