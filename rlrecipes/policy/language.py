"""The language of an answer, where it can be told.

language_of("Yesterday the old teacher read the book.") -> "en"; language_of("今日は") -> "ja"; language_of("Ben, 4") -> None
"""

from __future__ import annotations

from functools import cache
from typing import Any

import regex

SCRIPTS = {
    "ja": r"[\p{Hira}\p{Kana}]", "ko": r"\p{Hang}", "zh": r"\p{Han}", "th": r"\p{Thai}", "el": r"\p{Grek}",
    "ka": r"\p{Geor}", "hy": r"\p{Armn}", "ta": r"\p{Taml}", "te": r"\p{Telu}", "km": r"\p{Khmr}",
}  # fmt: skip
"""Scripts that one language alone writes, or nearly so, by language; kana before Han, which Japanese writes too."""
KANA = 0.1
"""The share of kana in Japanese is a third or more; a foreign name in Chinese stays below this."""
SURE = 0.7
"""The least probability of a language. "The child reads." has 0.60 of English, a sentence of forty letters 0.95."""


def language_of(text: str) -> str | None:
    """The language as ISO 639 codes it: by its script where that tells it, else by py3langid; None where neither is sure."""
    letters = len(regex.findall(r"\p{L}", text))
    for code, script in SCRIPTS.items():
        if letters and len(regex.findall(script, text)) > letters * (KANA if code == "ja" else 0.5):
            return code
    code = _identifier().classify(text)[0] if letters else "und"
    return None if code == "und" else str(code)


@cache
def _identifier() -> Any:
    """A naive Bayes classifier of 140 languages over n-grams of bytes (Lui and Baldwin 2012)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=SURE)
