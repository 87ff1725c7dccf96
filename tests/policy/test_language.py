"""The language of answers is told where it is clear, and a shift of it is counted over answers that both show one."""

import pytest

from rlrecipes.policy.answers import Answer
from rlrecipes.policy.language import language_of
from rlrecipes.policy.scores import Scored, compare, styles, with_languages
from rlrecipes.recipe import Example, user

GERMAN = "Gestern hat der alte Lehrer das Buch gelesen."
ENGLISH = "Yesterday the old teacher read the book."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        (GERMAN, "de"),
        ("Bien sûr, votre table est réservée.", "fr"),
        ("Это хорошая книга, я её прочитал.", "ru"),
        ("Привіт, як справи сьогодні?", "uk"),
        ("好", "zh"),
        ("本です", "ja"),
        ("네", "ko"),
        ("αλφα", "el"),
        ("Ben, the kitchen", None),
        ("7 + 4 = 11", None),
        ("", None),
    ],
)
def test_a_language_is_told_by_its_script_or_by_enough_words(text, language):
    assert language_of(text) == language


def spoken(*texts):
    given = [Answer(text, True) for text in texts]
    zeros = [0.0] * len(texts)
    return Scored(given, given, zeros, zeros, zeros, None, {"words": zeros})


def test_a_shift_is_measured_on_prompts_whose_two_answers_show_a_language():
    scored = with_languages({
        "sft": spoken(*[GERMAN] * 30, *["Ben"] * 10),
        "ppo": spoken(*["Ben"] * 10, *[ENGLISH] * 15, *[GERMAN] * 5, *[ENGLISH] * 10),
    })  # fmt: skip
    examples = [Example(user("Wer?"))] * 40
    shares = {name: styles(each, examples) for name, each in scored.items()}
    assert (shares["sft"]["language_de"]["value"], shares["sft"]["language_en"]["value"]) == (1, 0)
    assert shares["ppo"]["language_en"]["value"] == pytest.approx(25 / 30, abs=1e-6)
    assert compare(scored["ppo"], scored["sft"])["language_en_gain"]["value"] == 0.75
    assert compare(scored["ppo"], scored["sft"])["language_de_gain"]["value"] == -0.75


def test_a_language_of_a_few_answers_is_not_counted():
    scored = with_languages({"sft": spoken(*[GERMAN] * 9), "ppo": spoken(*[ENGLISH] * 9)})
    assert compare(scored["ppo"], scored["sft"]).keys() & {"language_de_gain", "language_en_gain"} == set()
    others = with_languages({"sft": spoken(*[GERMAN] * 300), "ppo": spoken(*[GERMAN] * 280, *[ENGLISH] * 20)})
    assert [name for name in others["ppo"].style if name.startswith("language")] == ["language_de"]
