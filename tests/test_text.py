"""Words, normal forms and overlaps, by hand."""

from typing import get_args

import pytest
from conftest import ROOT

from rlrecipes.text import SYMPTOMS, Symptom, ngrams, normalize_answer, overlap_f1, see, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Well-made, isn't it?", ["well-made", "isn't", "it"]),
        ("真好。Really!", ["真", "好", "really"]),
        ("Grüße an O’Neill", ["grüße", "an", "o’neill"]),
        ("3 apples", ["3", "apples"]),
        (" … ", []),
        ("", []),
    ],
)
def test_words_are_lower_case_without_punctuation_and_chinese_by_the_character(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat!", "cat"),
        ("an apple, a day", "apple day"),
        ("theatre", "theatre"),
        ("Ｆｕｌｌ　width", "full width"),
        ("“好”。", "好"),
    ],
)
def test_normal_answers_lack_case_articles_and_punctuation(text, expected):
    assert normalize_answer(text) == expected


def test_ngrams_are_neighbours_in_order():
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("a b", "a b", 1.0),
        ("a b", "c d", 0.0),
        ("a b", "b c d e", 2 / 6),
        ("a a b", "a", 0.5),
        ("", "", 1.0),
        ("", "a", 0),
    ],
)
def test_overlap_is_the_f1_of_two_bags(answer, reference, expected):
    assert overlap_f1(answer.split(), reference.split()) == pytest.approx(expected)
    assert overlap_f1(reference.split(), answer.split()) == pytest.approx(expected)


def test_every_pointer_of_a_warning_has_its_heading_on_the_page_and_every_heading_a_pointer():
    lines = (ROOT / SYMPTOMS).read_text(encoding="utf-8").splitlines()
    assert {line.removeprefix("## ") for line in lines if line.startswith("## ")} == {*get_args(Symptom)}


def test_a_pointer_stands_before_the_full_stop():
    assert see("The KL explodes", "It is far.") == f'It is far (see "The KL explodes" in {SYMPTOMS}).'
    assert see("The KL explodes", "it is far") == f'it is far (see "The KL explodes" in {SYMPTOMS})'
