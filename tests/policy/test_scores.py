"""Answers are scored without the model that gave them, and policies compared over the same prompts."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from rlrecipes.errors import UserError
from rlrecipes.policy.answers import Answer, best_of
from rlrecipes.policy.scores import (
    Scored,
    compare,
    divergence,
    divergence_bound,
    is_binary,
    metrics,
    pairs,
    pass_at,
    score_all,
)
from rlrecipes.policy.style import copied, refuses, style
from rlrecipes.recipe import Example, Message, Metric, user
from rlrecipes.run.policies import kinds
from rlrecipes.run.stages import POLICIES


def some(*names):
    return {name: POLICIES[name] for name in names}


def answers(*texts, ended=True):
    return [Answer(text, ended) for text in texts]


def scored(headline, judge=None, words=(1.0, 1.0)):
    given = answers("a", "b")
    return Scored(given, given, headline, headline, headline, judge, {"words": list(words)})


def test_the_best_of_n_has_the_highest_score_and_of_equal_ones_the_first():
    drawn = [answers("a", "x"), answers("b", "y"), answers("c", "z")]
    assert best_of(drawn, [[1, 2], [3, 2], [2, 0]]) == answers("b", "x")


def test_the_best_of_4_is_taken_from_the_first_4_of_the_16():
    given = kinds(some("best4", "best16", "ppo"))
    assert given["ppo"] == ["greedy", "sampled"]
    assert given["sft"] == [str(k) for k in range(1, 17)]
    assert kinds(some("sft", "best4"))["sft"] == ["greedy", "sampled", "1", "2", "3", "4"]


def test_the_chance_that_one_of_k_is_right_is_counted_over_all_choices_of_k():
    right = [[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]]
    assert pass_at(1, right) == [0.25, 0, 0.75]
    assert pass_at(2, right) == pytest.approx([0.5, 0, 1])
    assert pass_at(4, right) == [1, 0, 1]
    assert is_binary(right)
    assert not is_binary([[0.5]])
    assert not is_binary([])


def test_every_policy_gives_k_answers_for_pass_at_k_and_one_that_more_are_taken_of_counts_them_all(job):
    named = some("base", "sft", "best16")
    assert kinds(named, 4) == {
        "base": ["greedy", "sampled", "1", "2", "3", "4"],
        "sft": ["greedy", "sampled", *map(str, range(1, 17))],
    }
    evaluate = replace(job.profile.evaluate, pass_at=2)
    binary = replace(job.recipe.evaluation.metrics[0], score=lambda answer, example: float(answer == "x"))
    asked = replace(
        job,
        profile=replace(job.profile, evaluate=evaluate),
        data=replace(job.data, metrics=(binary,)),
    )
    given = {"sft": {kind: answers(text) for kind, text in {"greedy": "x", "sampled": "y", "1": "x", "2": "y"}.items()}}
    examples = [Example(user("Say x."), ("x",))]
    found = score_all(asked, some("sft"), given, examples, lambda rows: [0.0 for _ in rows], None)
    assert found["sft"].passed == {1: [0.5], 2: [1.0]}
    told = metrics(asked, found["sft"], examples)
    assert told["pass@1"]["value"] == 0.5
    assert told["pass@2"]["value"] == 1
    assert "pass@2_gain" in compare(found["sft"], found["sft"])

    graded = replace(asked, data=replace(job.data, metrics=(replace(binary, score=lambda answer, example: 0.5),)))
    assert score_all(graded, some("sft"), given, examples, lambda rows: [0.0], None)["sft"].passed == {}


def test_only_the_reward_chooses_the_best_of_n_and_an_answer_without_an_end_pays_for_it(job):
    drawn = {str(k): [Answer("x" * k, k != 3)] for k in range(1, 5)}
    given = {"sft": {"greedy": answers("sft"), "sampled": answers("sft"), **drawn}}
    examples = [Example(user("Say x."), ("x",))]
    found = score_all(
        job, some("sft", "best4"), given, examples, lambda rows: [-abs(3.4 - len(row.text)) for row in rows], None
    )
    assert found["best4"].greedy == [Answer("xxxx", True)]


def test_a_win_rate_counts_a_tie_as_half_and_the_judges_stands_beside_the_others():
    found = compare(scored([1.0, 2.0], judge=[0.0, 5.0]), scored([1.0, 1.0], judge=[1.0, 4.0]))
    assert found["win_rate"]["value"] == 0.75
    assert found["judge_win_rate"]["value"] == 0.5
    assert found["judge_gain"]["value"] == 0
    assert "judge_gain" not in compare(scored([1.0, 2.0]), scored([1.0, 1.0]))


def test_style_is_compared_in_pairs_too():
    assert compare(scored([1.0, 1.0], words=(3.0, 5.0)), scored([1.0, 1.0]))["words_gain"]["value"] == 3


def test_a_pair_needs_both_its_policies():
    assert pairs({"base": scored([1.0, 1.0]), "ppo": scored([1.0, 1.0])}, POLICIES) == {}
    assert pairs({"sft": scored([1.0, 1.0]), "ppo": scored([1.0, 1.0])}, POLICIES).keys() == {"ppo_over_sft"}


def test_a_policys_metrics_hold_the_judges_mean_where_there_is_a_judge(job):
    examples = [Example(user("Say a."), ("a",))] * 2
    assert metrics(job, scored([1.0, 2.0], judge=[0.0, 5.0]), examples)["judge"]["value"] == 2.5
    assert "judge" not in metrics(job, scored([1.0, 2.0]), examples)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_of_all_answers_that_is_no_finite_number_stops_the_evaluation(job, value):
    odd = Metric("odd", lambda answers, examples: [[1.0]] * len(answers), lambda sums: value)
    examples = [Example(user("Say a."), ("a",))] * 2
    given = SimpleNamespace(metrics=[*job.metrics, odd])
    with pytest.raises(
        UserError, match=f"the metric 'odd' is {value} over 2 answers, no finite number; mend its `finish`"
    ):
        metrics(given, scored([1.0, 2.0]), examples)


def test_the_divergence_is_the_mean_over_sampled_answers_and_the_best_of_n_has_a_bound():
    each = Scored(answers("a"), [Answer("a", True, 2.0), Answer("b", True, 4.0)], [0], [0], [0], None, {})
    assert divergence(POLICIES["ppo"], each)["value"] == 3
    assert divergence(POLICIES["sft"], scored([1.0, 1.0])) is None
    assert divergence_bound(POLICIES["best4"]) == pytest.approx(math.log(4) - 3 / 4, abs=1e-6)
    assert divergence_bound(POLICIES["ppo"]) is None


def test_copied_words_stand_in_a_row_of_four_in_the_prompt():
    prompt = (Message("system", "Be kind."), Message("user", "The old child reads a good book."))
    assert copied("Well: the old child reads it", prompt) == 4 / 6
    assert copied("the old child sleeps", prompt) == 0
    assert copied("", prompt) == 0


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I’m sorry, but I can't do that.", 1),
        ("Das tut mir leid, aber dabei kann ich nicht helfen.", 1),
        ("Sorry, I can't write that for you.", 1),
        ("The child can't read.", 0),
        ("", 0),
    ],
)
def test_a_refusal_is_known_by_its_opening(answer, refused):
    assert refuses(answer) == refused


def test_style_has_all_measures_of_an_answer():
    found = style(Answer("I read. I read. I read.", False), Example(user("Read?")))
    assert found == {"words": 6, "repetition": 0.5, "ended": 0, "copied": 0, "refusals": 0}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    from conftest import sentences, write_rows

    from rlrecipes.pipeline import prepare
    from rlrecipes.profile import load_profile

    data = write_rows(tmp_path_factory.mktemp("scores") / "pairs.jsonl", sentences(60))
    return prepare("translation", load_profile("tiny"), data=str(data))
