"""Metrics give the numbers of their sources, and intervals around them."""

import math
import random

import pytest
import sacrebleu

from rlrecipes.errors import UserError
from rlrecipes.metrics import (
    bleu,
    bootstrap,
    chrf,
    correlation,
    distinct,
    estimate,
    exact_match,
    f1,
    length,
    mean_interval,
    mean_of,
    repetition,
    rouge,
    same_words,
    ter,
)
from rlrecipes.recipe import Example, user

ANSWERS = [
    "The old teacher reads the book.",
    "A child sees the red house on a hill",
    "My brother has found a small dog.",
    "The woman writes two letters to her friend.",
    "We go to the sea in summer, you know.",
]
REFERENCES = [
    ("The old teacher is reading the book.", "The aged teacher reads the book."),
    ("The child sees the red house on the hill.", "A kid sees the red house."),
    ("My brother found a small dog.", "My brother found the little dog."),
    ("The woman writes two letters to a friend.", "The lady writes two letters."),
    ("In summer we go to the sea.", "We go to the sea in summer."),
]
EXAMPLES = [Example(user("?"), references) for references in REFERENCES]


def known(*answers):
    return Example(user("?"), answers)


def test_bleu_is_sacrebleus_corpus_score():
    streams = [list(column) for column in zip(*REFERENCES, strict=True)]
    expected = sacrebleu.corpus_bleu(ANSWERS, streams).score
    assert 20 < expected < 80
    assert estimate(bleu(), ANSWERS, EXAMPLES).value == pytest.approx(expected)


def test_bleu_of_chinese_is_sacrebleus_with_its_chinese_tokenizer():
    answers = ["老师正在读一本旧书。", "孩子看见山上的红房子。", "我哥哥找到了一只小狗。"]
    references = ["老师在读一本旧书。", "孩子看见了山上的红房子。", "我哥哥找到一只小狗。"]
    expected = sacrebleu.corpus_bleu(answers, [references], tokenize="zh").score
    assert expected > 20
    examples = [known(reference) for reference in references]
    assert estimate(bleu(), answers, examples).value == pytest.approx(expected)


def test_ter_is_sacrebleus_corpus_score_and_0_for_what_equals_a_reference():
    streams = [list(column) for column in zip(*REFERENCES, strict=True)]
    expected = sacrebleu.corpus_ter(ANSWERS, streams).score
    assert 20 < expected < 80
    assert estimate(ter(), ANSWERS, EXAMPLES).value == pytest.approx(expected)
    assert estimate(ter(), [references[1] for references in REFERENCES], EXAMPLES).value == 0
    assert estimate(ter(), ["老师正在读一本旧书。"], [known("老师在读一本旧书。")]).value == pytest.approx(100 / 9)


def test_rouge_is_the_best_f1_over_references_in_words_of_any_script():
    answer, example = "The cat sat on the mat.", known("A dog.", "the cat on the mat")
    assert rouge("rouge1")(answer, example) == pytest.approx(2 * 5 / (6 + 5))
    assert rouge("rouge2")(answer, example) == pytest.approx(2 * 3 / (5 + 4))
    assert rouge("rougeL")(answer, example) == pytest.approx(2 * 5 / (6 + 5))
    assert rouge("rougeL")("今天天气好", known("今天天气很好")) == pytest.approx(2 * 5 / (5 + 6))
    assert rouge("rougeL")("", example) == rouge("rougeL")(answer, known()) == 0


@pytest.mark.parametrize(
    ("answer", "references", "exact", "overlap"),
    [
        ("The Eiffel Tower!", ("Eiffel tower",), 1, 1),
        ("in the year 1066", ("1066", "year 1066"), 0, 0.8),
        ("Paris", ("London", "Rome"), 0, 0),
        ("a", ("the",), 1, 1),
    ],
)
def test_a_short_answer_is_scored_as_squad_scores_it(answer, references, exact, overlap):
    example = known(*references)
    assert exact_match(answer, example) == exact
    assert f1(answer, example) == pytest.approx(overlap)


def test_chrf_is_sacrebleus_sentence_score():
    for answer, example in zip(ANSWERS, EXAMPLES, strict=True):
        expected = sacrebleu.sentence_chrf(answer, list(example.answers)).score / 100
        assert 0.2 < expected < 1
        assert chrf(answer, example) == pytest.approx(expected)


@pytest.mark.parametrize("score", [exact_match, same_words, f1, chrf])
def test_the_reference_scores_one_and_silence_nothing(score):
    example = known("The red house", "A red house")
    assert score("A red house", example) == pytest.approx(1)
    assert score("", example) == 0
    assert score("blue", example) < 0.3


def test_exact_match_forgives_articles_and_punctuation_and_same_words_forgives_punctuation_alone():
    example = known("the cat")
    assert exact_match("A cat!", example) == 1
    assert same_words("A cat!", example) == 0
    assert same_words("The cat.", example) == 1


def test_f1_is_the_best_over_the_references():
    assert f1("red house", known("blue", "red car house")) == pytest.approx(2 * 2 / 5)


def test_without_references_nothing_matches():
    assert (exact_match("a", known()), f1("a", known())) == (0, 0)


def test_length_counts_words_and_chinese_characters():
    assert length("well-made, 真好", known()) == 3


def test_repetition_is_the_share_of_trigrams_said_before():
    assert repetition("a b c a b c", known()) == pytest.approx(1 / 4)
    assert repetition("a b c d", known()) == 0
    assert repetition("a b", known()) == 0


def test_distinct_counts_different_ngrams_over_all():
    answers = ["a b a b", "a b c"]  # ab ba ab | ab bc: 3 different of 5
    assert estimate(distinct(2), answers, [known()] * 2).value == pytest.approx(3 / 5)
    assert estimate(distinct(1), answers, [known()] * 2).value == pytest.approx(3 / 7)
    assert estimate(distinct(3), ["a"], [known()]).value == 0


def test_an_interval_holds_its_value_and_narrows_with_more_examples():
    rng = random.Random(0)
    scores = [rng.random() for _ in range(1000)]
    few, many = mean_interval(scores[:50]), mean_interval(scores)
    for interval in (few, many):
        assert interval.low < interval.value < interval.high
    assert many.value == pytest.approx(sum(scores) / 1000)
    assert many.high - many.low < (few.high - few.low) / 3
    assert many.high - many.low == pytest.approx(2 * 1.96 * math.sqrt(1 / 12 / 1000), rel=0.15)


def test_an_interval_is_the_same_every_time():
    assert mean_interval([0.1, 0.5, 0.9]) == mean_interval([0.1, 0.5, 0.9])


def test_every_corpus_metric_has_an_interval_around_its_value():
    for metric in (bleu(), distinct(1), mean_of("chrf", chrf)):
        interval = estimate(metric, ANSWERS, EXAMPLES)
        assert interval.low <= interval.value <= interval.high
        assert interval.low < interval.high


def test_nothing_gives_nan():
    assert math.isnan(bootstrap([], lambda sums: sums[0]).value)


def test_a_constant_has_no_width():
    interval = mean_interval([0.5] * 20)
    assert (interval.low, interval.value, interval.high) == pytest.approx((0.5, 0.5, 0.5))


def test_json_holds_value_and_interval():
    assert mean_interval([1.0]).as_json() == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_spearman_is_one_minus_the_squared_rank_differences():
    # Without ties: 1 - 6 Σd² / (n (n² - 1)); here d = (0, 1, 1, 0, 0).
    found = correlation([10, 30, 20, 40, 1000], [1, 2, 3, 4, 5], ranked=True)
    assert found.value == pytest.approx(1 - 6 * 2 / (5 * 24))
    assert found.low <= found.value <= found.high


def test_equal_values_share_their_mean_rank():
    tied = correlation([1, 1, 2, 3], [1, 2, 3, 4], ranked=True).value
    assert tied == pytest.approx(correlation([1.5, 1.5, 3, 4], [1, 2, 3, 4], ranked=False).value)


def test_pearson_sees_size_where_spearman_sees_order():
    given, expected = [1, 2, 3, 4, 50], [1, 2, 3, 4, 5]
    assert correlation(given, expected, ranked=True).value == pytest.approx(1)
    assert correlation(given, expected, ranked=False).value == pytest.approx(100 / (1810 * 10) ** 0.5)


def test_an_interval_of_a_correlation_narrows_with_the_rows():
    rng = random.Random(0)
    x = [rng.gauss(0, 1) for _ in range(400)]
    y = [a + rng.gauss(0, 1) for a in x]
    small, large = (correlation(x[:n], y[:n], ranked=True) for n in (40, 400))
    assert large.high - large.low < (small.high - small.low) / 2
    assert large.low < 0.69 < large.high  # of two normals that correlate at 0.71


@pytest.mark.parametrize("given", [[], [1.0], [2.0, 2.0, 2.0]])
def test_without_variation_there_is_no_correlation(given):
    assert math.isnan(correlation(given, list(range(len(given))), ranked=True).value)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda answer, example: math.nan, "gave nan on the answer 'bad', which is no finite number; mend it"),
        (lambda answer, example: -math.inf, "gave -inf on the answer 'bad'"),
        (lambda answer, example: "1", "gave '1' on the answer 'bad'"),
        (lambda answer, example: None, "gave None on the answer 'bad'"),
    ],
)
def test_a_metric_that_is_no_number_is_told_with_the_answer(score, said):
    metric = mean_of("odd", lambda answer, example: score(answer, example) if answer == "bad" else 1.0)
    with pytest.raises(UserError) as error:
        estimate(metric, ["good", "bad"], [Example(user("?"))] * 2)
    assert f"the metric 'odd' {said}" in str(error.value)
