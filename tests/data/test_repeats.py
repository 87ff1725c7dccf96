"""Answers that begin with their prompt: with all of it, and whatever spaces stand around it."""

import pytest
from conftest import write_rows

from rlrecipes.data.load import load
from rlrecipes.recipe import load_recipe


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({"prompt": "Name tree {i}. "}, "Name tree {i}.\nAn elm."),
        ({"prompt": "Name tree {i}."}, "\nName tree {i}.\nAn elm."),
        ({"instruction": "Name the tree.", "input": "Bark {i}, grey"}, "Name the tree.\n\nBark {i}, grey\n\nAn elm."),
        ({"instruction": "Name the tree.", "context": "Bark {i}, grey "}, "Name the tree.\nBark {i}, grey\nAn elm."),
    ],
)
def test_an_answer_is_freed_of_all_that_it_repeats(tmp_path, asked, answer):
    assert answers(tmp_path, asked, answer) == {"An elm."}


@pytest.mark.parametrize(
    ("about", "answer", "left"),
    [("a", "Spell it: apple", "apple"), ("elm", "Spell it: elm", "elm"), ("elm", "Spell it: elms", "elms")],
)
def test_an_answer_that_begins_as_its_input_does_stays_whole(tmp_path, about, answer, left):
    assert answers(tmp_path, {"instruction": "Spell it:", "input": about, "system": "{i}"}, answer) == {left}


def answers(folder, asked, answer) -> set[str]:
    column = "response" if "instruction" in asked else "completion"
    texts = asked | {column: answer}
    rows = [{name: text.replace("{i}", str(i)) for name, text in texts.items()} for i in range(40)]
    data = load(load_recipe("dialogue"), str(write_rows(folder / "rows.jsonl", rows)), {}, folder)
    return {text for example in data.train.demonstrations for text in example.answers}
