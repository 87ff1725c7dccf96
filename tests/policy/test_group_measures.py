"""What the answers to one prompt have in common is measured, and told where they teach nothing; no model in sight."""

from itertools import combinations
from statistics import fmean, stdev
from types import SimpleNamespace

import pytest
import torch

from rlrecipes.policy.group_measures import (
    alike,
    amiss,
    flat,
    group_measures,
    teaching,
    unfilled,
    unspread,
)
from rlrecipes.policy.rollout import Drawn
from rlrecipes.policy.scores import pass_at
from rlrecipes.profile import GRPOSettings, RLOOSettings
from rlrecipes.recipe import Reward, Term

EACH = 4
SCORES = [0.0, 1.0, 2.5, -3.0, 7.0, 7.0, 7.0, 7.0, 10.0, 11.0, 12.5, 9.0]
"""Of three prompts: one answered well and badly, one always alike, and one easy."""
ANSWERS = ["a", "b", "c", "d", "a", "b", "b", "c", "e", "e", "e", "e"]


def drawn(scores=SCORES, answers=ANSWERS, **terms) -> Drawn:
    values = {name: torch.tensor(given) for name, given in terms.items()}
    return Drawn(SimpleNamespace(answers=answers), values, torch.tensor(scores))


def reward(**weights) -> Reward:
    return Reward(terms=tuple(Term(name, lambda *_: 0.0, weight=weight) for name, weight in weights.items()))


def test_groups_are_measured_by_their_spread_their_best_and_what_does_not_differ():
    found = group_measures(drawn(), reward(), EACH)
    by_prompt = torch.tensor(SCORES).view(-1, EACH).tolist()
    assert found["groups/spread"] == pytest.approx(fmean(stdev(group) for group in by_prompt))
    assert found["groups/best"] == pytest.approx((2.5 + 7.0 + 12.5) / 3)
    assert found["groups/flat"] == pytest.approx(1 / 3)
    assert found["groups/alike"] == pytest.approx(1 / 3)
    assert found["groups/repeated"] == pytest.approx(2 / 3)
    assert not [name for name in found if name.startswith("pass/")]


def test_scores_that_rounding_alone_tells_apart_are_the_same():
    assert flat(torch.tensor([1.0, 1.0 + 3e-6, 1000.0, 1000.003, 0.0, 1e-3]), 2).tolist() == [True, True, False]
    assert flat(torch.tensor([-1000.0, -1000.003]), 2).tolist() == [True]


def test_a_prompt_teaches_where_its_answers_differ_and_their_scores_do():
    assert alike(ANSWERS, EACH).tolist() == [False, False, True]
    assert teaching(ANSWERS, torch.tensor(SCORES), EACH).tolist() == [True, False, False]


# What passes.

RIGHT = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]


def test_where_a_term_says_what_passing_is_the_share_of_answers_and_of_prompts_that_pass_is_measured():
    found = group_measures(drawn(right=RIGHT, graded=SCORES), reward(right=0.5, graded=1.0), EACH)
    passing = {name: value for name, value in found.items() if name.startswith("pass/")}
    assert passing == {"pass/right@1": pytest.approx(5 / 12), "pass/right@4": pytest.approx(2 / 3)}


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_term_that_is_not_climbed_does_not_say_what_passing_is(weight):
    assert "pass/right@1" not in group_measures(drawn(right=RIGHT), reward(right=weight), EACH)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_at_k_is_for_each_prompt_the_mean_over_all_choices_of_k_answers(k):
    groups = torch.tensor(RIGHT).view(-1, EACH)
    expected = [fmean(max(some) for some in combinations(group, k)) for group in groups.tolist()]
    assert pass_at(k, groups.T.tolist()) == pytest.approx(expected)


# What is told.

WELL = {"groups/flat": 0.2, "groups/alike": 0.1, "groups/repeated": 0.5}
REPEATED = {"groups/flat": 0.2, "groups/alike": 0.1, "groups/repeated": 1.0}
FLAT = {"groups/flat": 1.0, "groups/alike": 0.0, "groups/repeated": 0.0}
ALIKE = {"groups/flat": 1.0, "groups/alike": 1.0, "groups/repeated": 1.0}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            REPEATED,
            "got the same answer twice, which teaches no more than once; raise rloo.temperature (0.1), or lower ",
        ),
        (REPEATED, "rloo.num_generations (4)"),
        (
            FLAT,
            "the reward gives all answers to each prompt of update 3 the same score, so they teach nothing; look at its",
        ),
        (
            ALIKE,
            "all answers to each prompt of update 3 are the same, so they teach nothing; raise rloo.temperature (0.1)",
        ),
    ],
)
def test_a_batch_none_of_whose_prompts_has_a_difference_is_told_once_with_what_to_do(row, said):
    settings = RLOOSettings(temperature=0.1)
    sentence = amiss([WELL, WELL], row, settings)
    assert said in sentence
    assert sentence.count("\n") == 0
    assert '"The answers to a prompt do not differ"' in sentence
    assert amiss([WELL, row], row, settings) is None
    assert amiss([WELL, row, WELL], row, settings) is None


def test_a_graver_lack_of_difference_is_told_after_another_and_not_before():
    assert amiss([REPEATED], ALIKE, RLOOSettings()) is not None
    assert amiss([ALIKE], REPEATED, RLOOSettings()) is None
    assert amiss([REPEATED], FLAT, RLOOSettings()) is not None
    assert amiss([FLAT], ALIKE, RLOOSettings()) is not None
    assert amiss([], WELL, RLOOSettings()) is None


def test_a_training_on_prompts_without_a_difference_is_told_with_its_cause():
    (same,) = unspread([ALIKE, ALIKE, WELL | {"groups/flat": 0.7}], GRPOSettings(temperature=0.01))
    assert "over 3 updates 90% of the prompts had answers that all scored the same, and taught nothing" in same
    assert "most of these answers were the same: raise grpo.temperature (0.01) or grpo.num_generations (4)" in same
    (scores,) = unspread([FLAT] * 2, GRPOSettings())
    assert "the answers differed: look at the reward's terms, or give it finer grades" in scores
    assert unspread([FLAT, WELL], GRPOSettings()) == []


def test_batches_that_all_draws_did_not_fill_are_told():
    rows = [{"groups/missing": share} for share in (0.0, 0.5, 0.25, 0.0)]
    (told,) = unfilled(rows, GRPOSettings())
    assert "2 of 4 batches were not full after all draws: on average 38% of their prompts taught nothing" in told
    assert unfilled([{"groups/missing": 0.0}, {}], GRPOSettings()) == []
