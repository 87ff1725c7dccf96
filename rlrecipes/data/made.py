"""What a recipe's own functions make of its data: comparisons, a word of caution, a judge.

    compare(Example(user("Say it: Das Kind liest."), ("The child reads.",)), others, rng)
        -> Comparison(…, chosen="The child reads.", rejected="The child sleeps.")

They get copies of the examples. What they raise is told by its kind and its place: its text may hold a row's words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, TypeVar

from rlrecipes.data.layouts import check
from rlrecipes.data.readers import Record
from rlrecipes.errors import OwnCodeError, UserError, own_code, place_of
from rlrecipes.recipe import Comparison, Data, Example, Metric, Recipe, lent

T = TypeVar("T")


def builtin_of(recipe: Recipe) -> Data:
    """The recipe's built-in data.

    Raises:
        UserError: it raises, or gives no data.
    """
    assert recipe.builtin is not None
    data = _given(recipe, "builtin", Data, recipe.builtin)
    if data is None:
        raise _odd(recipe, "builtin", None, Data)
    return data


def documents_of(recipe: Recipe) -> list[Example]:
    """What the recipe's embedded base reads; nothing where it has no documents.

    Raises:
        UserError: it raises, or gives something other than examples.
    """
    if recipe.documents is None:
        return []
    texts = list(_given(recipe, "documents", Sequence, recipe.documents) or ())  # type: ignore[type-abstract]
    for text in texts:
        if not isinstance(text, Example):
            raise _odd(recipe, "documents", text, Example)
    return texts


def compared(recipe: Recipe, pools: Sequence[Sequence[Example]]) -> tuple[list[Comparison], dict[str, int]]:
    """What `compare` makes of each example and of those in its pool, and how many it made that teach nothing, by the reason.

    Raises:
        UserError: it raises, or gives something other than a comparison or None.
    """
    assert recipe.compare is not None
    rng, pairs, left_out = Random(0), list[Comparison](), dict[str, int]()
    for pool in pools:
        copies = [lent(example) for example in pool]
        for example in copies:
            pair = _given(recipe, "compare", Comparison, recipe.compare, example, copies, rng)
            if pair is None:
                continue
            try:
                check(Record(pair.prompt, comparison=pair))
                pairs.append(pair)
            except ValueError as error:
                left_out[str(error)] = left_out.get(str(error), 0) + 1
    return pairs, left_out


def caution_of(recipe: Recipe, demonstrations: Sequence[Example]) -> str | None:
    """What the recipe has to say of its demonstrations; None: nothing.

    Raises:
        UserError: it raises, or gives no text.
    """
    return recipe.caution and _given(recipe, "caution", str, recipe.caution, [lent(each) for each in demonstrations])


def judge_of(recipe: Recipe, held_out: Sequence[Example]) -> Metric | None:
    """The metric that the recipe fits to the held-out rows; None where it fits none.

    Raises:
        UserError: it raises, or gives no metric.
    """
    return recipe.judge and _given(recipe, "judge", Metric, recipe.judge, [lent(each) for each in held_out])


def _given(recipe: Recipe, name: str, kind: type[T], function: Callable[..., Any], *arguments: Any) -> T | None:
    """What a function of the recipe gives, of a kind or None."""
    try:
        with own_code():
            found = function(*arguments)
    except OwnCodeError as error:
        if isinstance(error.raised, UserError):
            raise error.raised from None
        what, place = type(error.raised).__name__, place_of(error.raised)
        raise UserError(f"`{name}` of {recipe.name} raised {what} ({place}); mend it") from error
    if found is not None and not isinstance(found, kind):
        raise _odd(recipe, name, found, kind)
    return found


def _odd(recipe: Recipe, name: str, found: Any, kind: type) -> UserError:
    return UserError(
        f"`{name}` of {recipe.name} gave a value of type {type(found).__name__} and no {kind.__name__}; mend it"
    )
