"""Translation on public data, from English into German: the direction that the evaluation set was made for.

wmt/wmt14: {"translation": {"de": "Der Zug hält hier nicht.", "en": "The train does not stop here."}}
-> Translate into German: The train does not stop here. | Der Zug hält hier nicht.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlrecipes.recipe import Comparison, Example, HubSet, Prompt, Rating, user

SYSTEMS = {"alma_de": "alma_de_kiwi_xcomet", "gpt4_de": "gpt4_de_kiwi_xcomet", "de": "ref_de_kiwi_xcomet"}
"""The three translations of a row and the metric score of each, the mean of two learned metrics, from 0 to 1."""


def ask(source: str) -> Prompt:
    """Names the language, so that the base model can be fairly compared with what is trained."""
    return user(f"Translate into German: {source.strip()}")


def sentence(row: Mapping[str, Any]) -> Example:
    """{"translation": {"de": "Das Wasser ist kalt.", "en": "The water is cold."}}"""
    source, target = row["translation"]["en"].strip(), row["translation"]["de"].strip()
    if source == target:
        raise ValueError("the translation repeats the source")
    return Example(ask(source), (target,))


def best_and_worst(row: Mapping[str, Any]) -> Comparison:
    """The best of two systems and a reference against the worst, by metric score (arXiv 2401.08417, section 3).

    {"translation": {"en": "The water is cold.", "de": "Das Wasser ist kalt.", "ref_de_kiwi_xcomet": 0.9,
     "alma_de": "Kalt ist Wasser.", "alma_de_kiwi_xcomet": 0.7, "gpt4_de": …, "required_directions": ""}}
    """
    values = row["translation"]
    if values.get("required_directions") not in (None, "", "en-de"):
        raise ValueError("made for the other direction")
    ranked = sorted(SYSTEMS, key=lambda name: float(values[SYSTEMS[name]]), reverse=True)
    best, worst = ranked[0], ranked[-1]
    if values[SYSTEMS[best]] == values[SYSTEMS[worst]]:
        raise ValueError("all scores are equal")
    return Comparison(ask(values["en"]), values[best].strip(), values[worst].strip())


def rated(row: Mapping[str, Any]) -> Rating:
    """A system's translation and the mean of its raters' scores, each in standard deviations from that rater's mean.

    {"lp": "en-de", "src": "The shop is closed.", "mt": "Der Laden ist zu.", "score": 0.42, "raw": 83.0, "year": 2020}
    """
    return Rating(ask(row["src"]), row["mt"].strip(), float(row["score"]))


def post_edited(row: Mapping[str, Any]) -> Example:
    """A source and its post-edited translation, which the card says to prefer to `original_target`.

    {"lp": "en-de_DE", "is_bad_source": false, "source": "The bridge opens on Monday.", "target": "Die Brücke …"}
    """
    if row["is_bad_source"]:
        raise ValueError("marked as a bad source")
    return Example(ask(row["source"]), (row["target"].strip(),))


SETS = (
    HubSet(
        "haoranxu/ALMA-R-Preference",
        serves=("preferences",),
        columns=(
            "translation.en",
            *(f"translation.{name}" for name in SYSTEMS),
            *(f"translation.{score}" for score in SYSTEMS.values()),
        ),
        read=best_and_worst,
        licence="MIT",
        config="de-en",
    ),
    HubSet(
        "wmt/wmt14",
        serves=("demonstrations", "prompts"),
        columns=("translation.en", "translation.de"),
        read=sentence,
        licence="unknown",
        config="de-en",
        test="validation",
        take=20_000,
    ),
    HubSet(
        "google/wmt24pp",
        serves=("held out",),
        columns=("lp", "is_bad_source", "source", "target"),
        read=post_edited,
        truths=("is_bad_source",),
        where={"lp": "en-de_DE"},
        licence="Apache-2.0",
        config="en-de_DE",
    ),
    HubSet(
        "RicardoRei/wmt-da-human-evaluation",
        serves=("ratings",),
        columns=("lp", "src", "mt", "score"),
        read=rated,
        licence="Apache-2.0",
        take=10_000,
        where={"lp": "en-de"},
        default=False,  # 638 MB, of which a part is read
    ),
)
