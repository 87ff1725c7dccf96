"""How positive a text is: by lists of words, or by a judge fitted to labelled text.

is_positive("was charming, and even the ending was perfect.")         -> True
is_positive("was charming, but the ending was dull and left us cold.") -> False
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from math import exp, log

from rlrecipes.text import ngrams, words

GOOD = """amazing beautiful best brilliant charming cheerful clever comfortable delicious delighted delightful enjoy enjoyable
    enjoyed excellent fantastic fascinating friendly fun funny glad good gorgeous graceful grateful great happy hilarious
    impressive joy joyful kind lively love loved lovely magical marvellous memorable moving nice perfect pleasant pleasure
    smile smiled splendid superb sweet terrific thrilling touching warm witty wonderful"""
BAD = """angry annoying awful bad bitter bland boring bored clumsy cold confusing cried cruel depressing disappointed
    disappointing dreadful dreary dull empty fail failed fails flat gloomy hated horrible lifeless lonely mess miserable
    nasty pain painful pathetic pointless poor predictable rude ruined sad sadly sighed silly stale stupid tedious terrible
    tired tiresome ugly unfunny unhappy unpleasant waste weak worse worst wrong"""
GOOD_CHINESE = """棒 精彩 美好 美丽 美妙 美味 出色 迷人 动人 感人 开心 高兴 快乐 愉快 满足 满意 幸福 温暖 温馨 好吃 好看 好听
    喜欢 优秀 完美 可爱 有趣 舒服 难忘"""
BAD_CHINESE = """糟糕 差劲 乏味 无趣 无聊 失望 难过 扫兴 沮丧 伤心 悲伤 难吃 难看 难听 讨厌 可怕 可惜 痛苦 生气 糟 冷清 孤单
    后悔 失败 烦人"""

ENGLISH = frozenset(["the", "and", "of", "to", "is", "that", "it", "with", "for", "this", "are", "not", "as", "but"])
"""Small words that are about a fifth of English text, and at most 0.4 % of German, Romanian or Chinese text."""


def _signed(good: str, bad: str, pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.format(good="|".join(good.split()), bad="|".join(bad.split())))


_ENGLISH = _signed(
    GOOD,
    BAD,
    r"(?P<negated>(?:\b(?:not|never|no|hardly)|n['’]t) (?:very |so |a )?)?\b(?:(?P<good>{good})|(?P<bad>{bad}))\b",
)
_CHINESE = _signed(
    GOOD_CHINESE, BAD_CHINESE, r"(?P<negated>[不没](?:有|太|是|很|那么)*)?(?:(?P<good>{good})|(?P<bad>{bad}))"
)


def reads(texts: Sequence[str]) -> bool:
    """Whether the texts, taken together, are in a language of the lists: English or Chinese, or both."""
    whole = "".join(texts)
    said = [word for text in texts for word in words(text)]
    kana, han = (len(re.findall(f"[{script}]", whole)) for script in ("\u3040-\u30ff", "\u3400-\u9fff"))
    return sum(word in ENGLISH for word in said) > len(said) / 20 or han > max(len(whole) / 4, 4 * kana)


def is_positive(text: str) -> bool:
    """Whether a text of at least four words praises, nowhere blames and does not go round in circles.

    Praise and blame are words of the lists above; praise denied ("not good") is blame, blame denied counts for nothing.
    A text goes round in circles when fewer than three quarters of its pairs of neighbouring words are different.
    """
    text = text.lower()
    signs = [match for pattern in (_ENGLISH, _CHINESE) for match in pattern.finditer(text)]
    praise = sum(bool(match["good"]) and not match["negated"] for match in signs)
    blame = sum(bool(match["good"]) == bool(match["negated"]) for match in signs)
    said = words(text)
    pairs = ngrams(said, 2)
    return len(said) >= 4 and len(set(pairs)) >= 0.75 * len(pairs) and praise > 0 and blame == 0


def fitted(texts: Sequence[str], labels: Sequence[int]) -> Callable[[str], float] | None:
    """P(positive | text) by multinomial naive Bayes over words and pairs of neighbours, with add-one smoothing.

    The labels are 1 and 0; None when there is only one kind. A word is heard alone and in its pairs, so the evidence is
    halved; unhalved, nearly every probability is 0 or 1. A text without a word is positive with probability 0.
    """
    kinds = Counter(labels)
    if not (kinds[0] and kinds[1]):
        return None
    counts = {label: Counter[str]() for label in (0, 1)}
    for text, label in zip(texts, labels, strict=True):
        counts[label].update(_features(text))
    every = counts[0] + counts[1]
    totals = {label: sum(counts[label].values()) + len(every) for label in (0, 1)}
    weights = {
        feature: log((counts[1][feature] + 1) / totals[1]) - log((counts[0][feature] + 1) / totals[0])
        for feature in every
    }
    prior = log(kinds[1] / kinds[0])

    def probability(text: str) -> float:
        features = _features(text)
        evidence = prior + sum(weights.get(feature, 0.0) for feature in features) / 2
        return 1 / (1 + exp(-max(-50.0, min(50.0, evidence)))) if features else 0.0

    return probability


def _features(text: str) -> list[str]:
    said = words(text)
    return [*said, *(" ".join(pair) for pair in ngrams(said, 2))]
