"""What one cheap feature alone would reach on comparisons: a reward model that does not beat it has learned no more.

baselines([Comparison(…), …])
    -> {"has 'thank'": {0.91, …}, "more words": {0.88, …}, "ends in no punctuation": {0.5, …}, …}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import regex

from rlrecipes.metrics import Interval, mean_interval
from rlrecipes.recipe import Comparison, Prompt
from rlrecipes.text import COURTESY, words

_REFUSAL = regex.compile(
    r"(sorry, but )?(i (can'?t|cannot|can not|won't)|i('m| am) (sorry|unable|not able)|as an ai)\b"
)
"""How English answers that refuse begin."""
_END = regex.compile(r"""[\p{Sentence_Terminal}…][\p{Pe}\p{Pf}"'*_]*\s*$""")
"""A sentence's end in any script, with the brackets, quotes and marks of emphasis that close after it."""

Feature = Callable[[Prompt, str], float]


def baselines(comparisons: Sequence[Comparison]) -> dict[str, Interval]:
    """How often the chosen answer is ahead by one feature alone, best feature first; a tie counts half. {} without rows.

    A feature that the rejected answers have more of stands under the name of its opposite, so no value is below a half.
    The word is the one that tells most on these very rows: of many rare words, some tell by chance.
    """
    if not comparisons:
        return {}
    found = dict(_better(more, less, feature, comparisons) for more, less, feature in (*FEATURES, _word(comparisons)))
    return dict(sorted(found.items(), key=lambda item: -item[1].value))


def win(chosen: float, rejected: float) -> float:
    """1 where the chosen answer's number is greater, 0 where the other's is, and a half for a tie."""
    return 1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0


def _better(more: str, less: str, feature: Feature, comparisons: Sequence[Comparison]) -> tuple[str, Interval]:
    """The better of a feature's two directions, with what it reaches."""
    wins = [win(feature(pair.prompt, pair.chosen), feature(pair.prompt, pair.rejected)) for pair in comparisons]
    if 2 * sum(wins) >= len(wins):
        return more, mean_interval(wins)
    return less, mean_interval([1 - each for each in wins])


def _word(comparisons: Sequence[Comparison]) -> tuple[str, str, Feature]:
    """The word whose presence in one answer and not in the other tells most; the first in the alphabet of equals."""
    balance = Counter[str]()
    for pair in comparisons:
        chosen, rejected = set(words(pair.chosen)), set(words(pair.rejected))
        balance.update(chosen - rejected)
        balance.subtract(rejected - chosen)
    word = max(sorted(balance), key=lambda word: abs(balance[word]), default="")
    return f"has '{word}'", f"lacks '{word}'", lambda prompt, answer: float(word in words(answer))


def _overlap(prompt: Prompt, answer: str) -> float:
    """Share of the answer's words that stand in the prompt; 0 for an answer without words."""
    told, said = {word for message in prompt for word in words(message.content)}, words(answer)
    return sum(word in told for word in said) / len(said) if said else 0.0


def _copies(prompt: Prompt, answer: str) -> float:
    """Whether the words of the answer stand in one turn of the prompt in this order, and nothing between them."""
    said = f" {' '.join(words(answer))} "
    return float(any(said in f" {' '.join(words(message.content))} " for message in prompt))


def _refuses(prompt: Prompt, answer: str) -> float:
    return float(bool(_REFUSAL.match(answer.strip().lower().replace("’", "'"))))


FEATURES: Sequence[tuple[str, str, Feature]] = (
    ("more words", "fewer words", lambda prompt, answer: len(words(answer))),
    ("more characters", "fewer characters", lambda prompt, answer: len(answer)),
    ("ends in punctuation", "ends in no punctuation", lambda prompt, answer: float(bool(_END.search(answer)))),
    ("more of its words from the prompt", "fewer of its words from the prompt", _overlap),
    ("copies the prompt", "does not copy the prompt", _copies),
    (
        "has a word of courtesy",
        "has no word of courtesy",
        lambda prompt, answer: not COURTESY.isdisjoint(words(answer)),
    ),
    ("refuses", "does not refuse", _refuses),
)
"""The names of both directions, and what is compared."""
