"""Metrics of answers, and the intervals around them.

A metric turns each answer into a row of statistics, and the summed rows into a number. A mean sums scores and their
count; BLEU sums n-gram counts. So every metric, per-sentence or corpus-level, has the same bootstrap: resample the
rows, sum, finish (Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation").
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import regex

from rlrecipes.errors import UserError
from rlrecipes.recipe import Example, Metric
from rlrecipes.text import (
    UNSPACED,
    is_number,
    ngrams,
    normal_words,
    normalize_answer,
    overlap_f1,
    parted,
    quoted,
    repeated,
    shortened,
    words,
)

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 1000
"""Each end of a 95 % interval then has 25 resamples beyond it."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """As `done.json` holds it, to six places."""
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


@dataclass(frozen=True)
class Scores:
    """The statistics of a mean: each answer's score, and 1."""

    score: Callable[[str, Example], float]

    def __call__(self, answers: Sequence[str], examples: Sequence[Example]) -> list[tuple[float, float]]:
        return [(self.score(answer, example), 1.0) for answer, example in zip(answers, examples, strict=True)]


def mean_of(
    name: str,
    score: Callable[[str, Example], float],
    needs: str | None = None,
    applies: Callable[[Sequence[Example]], bool] | None = None,
) -> Metric:
    """The metric that is the mean over answers of `score(answer, example)`."""
    return Metric(
        name=name,
        statistics=Scores(score),
        finish=ratio,
        score=score,
        needs=needs,
        applies=applies,
    )


def exact_match(answer: str, example: Example) -> float:
    """1 if the answer equals any reference after SQuAD's normalisation, else 0."""
    return float(any(normalize_answer(answer) == normalize_answer(reference) for reference in example.answers))


def same_words(answer: str, example: Example) -> float:
    """1 if the answer has the words of any reference in its order, case and punctuation aside, else 0."""
    return float(any(words(answer) == words(reference) for reference in example.answers))


def f1(answer: str, example: Example) -> float:
    """Best bag-of-words F1 against any reference after SQuAD's normalisation, from 0 to 1.

    The words of scripts without spaces are characters, as MLQA's evaluation has it (Lewis et al. 2020).
    """
    said = normal_words(answer)
    return max((overlap_f1(said, normal_words(reference)) for reference in example.answers), default=0.0)


def chrf(answer: str, example: Example) -> float:
    """Sentence chrF (Popović 2015) against the references, from 0 to 1, by sacrebleu."""
    return float(_chrf().sentence_score(_nfc(answer), [_nfc(reference) for reference in example.answers]).score) / 100


def length(answer: str, example: Example) -> float:
    """Number of words; a character of a script without spaces is a word."""
    return float(len(words(answer)))


def repetition(answer: str, example: Example) -> float:
    """Share of the answer's word trigrams that repeat an earlier one, from 0 to 1 (seq-rep-3, Welleck et al. 2020)."""
    return repeated(words(answer))


def bleu() -> Metric:
    """Corpus BLEU by sacrebleu, from 0 to 100; `_tokenizer` chooses the tokenizer by the references' script."""

    def statistics(answers: Sequence[str], examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        scorer = _bleu(_tokenizer(examples))
        # sacrebleu keeps per-sentence counts behind a leading underscore; the version is pinned.
        return [
            scorer._extract_corpus_statistics([_nfc(answer)], [[_nfc(text)] for text in example.answers or ("",)])[0]
            for answer, example in zip(answers, examples, strict=True)
        ]

    def finish(sums: Sequence[float]) -> float:
        return float(_bleu("13a")._aggregate_and_compute([list(map(int, sums))]).score)

    return Metric("bleu", statistics, finish)


def ter() -> Metric:
    """Corpus TER (Snover et al. 2006) by sacrebleu: edits in percent of the references' words. Lower is better."""

    def statistics(answers: Sequence[str], examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        tokenizer = _tokenizer(examples)
        scorer = _ter(tokenizer != "13a")
        read = (lambda text: parted(_nfc(text))) if tokenizer == "char" else _nfc
        return [
            scorer._extract_corpus_statistics([read(answer)], [[read(text)] for text in example.answers or ("",)])[0]
            for answer, example in zip(answers, examples, strict=True)
        ]

    return Metric("ter", statistics, lambda sums: float(_ter(False)._aggregate_and_compute([list(sums)]).score))


def rouge(kind: str) -> Callable[[str, Example], float]:
    """ROUGE's F1 (Lin 2004), best against any reference, from 0 to 1, by rouge-score over our words; without stemming.

    Args:
        kind: as the library names it: `rouge1`, `rouge2`, …, or `rougeL` for the longest common subsequence.
    """

    def score(answer: str, example: Example) -> float:
        return float(_rouge(kind).score_multi(example.answers, answer)[kind].fmeasure) if example.answers else 0.0

    return score


def distinct(n: int) -> Metric:
    """Distinct-n (Li et al. 2016): different n-grams over all n-grams of all answers, from 0 to 1; low means monotony.

    An n-gram that occurs `c` times counts `1 / c` at each place. So the sum over answers is the number of different
    n-grams, and the bootstrap can resample an answer's row.
    """

    def statistics(answers: Sequence[str], examples: Sequence[Example]) -> Sequence[Sequence[float]]:
        grams = [ngrams(words(answer), n) for answer in answers]
        counts = Counter(gram for row in grams for gram in row)
        return [(sum(1 / counts[gram] for gram in row), float(len(row))) for row in grams]

    return Metric(f"distinct_{n}", statistics, ratio)


def estimate(metric: Metric, answers: Sequence[str], examples: Sequence[Example]) -> Interval:
    """The metric over all answers, with its bootstrap interval over examples.

    Raises:
        UserError: it gives an answer a value that is no finite number, or not each answer a row of as many.
    """
    rows = metric.statistics(answers, examples)
    if not _is_table(rows, len(answers)):
        raise UserError(
            f"the `statistics` of the metric {quoted(metric.name, 30)} must give {len(answers)} answers a row of numbers "
            f"each, all of one length, and gave {shortened(repr(rows), 60)}; mend it"
        )
    for answer, row in zip(answers, rows, strict=True):
        for value in row:
            if not is_number(value):
                raise UserError(
                    f"the metric {quoted(metric.name)} gave {shortened(repr(value), 30)} on the answer {quoted(answer)}, "
                    "which is no finite number; mend it"
                )
    return bootstrap(rows, metric.finish)


def _is_table(rows: Any, count: int) -> bool:
    """Whether these are `count` rows of one length."""
    try:
        return len(rows) == count and len({len(row) for row in rows}) <= 1
    except TypeError:
        return False


def mean_interval(scores: Sequence[float]) -> Interval:
    """The mean of per-example scores (or of paired differences), with its interval."""
    return bootstrap([(score, 1.0) for score in scores], ratio)


def bootstrap(statistics: Sequence[Sequence[float]], finish: Callable[[Sequence[float]], float]) -> Interval:
    """Percentile bootstrap over the rows of `statistics` `[examples, k]`, the same resamples every time; NaN without rows."""
    import numpy as np

    rows = np.asarray(statistics, dtype=float)
    n = len(rows)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    resampled: np.ndarray = np.array([finish(sums) for sums in counts @ rows])
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(finish(rows.sum(axis=0))), float(low), float(high))


def correlation(scores: Sequence[float], ratings: Sequence[float], ranked: bool) -> Interval:
    """Pearson's correlation of two columns `[n]`, or (`ranked`) Spearman's, with its percentile bootstrap over the rows.

    NaN where a column is constant or empty. Every resample ranks its rows anew; equal values share their mean rank.
    """
    import numpy as np

    pairs = np.asarray([scores, ratings], dtype=float)
    n = pairs.shape[1]
    whole = _correlation(pairs, ranked) if n else None
    if whole is None:
        return Interval(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    resampled = [value for rows in draws if (value := _correlation(pairs[:, rows], ranked)) is not None]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(whole, float(low), float(high))


def _correlation(pairs: np.ndarray, ranked: bool) -> float | None:
    """The correlation of the two rows of `[2, n]`; None where one is constant."""
    import numpy as np

    if (pairs == pairs[:, :1]).all(axis=1).any():
        return None
    return float(np.corrcoef([_ranks(row) for row in pairs] if ranked else pairs)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    import numpy as np

    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (counts.cumsum() - (counts - 1) / 2)[places]
    return ranks


def ratio(sums: Sequence[float]) -> float:
    """The first sum over the second: a mean."""
    return float(sums[0] / sums[1]) if sums[1] else 0.0


def _tokenizer(examples: Sequence[Example]) -> str:
    """sacrebleu's tokenizer for the references: 13a where spaces part the words, else one that needs none."""
    text = "".join(answer for example in examples for answer in example.answers)
    if 4 * len(regex.findall(UNSPACED, text)) <= len(text):
        return "13a"
    if len(regex.findall(r"[\p{Hira}\p{Kana}]", text)) * 10 > len(text):
        return "ja-mecab" if find_spec("MeCab") and find_spec("ipadic") else "char"
    return "zh" if 4 * len(regex.findall(r"\p{Han}", text)) > len(text) else "char"


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@cache
def _bleu(tokenize: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenize)


@cache
def _ter(unspaced: bool) -> Any:
    from sacrebleu.metrics.ter import TER

    return TER(normalized=unspaced, asian_support=unspaced)


@cache
def _rouge(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], tokenizer=SimpleNamespace(tokenize=words))
