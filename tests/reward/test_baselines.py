"""What one feature alone reaches on comparisons is counted as said."""

import pytest

from rlrecipes.recipe import Comparison, Message, user
from rlrecipes.reward.baselines import baselines

PROMPT = (Message("user", "Where is the red cup?"), Message("assistant", "Which one?"), *user("The red one, please."))


def of(*pairs: tuple[str, str]) -> dict[str, float]:
    return {name: found.value for name, found in baselines([Comparison(PROMPT, *pair) for pair in pairs]).items()}


@pytest.mark.parametrize(
    ("chosen", "rejected", "name", "opposite"),
    [
        ("a b c", "abcdef g", "more words", "fewer words"),
        ("abcdef g", "a b c", "more characters", "fewer characters"),
        ("It stands there.", "It stands there", "ends in punctuation", "ends in no punctuation"),
        ("It stands *there!*", "It stands (there)", "ends in punctuation", "ends in no punctuation"),
        ("在那里。", "在那里，", "ends in punctuation", "ends in no punctuation"),
        ("The red cup", "A red cup", "more of its words from the prompt", "fewer of its words from the prompt"),
        ("the RED one", "red the one", "copies the prompt", "does not copy the prompt"),
        ("There, thank you", "There you are", "has a word of courtesy", "has no word of courtesy"),
        ("Sorry, but I can’t say", "You can’t say that", "refuses", "does not refuse"),
        ("no cup", "no", "has 'cup'", "lacks 'cup'"),
    ],
)
def test_a_feature_wins_in_the_direction_that_is_better(chosen, rejected, name, opposite):
    assert of((chosen, rejected))[name] == 1
    assert of((rejected, chosen))[opposite] == 1


def test_a_tie_counts_half():
    found = of(("a b c", "a b"), ("a b c", "a b"), ("a b", "a b"), ("a", "a b"))
    assert found["more words"] == 2.5 / 4
    assert found["refuses"] == 0.5


def test_the_best_feature_comes_first_and_none_is_below_a_half():
    values = list(of(("a b c.", "a b"), ("a b", "a b c"), ("a b c.", "a b c")).values())
    assert values == sorted(values, reverse=True)
    assert min(values) >= 0.5


def test_the_word_is_the_one_that_tells_most_over_all_comparisons():
    found = of(("a cup here", "a lid here"), ("the cup", "the box"), ("the box", "the box now"))
    assert found["has 'cup'"] == 2.5 / 3


def test_without_comparisons_there_are_no_baselines():
    assert baselines([]) == {}
