from functools import cache
from random import Random

import pytest

from recipes.translation import builtin
from recipes.translation.recipe import RECIPE, ask, closeness, compare, garbled, read
from rlrecipes.metrics import chrf
from rlrecipes.recipe import Data, Example


@cache
def world() -> Data:
    return RECIPE.builtin()


def sentences(count: int, pairs=builtin.HELD_OUT):
    return builtin._sentences(Random(7), pairs, count)


def german(example) -> set[str]:
    return set(example.prompt[0].content.removeprefix("Translate: ").rstrip(".").split())


def forms(pair) -> tuple[set[str], set[str]]:
    verb, thing = pair
    return {verb.infinitive, verb.third, verb.participle}, {thing.singular, thing.plural}


def trained() -> list[set[str]]:
    data = world()
    parts = (data.train.demonstrations, data.train.prompts, data.train.comparisons, RECIPE.documents())
    return [german(item) for part in parts for item in part]


def test_a_held_out_verb_and_object_never_meet_in_training():
    held_out = [forms(pair) for pair in builtin.HELD_OUT]
    for told in trained():
        assert not any(told & verb and told & thing for verb, thing in held_out), told


def test_every_held_out_sentence_has_a_verb_and_object_that_training_lacks():
    held_out = [forms(pair) for pair in builtin.HELD_OUT]
    for item in (*world().held_out.prompts, *world().held_out.comparisons):
        told = german(item)
        assert any(told & verb and told & thing for verb, thing in held_out), told


def test_every_word_of_the_held_out_sentences_occurs_in_training():
    known = {word.lower() for told in trained() for word in told}
    assert {word.lower() for example in world().held_out.prompts for word in german(example)} <= known


def test_word_for_word_is_another_sentence_than_the_right_one():
    found = sentences(300)
    assert sum(it.right != it.literal for it in found) / len(found) > 0.85


@pytest.mark.parametrize(
    ("source", "right", "literal"),
    [
        (
            "Letzte Woche haben die kleinen Töchter den schönen Brief nicht geschrieben.",
            "Last week the small daughters did not write the beautiful letter.",
            "Last week have the small daughters the beautiful letter not written.",
        ),
        (
            "Die Mädchen haben letzte Woche den Brief geschrieben.",
            "The girls wrote the letter last week.",
            "The girls have last week the letter written.",
        ),
        (
            "Die Schwester will bald den neuen Brief schreiben.",
            "The sister wants to write the new letter soon.",
            "The sister wants soon the new letter write.",
        ),
        (
            "Die Bauern schreiben heute die alten Briefe nicht.",
            "The farmers do not write the old letters today.",
            "The farmers write today the old letters not.",
        ),
        (
            "Jeden Tag schreibt der junge Mann den neuen Brief.",
            "Every day the young man writes the new letter.",
            "Every day writes the young man the new letter.",
        ),
    ],
)
def test_the_world_translates_rightly_and_word_for_word(source, right, literal):
    writing = [pair for pair in builtin.PAIRS if (pair[0].base, pair[1].english) == ("write", "letter")]
    said = {it.source: it for it in sentences(400, writing)}
    assert said[source] == (source, right, literal)


def test_most_demonstrations_are_word_for_word():
    literal = {ask(it.source): it.literal for it in builtin._sentences(Random(0), builtin.TRAINED, 3000)}
    share = sum(literal[example.prompt] == example.answers[0] for example in world().train.demonstrations) / 3000
    assert share == pytest.approx(builtin.FAULTY, abs=0.04)


def test_another_seed_makes_another_world():
    assert builtin.generate(ask, seed=1).held_out.prompts != world().held_out.prompts


def test_a_row_is_a_source_and_its_target():
    assert read({"source": " Guten Tag. ", "target": "Good day.\n"}) == Example(ask("Guten Tag."), ("Good day.",))


@pytest.mark.parametrize("value", [None, "", "  ", 3, ["Good day."]])
def test_a_row_without_text_is_refused_by_the_name_of_its_field(value):
    with pytest.raises(ValueError, match="'target' must be a text"):
        read({"source": "Guten Tag.", "target": value})
    with pytest.raises(ValueError, match="'source' must be a text"):
        read({"source": value, "target": "Good day."})


@pytest.mark.parametrize(
    "target",
    ["Yesterday the old teacher read the book.", "昨天老老师在家里读了那本新书。", "Kto to jest, panie doktorze?"],
)
def test_a_garbled_translation_is_made_of_the_same_pieces(target):
    for seed in range(50):
        worse = garbled(target, Random(seed))
        assert worse != target
        assert set(worse) <= set(target)
        assert (" " in worse) == (" " in target)


def test_garbling_gives_nothing_away_by_its_length():
    target = " ".join(f"word{i}" for i in range(10, 40))
    lengths = [len(garbled(target, Random(seed))) for seed in range(400)]
    assert sum(lengths) / len(lengths) == pytest.approx(len(target), rel=0.05)


def test_a_made_comparison_is_sometimes_another_translation_and_sometimes_a_garbled_one():
    examples, rng = world().held_out.prompts[:50], Random(0)
    targets = {example.answers[0] for example in examples}
    foreign = [compare(example, examples, rng).rejected in targets for example in examples for _ in range(5)]
    assert 0.3 < sum(foreign) / len(foreign) < 0.7


def test_a_translation_of_one_word_gives_no_garbled_pair():
    rng = Random(0)
    made = [compare(Example(ask("Ja."), ("Yes.",)), [], rng) for _ in range(50)]
    assert all(pair is None or pair.rejected.strip() not in ("", "Yes.") for pair in made)


def test_no_answers_mean_no_comparison_and_no_chrf_in_the_reward():
    example = Example(ask("Ja."))
    assert compare(example, world().held_out.prompts, Random(0)) is None
    assert closeness(example.prompt, "Yes.", example) == 0.0


def test_the_chrf_term_is_the_metric():
    example = world().held_out.prompts[0]
    assert closeness(example.prompt, "The dog.", example) == chrf("The dog.", example)
