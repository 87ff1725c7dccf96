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
    def build(**settings):
        slice = [(Example(user(f"prompt {i}"), ("yes",)), [i]) for i in range(3)]
        right = lambda answer, example: float("yes" in answer)  # noqa: E731
        return Watch(slice, right, Reward(learned=0.0, terms=(WORDS,)), None, PPOSettings(**settings))

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
        "PPO found nothing better than the SFT policy (headline 0.667 and reward 1.00 on 3 prompts set aside; after "
        "update 8 headline 0.333 and reward 9.00 on 3 prompts set aside), so the SFT policy is what is left"
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


def test_looks_come_every_few_updates_and_after_the_last(watch):
    assert [update for update in range(0, 15) if watch(eval_every=4).due(update, last=14)] == [0, 4, 8, 12, 14]


def test_its_state_holds_all_that_it_knows(watch):
    seen, other = watch(patience=2), watch(patience=2)
    for update, right in ((0, 1), (4, 2), (8, 1)):
        look(seen, update, right)
    other.load_state_dict(seen.state_dict())
    for each in (seen, other):
        look(each, 12, right=1)
    assert (other.exhausted, other.record(), left(other, 12)) == (seen.exhausted, seen.record(), left(seen, 12))
