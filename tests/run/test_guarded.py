"""A recipe's metrics are called on copies, within a time limit, and told by their names."""

import math
import time

import pytest

from rlrecipes.errors import UserError
from rlrecipes.metrics import estimate, mean_of
from rlrecipes.recipe import Example, Metric, user
from rlrecipes.run.guarded import guarded

KNOWN = [Example(user("Say a."), ("a",)), Example(user("Say b."), ("b",))]


def hang(*arguments):
    while True:
        pass


def fail(*arguments):
    return {}["key"]


def together(**functions):
    """A metric that judges all answers together."""
    usual = {"statistics": lambda answers, examples: [(1.0,) for _ in answers], "finish": sum}
    return Metric("odd", **usual | functions)


def test_a_metric_that_raises_is_told_with_the_answer_and_its_prompt_alone_and_in_the_mean():
    metric = guarded(mean_of("odd", lambda answer, example: fail() if answer == "bad" else 1.0))
    said = r"the metric 'odd' raised KeyError \(no 'key'\) on the answer 'bad' to 'Say b.'; mend it"
    with pytest.raises(UserError, match=said):
        metric.score("bad", KNOWN[1])
    with pytest.raises(UserError, match=said):
        estimate(metric, ["good", "bad"], KNOWN)


@pytest.mark.parametrize(
    ("given", "said"), [(math.nan, "gave nan"), (None, "gave None"), ("1", "gave '1'"), ([1.0], r"gave \[1.0\]")]
)
def test_a_score_that_is_no_number_is_told_with_the_answer(given, said):
    with pytest.raises(UserError, match=f"'odd' {said} on the answer 'a' to 'Say a.', which is no finite number; mend"):
        guarded(mean_of("odd", lambda answer, example: given)).score("a", KNOWN[0])


@pytest.mark.parametrize(
    "use", [lambda metric: metric.score("a", KNOWN[0]), lambda metric: estimate(metric, "ab", KNOWN)]
)
def test_a_metric_that_hangs_on_an_answer_is_told_in_time(use):
    began = time.monotonic()
    said = r"'odd' took more than limits.term_seconds=0.2 on the answer 'a' to 'Say a.'; mend it, or raise the limit"
    with pytest.raises(UserError, match=said):
        use(guarded(mean_of("odd", hang), 0.2))
    assert time.monotonic() - began < 10


def test_a_metric_of_all_answers_together_has_the_time_of_all_of_them():
    def slow(answers, examples):
        time.sleep(0.15)
        return [(1.0,) for _ in answers]

    metric = guarded(together(statistics=slow), 0.1)
    assert estimate(metric, ["a", "b"], KNOWN).value == 2
    with pytest.raises(UserError, match=r"'odd' took more than limits.term_seconds=0.1 in its `statistics` \("):
        estimate(metric, ["a"], KNOWN[:1])


def test_one_that_hangs_on_all_answers_together_is_told_with_its_line():
    said = (
        r"'odd' took more than limits.term_seconds=0.1 for each of 2 answers in its `{}` \(test_guarded.py, line \d+\)"
    )
    with pytest.raises(UserError, match=said.format("statistics")):
        estimate(guarded(together(statistics=hang), 0.1), ["a", "b"], KNOWN)
    alone = said.replace(" for each of 2 answers", "")
    with pytest.raises(UserError, match=alone.format("finish")):
        estimate(guarded(together(finish=hang), 0.1), ["a", "b"], KNOWN)
    with pytest.raises(UserError, match=said.format("applies")):
        guarded(together(applies=hang), 0.1).applies(KNOWN)


@pytest.mark.parametrize("function", ["statistics", "applies", "finish"])
def test_a_function_of_a_metric_that_raises_is_told_with_its_line(function):
    metric = guarded(together(**{function: fail}))
    said = rf"the metric 'odd' raised KeyError \(no 'key'\) in its `{function}` \(test_guarded.py, line \d+\); mend it"
    with pytest.raises(UserError, match=said):
        metric.applies(KNOWN) and estimate(metric, ["a", "b"], KNOWN)


@pytest.mark.parametrize("given", [None, "1", 1j, [1.0]])
def test_a_value_of_all_answers_that_is_no_number_is_told(given):
    with pytest.raises(UserError, match=r"the metric 'odd' gave .* as the value of all answers, no number; mend it"):
        estimate(guarded(together(finish=lambda sums: given)), ["a", "b"], KNOWN)


def test_a_resample_without_a_value_is_no_error():
    assert math.isnan(estimate(guarded(together(finish=lambda sums: math.nan)), ["a", "b"], KNOWN).low)


@pytest.mark.parametrize("rows", [None, [1.0, 2.0], [(1.0,)], [(1.0,), (1.0, 2.0)], 3])
def test_statistics_that_are_no_rows_of_numbers_are_told(rows):
    said = "the `statistics` of the metric 'odd' must give 2 answers a row of numbers each, all of one length, and gave"
    with pytest.raises(UserError, match=said):
        estimate(guarded(together(statistics=lambda answers, examples: rows)), ["a", "b"], KNOWN)


def test_a_metric_that_changes_its_examples_changes_its_copies_alone():
    def eats(answer, example):
        return float(len([example.truth["slots"].pop() for _ in tuple(example.truth["slots"])]))

    example = Example(user("Book it."), ("a",), {"slots": ["three", "at six"]})
    metric = guarded(mean_of("eats", eats, applies=lambda examples: bool(examples[0].truth["slots"].pop())))
    assert metric.applies([example])
    assert metric.score("a", example) == 2
    assert [estimate(metric, ["a"], [example]).value for _ in range(2)] == [2, 2]
    assert example.truth == {"slots": ["three", "at six"]}
