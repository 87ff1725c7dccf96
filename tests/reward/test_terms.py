"""A reward term is called with what it asks for, and a broken one is named."""

import asyncio
import dataclasses
import json
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from rlrecipes.errors import UserError
from rlrecipes.job import make_job
from rlrecipes.profile import load_profile
from rlrecipes.recipe import Example, Message, Reward, Term, load_recipe, user
from rlrecipes.reward.terms import fresh, score_term, set_term_states, term_states, term_values, weighted_sum
from rlrecipes.run.folder import Run
from rlrecipes.run.interrupts import Interrupted, finishing_first, handled, stop_requested

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


def raising(error):
    def score(prompt, answer, example):
        raise error

    return score


ODD = {
    "None": (None, "gave None, which is no number"),
    "a text": ("much", "gave 'much', which is no number"),
    "a number as text": ("0.5", "gave '0.5', which is no number"),
    "bytes": (b"1", "gave b'1', which is no number"),
    "a complex number": (1 + 2j, "gave (1+2j), which is no number"),
    "a list": ([1.0], "gave [1.0], which is no number"),
    "an array of one": (np.ones(1), "gave array([1.]), which is no number"),
    "a tensor of one": (torch.ones(1, 1), "gave tensor([[1.]]), which is no number"),
    "above float32": (1e39, "gave 1e+39, which is no number"),
    "below float32": (-1e39, "gave -1e+39, which is no number"),
    "309 digits": (10**309, "gave 1000"),
    "an object": (object, "gave <class 'object'>, which is no number"),
    "an error": (raising(ValueError("no")), "raised ValueError (no)"),
    "an error without a text": (raising(AssertionError()), "raised AssertionError on the answer"),
    "sys.exit": (raising(SystemExit(3)), "raised SystemExit (3)"),
    "what is no Exception": (raising(asyncio.CancelledError("late")), "raised CancelledError (late)"),
    "a long text": (raising(KeyError("private " * 99)), "raised KeyError (no 'private"),
}
"""What a term may give or raise, and how the sentence calls it."""


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_number_is_told_with_term_value_and_row(kind):
    value, said = ODD[kind]
    score = value if kind != "an object" and callable(value) else lambda p, a, e: value if a == "bad" else 0.0
    with pytest.raises(UserError) as error:
        score_term(Term("odd", score, weight=1.0), ["good" if score is not value else "bad", "bad"], EXAMPLES)
    assert f"the reward term 'odd' {said}" in str(error.value)
    assert "on the answer 'bad' to '" in str(error.value)
    assert f"(row {1 if score is value else 2} of 2); mend the function or set terms.odd=0" in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *((True, 1.0), (False, 0.0), (np.True_, 1.0), (3, 3.0), (np.float32(0.5), 0.5), (torch.tensor(0.5), 0.5)),
        *((Fraction(1, 4), 0.25), (np.array(2), 2.0), (-3.4e38, -3.4e38)),
    ],
)
def test_whatever_is_one_number_counts_as_it(value, number):
    assert score_term(Term("odd", lambda p, a, e: value, weight=1.0), ["a"], EXAMPLES[:1]) == [number]


def hang(prompt, answer, example):
    try:
        time.sleep(60)
    except Exception:
        return 1.0


def spin(prompt, answer, example):
    while True:
        pass


@pytest.mark.parametrize("score", [hang, spin, lambda p, a, e: re.match(r"(a+)+$", "a" * 40 + "b")])
def test_a_term_that_hangs_is_told_in_time_and_the_alarm_is_put_back(score):
    before, began = signal.getsignal(signal.SIGALRM), time.monotonic()
    with pytest.raises(UserError, match=r"'odd' took more than limits.term_seconds=0.2 on the answer 'a' .*row 1 of 2"):
        score_term(Term("odd", score, weight=1.0), ["a", "b"], EXAMPLES, 0.2)
    assert time.monotonic() - began < 10
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_term_in_another_thread_has_no_limit_and_the_same_value():
    with ThreadPoolExecutor(1) as pool:
        values = pool.submit(score_term, Term("odd", lambda p, a, e: 2.0, weight=1.0), ["a"], EXAMPLES[:1], 5)
    assert values.result() == [2.0]


def test_an_interrupt_of_the_person_goes_through_a_term():
    with handled():
        with pytest.raises(KeyboardInterrupt):
            score_term(Term("slow", lambda p, a, e: signal.raise_signal(signal.SIGINT), 1.0), ["a"], EXAMPLES[:1], 5)
        assert stop_requested()


def test_an_interrupt_that_a_term_raises_itself_goes_through_too():
    with pytest.raises(KeyboardInterrupt):
        score_term(Term("stops", raising(KeyboardInterrupt()), 1.0), ["a"], EXAMPLES[:1], 5)


def test_within_a_step_the_first_interrupt_lets_a_term_finish(capfd):
    def slow(prompt, answer, example):
        signal.raise_signal(signal.SIGINT)
        return 1.0

    with handled(), pytest.raises(Interrupted), finishing_first():
        assert score_term(Term("slow", slow, 1.0), ["a", "b"][:1], EXAMPLES[:1], 5) == [1.0]
    assert "finishing this step" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (Reward(terms=(Term("odd", spin, 1.0), Term("odd", hang, 1.0))), "two reward terms are named 'odd'"),
        (Reward(terms=(Term("learned", spin, 1.0),)), "is named 'learned', as the reward model's score is"),
        (Reward(terms=(Term("odd", spin, float("inf")),)), "the reward term 'odd' has the weight inf"),
        (Reward(terms=(Term("odd", spin, float("nan")),)), "has the weight nan"),
        (Reward(terms=(Term("odd", spin, "1"),)), "has the weight '1'"),
        (Reward(terms=(Term("odd", spin, 1e39),)), "has the weight 1e+39"),
        (Reward(learned=float("inf")), "the reward term 'learned' has the weight inf"),
        (Reward(learned=None), "the reward term 'learned' has the weight None"),
    ],
)
def test_a_reward_whose_sum_would_be_undefined_is_refused(reward, said):
    recipe = dataclasses.replace(load_recipe("translation"), reward=reward)
    with pytest.raises(UserError) as error:
        make_job(recipe, load_profile("tiny"), Run("t", "translation"))
    assert said in str(error.value)


def test_a_weight_of_the_command_line_that_float32_does_not_hold_is_refused():
    with pytest.raises(UserError, match=r"'chrf' has the weight 1e\+39"):
        job("terms.chrf=1e39")


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


@pytest.mark.parametrize("weight", [np.float32(0.5), Decimal("0.5"), Fraction(1, 2)])
def test_a_weight_of_another_kind_of_number_is_kept_as_a_plain_one(weight):
    reward = Reward(learned=weight, terms=(Term("polite", lambda *_: 1.0, weight=weight),))
    job = make_job(dataclasses.replace(load_recipe("translation"), reward=reward), load_profile("tiny"), Run("t", "t"))
    settings = {name: value for name, value in job.settings("ppo").items() if name.startswith("terms.")}
    assert json.loads(json.dumps(settings)) == {"terms.learned": 0.5, "terms.polite": 0.5}


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


def test_a_term_that_cannot_be_copied_is_told_by_its_name():
    counter = Counter()
    counter.lock = threading.Lock()
    with pytest.raises(
        UserError, match=r"the reward term 'calls' cannot be copied \(cannot pickle '_thread.lock' object\)"
    ):
        fresh(Reward(terms=(Term("calls", counter, weight=1.0),)))


def test_a_state_that_no_checkpoint_can_hold_is_told_with_its_term():
    counter = Counter()
    counter.state_dict = lambda: {"f": print}
    with pytest.raises(
        UserError, match=r"the state of the reward term 'calls' cannot be kept .it/f is a builtin_function_or_method"
    ):
        term_states(Reward(terms=(Term("calls", counter, weight=1.0),)))


@pytest.mark.parametrize(
    ("method", "use", "said"),
    [
        ("__deepcopy__", fresh, r"the reward term 'calls' cannot be copied \(7\)"),
        ("state_dict", term_states, r"the state of the reward term 'calls' cannot be kept \(7\)"),
        (
            "load_state_dict",
            lambda reward: set_term_states(reward, {"calls": {}}),
            r"'calls' does not take back the state that a checkpoint kept: it raised SystemExit \(7\); mend its load_state",
        ),
    ],
)
def test_a_term_whose_state_or_copy_ends_the_process_is_told_by_its_name(method, use, said):
    leaves = type("Leaves", (Counter,), {method: lambda self, *_: sys.exit(7)})
    with pytest.raises(UserError, match=said):
        use(Reward(terms=(Term("calls", leaves(), weight=1.0),)))


def test_the_sum_is_weighted_and_the_learned_score_is_one_of_its_terms():
    reward = Reward(learned=2.0, terms=(Term("polite", lambda *_: 1.0, weight=0.5),))
    assert weighted_sum(reward, {"polite": 3.0, "learned": 10.0}) == 21.5


def test_what_a_term_takes_out_of_its_example_the_others_still_find():
    def eats(prompt, answer, example):
        return len([example.truth["slots"].pop() for _ in tuple(example.truth["slots"])])

    example = Example(user("Book it."), ("Done.",), {"slots": ["three", "at six"]})
    reward = Reward(terms=(Term("eats", eats, 1.0), Term("counts", lambda p, a, e: len(e.truth["slots"]), 1.0)))
    assert term_values(reward, ["a", "b"], [example] * 2) == {"eats": [2.0, 2.0], "counts": [2.0, 2.0]}
    assert example.truth == {"slots": ["three", "at six"]}
