"""Agreement of scores with preferences and ratings is counted as said."""

import pytest

from rlrecipes.recipe import Comparison, Rating, user
from rlrecipes.reward.agreement import accuracy, correlations

PAIR = Comparison(user("a"), "b", "c")


def flipped(value):
    return Comparison(user("a"), "b", "c", flipped=value)


def test_the_higher_score_wins_and_a_tie_is_half_a_win():
    found = accuracy([PAIR] * 4, [2, 1, 1, 5], [1, 2, 1, 4], [(3, 2), (2, 2), (1, 2), (1, 2)])
    assert found["accuracy"]["value"] == 2.5 / 4
    assert found["longer_wins"]["value"] == 1.5 / 4
    assert found["held_out_comparisons"] == 4
    assert "ceiling" not in found


def test_known_noise_gives_a_ceiling_and_the_accuracy_without_it():
    found = accuracy(
        [flipped(False), flipped(True), flipped(False), flipped(False)], [2, 1, 1, 0], [1, 2, 0, 1], [(1, 1)] * 4
    )
    assert found["ceiling"] == 0.75
    assert found["accuracy"]["value"] == 0.5
    assert found["accuracy_without_noise"]["value"] == 0.75


def test_scores_of_another_number_of_pairs_are_refused():
    with pytest.raises(ValueError, match="argument 2 is"):
        accuracy([PAIR] * 2, [2, 1], [1], [(1, 1)] * 2)
    with pytest.raises(ValueError, match="argument 2 is"):
        accuracy([flipped(False)] * 2, [2], [1], [(1, 1)] * 2)


def test_without_anything_held_out_nothing_is_claimed():
    assert accuracy([], [], [], []) == {}
    assert correlations([], []) == {}


def test_scores_in_the_ratings_order_correlate_perfectly_by_rank_and_less_by_line():
    ratings = [Rating(user("a"), str(i), i) for i in range(20)]
    found = correlations(ratings, [2.0**i for i in range(20)])
    assert found["held_out_ratings"] == 20
    assert found["spearman"]["value"] == pytest.approx(1)
    assert found["pearson"]["value"] < 0.7
