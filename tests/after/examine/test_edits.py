"""Edits of answers do what they are called."""

import pytest

from rlrecipes.after.examine.edits import (
    EDITS,
    half,
    negated,
    repeated,
    shuffled,
    with_a_wrong_word,
    with_another_number,
)

TEXT = "The child is reading two long books."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TEXT, "The child is not reading two long books."),
        ("He did not go.", "He did go."),
        ("Stop!", "It is not true that stop!"),
        ("孩子在读书。", "孩子在读书。"),
        ("", ""),
    ],
)
def test_a_negation_says_the_opposite_in_english_and_leaves_other_scripts_alone(text, expected):
    assert negated(text, "") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [(TEXT, TEXT.replace("two", "three")), ("Room 19.", "Room 29."), ("twelve", "one"), ("someone", "someone")],
)
def test_another_number_is_the_next_one(text, expected):
    assert with_another_number(text, "") == expected


def test_a_wrong_word_comes_from_another_answer_and_is_new():
    assert with_a_wrong_word("The child reads books.", "The doors are open.") == "The doors reads books."
    assert with_a_wrong_word("The child", "the child") == "The child"
    assert with_a_wrong_word("孩子在读书", "门开着") != "孩子在读书"


def test_no_edit_takes_a_word_or_a_character_apart():
    hindi, other = "लड़की किताब पढ़ती है", "यूनिवर्सिटियाँ खुली हैं"
    assert with_a_wrong_word(hindi, other) == hindi.replace("लड़की", "यूनिवर्सिटियाँ")
    assert half("हिन्दी") == "हि"
    assert half("👩‍👩‍👧👍🏽") == "👩‍👩‍👧"
    assert half("One two ") == "One"


def test_shuffled_words_are_the_same_words_in_an_order_that_never_changes():
    assert sorted(shuffled(TEXT).split()) == sorted(TEXT.split())
    assert shuffled(TEXT) == shuffled(TEXT) != TEXT
    assert sorted(shuffled("孩子在读书")) == sorted("孩子在读书")


def test_repeated_words_go_round_to_twice_the_length():
    assert repeated("a b c") == "a b a b a b"
    assert repeated("") == ""


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)
@pytest.mark.parametrize("text", ["", " ", "a", "孩子", "🙂", TEXT, "\n"])
def test_every_edit_takes_every_text(edit, text):
    assert isinstance(edit.change(text, TEXT), str)
    assert edit.change(TEXT, "Doors open.") != TEXT
