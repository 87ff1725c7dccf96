"""Rows that are drawn by their prompts."""

import pytest

from rlrecipes.data.readers import Record
from rlrecipes.data.reasons import Drop
from rlrecipes.data.split import once_each, set_aside
from rlrecipes.recipe import Example, user


@pytest.mark.parametrize(("rows", "aside"), [(199, 0), (200, 20), (1000, 100), (9000, 256)])
def test_about_a_tenth_of_the_training_rows_is_set_aside_where_it_is_enough_to_say_something(rows, aside):
    train, drawn = set_aside(range(rows), [user(f"prompt {i}") for i in range(rows)])
    assert len(drawn) == aside
    assert sorted([*train, *drawn]) == list(range(rows))


def test_a_prompt_stays_on_one_side_whatever_its_case_and_spaces():
    prompts = [user(f"prompt {i % 250}" if i < 500 else f" Prompt  {i % 250}") for i in range(1000)]
    train, drawn = set_aside(range(1000), prompts)
    assert len(drawn) == 100
    assert {i % 250 for i in train}.isdisjoint(i % 250 for i in drawn)


def test_rows_that_all_have_one_prompt_have_none_to_set_aside():
    assert set_aside(range(1000), [user("Write.")] * 1000) == (list(range(1000)), [])


def test_of_equal_rows_the_first_stays_where_it_is_and_the_drop_names_the_other():
    first, other, again = (
        Record(user(text), Example(user(text), ("a",)), place=f"row {row}")
        for row, text in ((1, "x"), (2, "y"), (3, "x"))
    )
    kept, drops = once_each(([first, other, again], []))
    assert [row.place for row in kept] == ["row 1", "row 2"]
    assert drops == [Drop("duplicate row", "row 3")]
