"""Accuracy by parts and the worth of chances are counted as said."""

import math

import numpy as np
import pytest

from rlrecipes.after.examine.accuracy import FEWEST, accuracy_by_parts, calibration, fit_temperature
from rlrecipes.after.examine.subject import Pair
from rlrecipes.recipe import Comparison, Example, user


def pair(i=0, chosen=1.0, rejected=0.0, lengths=(5, 5), recipe="a", **more):
    return Pair(recipe, Comparison(user(f"prompt {i}"), "yes", "no", **more), chosen, rejected, lengths)


def shares(parts):
    return {name: (part["value"], part["count"]) for name, part in parts.items()}


def test_each_part_has_its_own_share_and_count():
    pairs = [pair(lengths=(6, 5)), pair(lengths=(6, 5), chosen=-1), pair(lengths=(4, 5)), pair(chosen=0.0)]
    found = accuracy_by_parts(pairs, [])
    assert (found["overall"]["value"], found["overall"]["count"]) == (2.5 / 4, 4)
    expected = {"neither": (0.5, 1), "the chosen": (0.5, 2), "the rejected": (1.0, 1)}
    assert shares(found["parts"]["longer answer"]) == expected


def test_a_part_that_holds_all_rows_or_that_the_data_do_not_carry_is_left_out():
    assert accuracy_by_parts([pair(i) for i in range(4)], [])["parts"] == {}


def test_quantiles_of_the_scores_and_of_the_datas_margins_part_all_rows():
    pairs = [pair(i, chosen=i if i >= 10 else -i, margin=i) for i in range(40)]
    parts = accuracy_by_parts(pairs, [])["parts"]
    for title in ("difference of the scores", "margin in the data"):
        assert [count for _, count in shares(parts[title]).values()] == [10] * 4
        assert [value for value, _ in shares(parts[title]).values()] == [0.05, 1, 1, 1]
    assert next(iter(parts["margin in the data"])) == "0.00 to 9.75"


def test_few_rows_are_not_parted_by_quantiles():
    parts = accuracy_by_parts([pair(i, chosen=i + 1, margin=i) for i in range(FEWEST - 1)], [])["parts"]
    assert parts == {}


def test_recipes_known_noise_and_labels_of_prompts_are_parts_and_free_texts_are_not():
    pairs = [pair(i, recipe="ab"[i % 2], flipped=i < 3, chosen=-1 if i < 3 else 1) for i in range(12)]
    examples = [Example(user(f"prompt {i}"), (), {"tongue": "de" if i < 4 else "fr", "id": i}) for i in range(12)]
    parts = accuracy_by_parts(pairs, examples)["parts"]
    assert shares(parts["recipe"]) == {"a": (0.666667, 6), "b": (0.833333, 6)}
    assert shares(parts["label"]) == {"right": (1, 9), "swapped on purpose": (0, 3)}
    assert shares(parts["tongue"]) == {"de": (0.25, 4), "fr": (1, 8)}
    assert "id" not in parts


def test_chances_that_are_kept_have_no_error_and_those_that_are_not_have_it_all():
    logit = math.log(3)  # a chance of 0.75
    kept = calibration([logit, logit, logit, -logit])
    assert kept["ece"] == pytest.approx(0)
    assert kept["brier"]["value"] == pytest.approx((3 * 0.25**2 + 0.75**2) / 4)
    assert [(b["count"], b["chance"], b["accuracy"]["value"]) for b in kept["bins"]] == [(4, 0.75, 0.75)]
    assert calibration([-50.0] * 4)["ece"] == pytest.approx(1)
    assert calibration([0.0] * 3)["brier"]["value"] == 0, "equal scores promise a half, and a tie is a half"
    assert calibration([]) == {}


def test_the_temperature_that_made_the_labels_is_found_and_helps_the_other_half():
    random = np.random.default_rng(0)
    true = random.normal(0, 2, 4000)
    right = random.random(4000) < 1 / (1 + np.exp(-np.abs(true)))
    found = calibration(np.where(right, 1, -1) * np.abs(true) * 3)["temperature"]
    assert found["value"] == pytest.approx(3, rel=0.1)
    assert (found["fitted_on"], found["tried_on"]) == (2000, 2000)
    assert found["after"]["ece"] < found["before"]["ece"] / 3
    assert found["after"]["brier"]["value"] < found["before"]["brier"]["value"]


def test_no_temperature_is_offered_where_every_row_is_right_or_there_are_too_few():
    assert fit_temperature(np.ones(10)) is None
    assert "temperature" not in calibration([1.0] * 100)
    assert "temperature" not in calibration([1.0, -1.0] * 10)
