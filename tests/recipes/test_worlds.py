"""The preferences of a built-in world ask for the task: no cheap feature wins them."""

import pytest

from rlrecipes.recipe import load_recipe, recipe_names
from rlrecipes.reward.baselines import baselines

MOST = 0.65
"""Of all comparisons, flipped ones included; a feature that tells nothing reaches a half."""


@pytest.mark.parametrize("name", [name for name in recipe_names() if load_recipe(name).builtin])
def test_neither_length_nor_courtesy_nor_overlap_nor_any_one_word_wins_the_preferences(name):
    data = load_recipe(name).builtin()
    for comparisons in (data.train.comparisons, data.held_out.comparisons):
        found = {feature: interval.value for feature, interval in baselines(comparisons).items()}
        assert any("has '" in feature or "lacks '" in feature for feature in found)  # the word that tells most
        assert max(found.values()) <= MOST, found
