"""While PPO trains, a slice of prompts that it does not train on says which policy is the best."""

import pytest
import torch
from torch import nn

from rlrecipes.policy.watch import Watch
from rlrecipes.profile import PPOSettings
from rlrecipes.recipe import Example, Reward, Term, user

WORDS = Term("words", lambda prompt, answer, example: float(len(answer.split())), weight=1.0)


@pytest.fixture
def watch():
    def build(judge=None, **settings):
        slice = [(Example(user(f"prompt {i}"), ("yes",)), [i]) for i in range(3)]
        right = lambda answer, example: float("yes" in answer)  # noqa: E731
        return Watch(slice, right, Reward(learned=0.0, terms=(WORDS,)), None, PPOSettings(**settings), judge=judge)

    return build


def look(watch, update, right, words=1):
    """Measures a policy whose one weight is `update`, and that answers `right` of the three prompts as it should."""
    answers = [" ".join(["yes" if i < right else "no"] * words) for i in range(3)]
    return watch.measure(update, answers, [nn.Parameter(torch.tensor(float(update)))])


def left(watch, last):
    weight = nn.Parameter(torch.tensor(float(last)))
    return watch.restore([weight], last), weight.item()


def test_a_look_measures_the_headline_and_the_whole_reward(watch):
    assert look(watch(), 0, right=2, words=4) == {"slice/headline": pytest.approx(2 / 3), "slice/reward": 4.0}


def test_the_headline_is_the_mean_over_greedy_answers_and_those_at_temperature_1(watch):
    seen = watch()
    answers = ["yes", "yes", "yes", "no no", "no no", "yes yes"]
    measured = seen.measure(0, answers, [nn.Parameter(torch.tensor(0.0))])
    assert measured == {"slice/headline": pytest.approx(4 / 6), "slice/reward": 1.5}


def test_the_policy_with_the_highest_headline_is_left_and_the_later_reward_decides_between_equals(watch):
    seen = watch()
    for update, right, words in ((0, 1, 1), (4, 2, 1), (8, 3, 1), (12, 3, 2), (16, 2, 9)):
        look(seen, update, right, words)
    assert left(seen, 18) == (12, 12.0)


def test_the_last_is_left_where_the_settings_say_so(watch):
    seen = watch(keep="last")
    look(seen, 0, right=3)
    look(seen, 4, right=1)
    assert left(seen, 6) == (6, 6.0)


def test_the_start_counts_and_a_training_that_finds_nothing_better_says_so(watch):
    seen = watch()
    for update, right, words in ((0, 2, 1), (4, 1, 5), (8, 1, 9)):
        look(seen, update, right, words)
    assert left(seen, 8) == (0, 0.0)
    (warning,) = seen.warnings()
    assert warning.startswith(
        "PPO found nothing better than the policy it began with (headline 0.667 and reward 1.00 on 3 prompts set aside; "
        "after update 8 headline 0.333 and reward 9.00 on 3 prompts set aside), so that is what is left"
    )
    better = watch()
    look(better, 0, right=1)
    look(better, 4, right=2)
    assert better.warnings() == []


def test_it_asks_for_the_end_when_the_best_lies_as_many_looks_back_as_patience_says(watch):
    seen = watch(patience=2)
    look(seen, 0, right=1)
    look(seen, 4, right=2)
    assert seen.exhausted is None
    look(seen, 8, right=1, words=3)
    assert seen.exhausted is None
    look(seen, 12, right=1, words=7)
    assert seen.exhausted.startswith("nothing better after update 4 (headline 0.667 and reward 1.00")
    assert "after update 12 headline 0.333 and reward 7.00" in seen.exhausted
    endless = watch(patience=0)
    for update in range(9):
        look(endless, update, right=0)
    assert endless.exhausted is None


@pytest.fixture
def judged(watch):
    """A watch whose judge gives the scores of a list, one a look, beside a reward that is the number of words."""

    def build(scores, **settings):
        seen, left = watch(judge=lambda pairs: [left[0]] * len(pairs), **settings), list(scores)
        for number in range(len(scores)):
            look(seen, 4 * number, right=number % 3, words=number + 1)
            left.pop(0)
        return seen

    return build


def test_the_judge_scores_every_look_and_does_not_choose(judged):
    seen = judged([0.5, 2.0, -1.0])
    assert [row["slice/judge"] for row in seen.rows] == [0.5, 2.0, -1.0]
    assert left(seen, 8) == (8, 8.0), "the highest headline"


def test_training_ends_where_the_judge_falls_over_patience_looks_while_the_reward_rises(judged):
    seen = judged([1.0, 2.0, 1.5, 1.75], patience=2)
    assert (
        seen.exhausted
        == seen.parted
        == (
            "the judge's score fell from 2.00 after update 4 to 1.75 after update 12 while the reward rose by 2.00 "
            "(ppo.judge, ppo.patience=2)"
        )
    )
    assert seen.record(seen.exhausted)["ended_by_judge"]
    assert not seen.record("the KL was too high")["ended_by_judge"]
    for scores, patience in (
        ([1.0, 2.0, 1.5], 2),
        ([1.0, 2.0, 1.5, 2.5], 2),
        ([1.0, 2.0, 1.5, 1.75], 0),
        ([2.0, 2.0, 2.0], 2),
    ):
        assert judged(scores, patience=patience).exhausted is None


def test_a_judge_that_falls_with_the_reward_ends_nothing(watch):
    scores = [2.0, 1.0, 0.5]
    seen = watch(judge=lambda pairs: [scores[0]] * len(pairs), patience=2)
    for number in range(3):
        look(seen, 4 * number, right=number, words=5 - number)
        scores.pop(0)
    assert seen.exhausted is None


def test_looks_come_every_few_updates_and_after_the_last(watch):
    assert [update for update in range(0, 15) if watch(eval_every=4).due(update, last=14)] == [0, 4, 8, 12, 14]


def test_its_state_holds_all_that_it_knows(watch):
    seen, other = watch(patience=2), watch(patience=2)
    for update, right in ((0, 1), (4, 2), (8, 1)):
        look(seen, update, right)
    other.load_state_dict(seen.state_dict())
    for each in (seen, other):
        look(each, 12, right=1)
    assert (other.exhausted, other.record(None), left(other, 12)) == (seen.exhausted, seen.record(None), left(seen, 12))
