"""A policy that training broke is told from its log, and a healthy one is not."""

import pytest

from rlrecipes.policy.measures import at_rest, diversity, faults
from rlrecipes.profile import GRPOSettings, PPOSettings
from rlrecipes.text import see


def row(kl=0.4, ended=0.95, scores=0.3, approxkl=0.01, length=10.0):
    return {
        "objective/kl": kl,
        "objective/scores": scores,
        "answers/ended": ended,
        "answers/length": length,
        "policy/approxkl_avg": approxkl,
    }


@pytest.mark.parametrize(
    "rows",
    [
        [row(kl=0.0)],
        [row(kl=0.0, scores=-0.1), row(), row(kl=2.2, scores=1.5)],
        [row(ended=0.2), row(ended=0.1)],
        [row(scores=0.5), row(scores=-0.4)],
        [row(kl=0.0), row(kl=40.0, length=100.0)],
    ],
)
def test_a_healthy_training_is_not_called_broken(rows):
    assert faults(rows, PPOSettings()) == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(kl=0.0, approxkl=34.7)], "one update moved it by 35 nats a token"),
        ([row(kl=0.0), row(approxkl=1.2), row()], "one update moved it by 1.2 nats a token"),
        ([row(kl=0.0), row(kl=37.5, length=12.0)], "at the end it is 3.1 nats a token from where it began"),
        ([row(ended=0.9), row(ended=0.02)], "90% of the answers ended at first and 2% do now"),
        ([row(scores=-0.1), row(scores=-1.2)], "the reward fell from -0.10 to -1.20"),
    ],
)
def test_each_sign_of_a_broken_policy_is_told_in_one_sentence(rows, said):
    sentence = f"PPO broke the policy: {said}; lower ppo.learning_rate, or set ppo.kl_stop"
    assert faults(rows, PPOSettings()) == [see("The KL explodes", sentence)]
    both = [{**rows[0], "policy/approxkl_avg": 9.0}, *rows]
    assert len(faults(both, PPOSettings())) == 1
    assert len(faults(both, PPOSettings())[0]) < 300


def rows_at_rest(kl=0.005, std=0.5, kl_coef=0.03, lr=1e-7):
    last = {
        "objective/kl": kl,
        "objective/scores_std": max(std, 0.3),
        "objective/terms_std": std,
        "kl_coef": kl_coef,
        "lr": lr,
    }
    return [last] * 5


@pytest.mark.parametrize(
    ("rows", "symptom", "said"),
    [
        (
            rows_at_rest(),
            "did not move",
            "where it began (mean KL 0.005 nats an answer): the scores spread by 0.5 and a nat of KL costs 0.03",
        ),
        (rows_at_rest(), "did not move", "so raise ppo.learning_rate (1e-07)"),
        (rows_at_rest(kl=0.08, kl_coef=50.0), "did not move", "a nat of KL costs 50, so lower ppo.kl_coef"),
    ],
)
def test_a_policy_at_rest_is_told_with_its_reason(rows, symptom, said):
    (sentence,) = at_rest(rows, PPOSettings())
    assert said in sentence
    assert symptom in sentence.partition("(see ")[2]
    assert at_rest(rows[:4], PPOSettings()) == []


def test_a_reward_of_one_score_is_told_after_any_update_whether_or_not_answers_end():
    (sentence,) = at_rest(rows_at_rest(kl=3.0, std=0.0)[:1], PPOSettings())
    assert "the same score, in all 1 updates" in sentence
    assert "stays flat" in sentence.partition("(see ")[2]
    assert at_rest([*rows_at_rest(std=0.0), *rows_at_rest(kl=3.0)], PPOSettings()) == []


def test_a_policy_that_moved_is_not_at_rest():
    assert at_rest(rows_at_rest(kl=0.08), PPOSettings()) == []
    assert at_rest(rows_at_rest(kl=0.2, kl_coef=50.0), PPOSettings()) == []


def test_answers_that_repeat_themselves_or_one_another_are_measured():
    same = diversity(["a b c"] * 3 + ["d e f"])
    assert same == {"answers/repetition": 0.0, "answers/identical": 0.75, "answers/distinct_2": 0.5}
    assert diversity(["a b a b a b", ""])["answers/repetition"] == 0.25
    assert diversity([""]) == {"answers/repetition": 0.0, "answers/identical": 0.0, "answers/distinct_2": 0.0}


def test_answers_to_one_prompt_may_be_the_same_and_those_to_different_prompts_count():
    answers = ["one", "one", "two", "three", "one", "four", "five", "five"]
    assert diversity(answers, 2)["answers/identical"] == 3 / 8, "one, which two prompts have, and not five"
    assert diversity(answers)["answers/identical"] == 5 / 8
    assert diversity(answers, 8)["answers/identical"] == 0.0


def test_answers_to_one_prompt_that_share_their_words_leave_a_batch_as_diverse_as_it_is_across_prompts():
    alone = diversity(["a b c", "d e f"])
    assert diversity(["a b c", "a b c", "d e f", "d e f"], 2) == alone | {"answers/distinct_2": 1.0}
    assert diversity(["a b", "c d", "a b", "e f"], 2)["answers/distinct_2"] == (1 / 2 + 1) / 2, "a mean over draws"
    assert diversity(["a b"] * 4, 2)["answers/distinct_2"] == 1 / 2, "different prompts get the same words"


def test_the_settings_to_change_are_those_of_the_algorithm():
    (still,) = at_rest(rows_at_rest(kl=0.08, kl_coef=50.0), GRPOSettings())
    assert "so lower grpo.beta" in still
    (broken,) = faults([row(), row(approxkl=35.0)], GRPOSettings())
    assert "GRPO broke the policy" in broken
    assert "grpo.learning_rate" in broken
