"""Languages in the records of evaluation, and their names: `language_de` is the share of answers in German."""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = "language_"
NAMES = {
    "ar": "Arabic", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian",
    "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sv": "Swedish", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


def languages(measures: Iterable[str]) -> dict[str, str]:
    """The names of the languages among measures of style, by measure: `{"language_de": "German"}`."""
    codes = {name: name.removeprefix(PREFIX) for name in measures if name.startswith(PREFIX)}
    return {name: NAMES.get(code, f"the language '{code}'") for name, code in codes.items()}
