"""A reward term is called with what it asks for, and a broken one is named."""

import pytest

from rlrecipes.errors import UserError
from rlrecipes.job import make_job
from rlrecipes.profile import load_profile
from rlrecipes.recipe import Example, Message, Reward, Term, user
from rlrecipes.reward.terms import fresh, score_term, term_values, weighted_sum
from rlrecipes.run.folder import Run

EXAMPLES = [Example(user("first question"), ("one",)), Example(user("second question"), ("two",))]


def test_each_answer_is_scored_with_its_own_prompt_and_example_and_no_weight():
    seen = []

    def score(prompt, answer, example):
        seen.append((prompt, answer, example))
        return len(answer)

    assert score_term(Term("length", score, weight=9.0), ["ab", "c"], EXAMPLES) == [2.0, 1.0]
    assert seen == [(EXAMPLES[0].prompt, "ab", EXAMPLES[0]), (EXAMPLES[1].prompt, "c", EXAMPLES[1])]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_is_told_with_term_answer_and_prompt(value):
    term = Term("odd", lambda prompt, answer, example: value if answer == "bad" else 0.0, weight=1.0)
    with pytest.raises(UserError, match=r"'odd' gave .* answer 'bad' to 'second question'.*terms.odd=0"):
        score_term(term, ["good", "bad"], EXAMPLES)


@pytest.mark.parametrize("score", [lambda p, a, e: 1 / 0, lambda p, a, e: None, lambda p, a, e: "much"])
def test_a_term_that_raises_is_told(score):
    with pytest.raises(UserError, match=r"'odd' raised \w+Error"):
        score_term(Term("odd", score, weight=1.0), ["a", "b"], EXAMPLES)


@pytest.mark.parametrize("score", [lambda p, a, e: 1 / 0, lambda p, a, e: float("nan")])
def test_of_a_chat_the_sentence_shows_the_last_turn(score):
    chat = (Message("user", "opening"), Message("assistant", "reply"), Message("user", "the last turn"))
    with pytest.raises(UserError, match="on the answer 'a' to 'the last turn'"):
        score_term(Term("odd", score, weight=1.0), ["a"], [Example(chat, ("b",))])


def test_answers_without_an_example_each_are_refused():
    with pytest.raises(ValueError, match="argument 2 is"):
        score_term(Term("length", lambda p, a, e: len(a), weight=1.0), ["a", "b", "c"], EXAMPLES)


def test_long_answers_are_shortened_in_the_sentence():
    with pytest.raises(UserError) as error:
        score_term(Term("odd", lambda p, a, e: 1 / 0, weight=1.0), ["long\n" * 500, ""], EXAMPLES)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


def job(*weights):
    return make_job("translation", load_profile("tiny"), Run("t", "translation"), weights=weights)


def test_weights_of_the_command_line_replace_the_recipes():
    reward = job("terms.learned=0.5", "terms.chrf=2").recipe.reward
    assert (reward.learned, [(term.name, term.weight) for term in reward.terms]) == (0.5, [("chrf", 2.0)])


def test_a_term_of_weight_zero_is_never_called():
    assert job("terms.chrf=0").recipe.reward.terms == ()


class Counter:
    """A term that gives how often it has been called."""

    calls = 0

    def __call__(self, prompt, answer, example):
        self.calls += 1
        return self.calls


def test_a_fresh_reward_forgets_what_another_knew():
    reward = Reward(terms=(Term("calls", Counter(), weight=1.0),))
    for _ in range(2):
        assert term_values(fresh(reward), ["a", "b"], [Example(user("?"))] * 2) == {"calls": [1.0, 2.0]}


def test_the_sum_is_weighted_and_the_learned_score_is_one_of_its_terms():
    reward = Reward(learned=2.0, terms=(Term("polite", lambda *_: 1.0, weight=0.5),))
    assert weighted_sum(reward, {"polite": 3.0, "learned": 10.0}) == 21.5
