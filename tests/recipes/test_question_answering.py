import json
import re
from functools import cache
from itertools import product
from random import Random

import pytest

from recipes.question_answering import builtin
from recipes.question_answering.builtin import Fact, Question
from recipes.question_answering.recipe import RECIPE, ask, compare, extractive, passage, read
from rlrecipes.metrics import exact_match, f1
from rlrecipes.recipe import Data, Example, user

FACT = Fact("Ben", "took", "take", "red", "cup", "kitchen", "Monday")
WHERE = Question(ask(FACT.sentence(), "Where did Ben take the cup?"), ("where",), (FACT,))
WHO_AND_WHERE = Question(ask(FACT.sentence(), "Who took the cup, and where to?"), ("who", "where"), (FACT,))


@cache
def world() -> Data:
    return RECIPE.builtin()


def questions(count: int = 300) -> list[Question]:
    rng = Random(3)
    return [builtin._question(ask, rng, held_out=False) for _ in range(count)]


def met(text: str) -> list[tuple[str, str]]:
    """The things and places of a text, each with each."""
    words = re.findall(r"\w+", text)
    return list(product((w for w in words if w in builtin.THINGS), (w for w in words if w in builtin.PLACES)))


def test_a_held_out_thing_and_place_never_share_a_text_in_training():
    data = world()
    texts = [
        f"{e.prompt[0].content} {e.answers[0]}"
        for e in (*data.train.demonstrations, *data.train.prompts, *RECIPE.documents())
    ]
    texts += [f"{c.prompt[0].content} {c.chosen} {c.rejected}" for c in data.train.comparisons]
    assert not any(builtin.is_held_out(thing, place) for text in texts for thing, place in met(text))


def test_every_held_out_passage_has_a_thing_and_place_that_training_lacks():
    for item in (*world().held_out.prompts, *world().held_out.comparisons):
        assert any(builtin.is_held_out(thing, place) for thing, place in met(item.prompt[0].content))


def test_every_word_of_the_held_out_passages_occurs_in_training():
    known = {word for e in world().train.demonstrations for word in e.prompt[0].content.split()}
    assert {word for e in world().held_out.prompts for word in e.prompt[0].content.split()} <= known


def test_every_reference_is_made_of_spans_of_its_passage():
    for example in world().held_out.prompts:
        assert all(span in passage(example.prompt) for span in example.answers[0].split(", "))


def test_a_question_about_one_of_two_sentences_fits_that_sentence_alone():
    for question in questions():
        asked = question.prompt[0].content.rpartition("Question: ")[2]
        for other in question.facts[1:]:
            assert not {other.person, other.thing, other.place} & set(re.findall(r"\w+", asked))


def test_two_facts_come_in_the_order_of_the_question():
    assert builtin.right(WHO_AND_WHERE, Random(0)) == "Ben, the kitchen"


def test_haste_loses_the_second_fact():
    assert builtin.hasty(WHO_AND_WHERE, Random(0)) == "Ben"


def test_haste_mistakes_where_for_when():
    assert builtin.hasty(WHERE, Random(0)) == "on Monday"


@pytest.mark.parametrize("fault", [builtin.hasty, *builtin.OTHER_FAULTS])
def test_no_fault_is_a_right_answer(fault):
    rng = Random(0)
    for question in questions():
        assert not exact_match(fault(question, rng), Example(question.prompt, (builtin.right(question, rng),)))


def test_a_made_up_answer_says_what_the_passage_does_not():
    rng = Random(0)
    for question in questions():
        answer = builtin.made_up(question, rng)
        assert extractive(question.prompt, answer, Example(question.prompt)) < 1


def test_most_demonstrations_are_hasty():
    rights = {example.prompt: example.answers[0] for example in world().train.prompts}
    judged = [d.answers[0] != rights[d.prompt] for d in world().train.demonstrations if d.prompt in rights]
    assert sum(judged) / len(judged) == pytest.approx(builtin.FAULTY, abs=0.05)


@pytest.mark.parametrize(
    "answers",
    [["Rome", "in Rome", "Rome"], ("Rome", " in Rome "), {"text": ["Rome", "in Rome"], "answer_start": [4, 1]}],
)
def test_answers_are_read_as_a_list_or_as_squad_keeps_them(answers):
    example = read({"context": "It is in Rome.", "question": "Where is it?", "answers": answers})
    assert example == Example(user("It is in Rome.\nQuestion: Where is it?"), ("Rome", "in Rome"))


def test_one_answer_may_be_a_plain_text():
    assert read({"context": "It is in Rome.", "question": "Where?", "answers": "Rome"}).answers == ("Rome",)


@pytest.mark.parametrize("answers", [[], [" "], "", {"text": [], "answer_start": []}, {"text": None}])
def test_a_question_without_an_answer_is_not_used(answers):
    with pytest.raises(ValueError, match="'answers' is empty: questions without an answer are not used"):
        read({"context": "It is in Rome.", "question": "Where?", "answers": answers})


@pytest.mark.parametrize(
    ("field", "value"), [("context", 3), ("context", " "), ("question", ["Where?"]), ("answers", 7), ("answers", [7])]
)
def test_a_value_of_the_wrong_kind_is_named(field, value):
    with pytest.raises(ValueError, match=f"'{field}' must be"):
        read({"context": "It is in Rome.", "question": "Where?", "answers": ["Rome"]} | {field: value})


def test_the_question_stands_last():
    example = read({"context": "It is in Rome.", "question": "Where?", "answers": "Rome"})
    assert example.prompt[-1].content.endswith("Question: Where?")


@pytest.mark.parametrize(
    ("answer", "share"), [("Rome", 1), ("in rome.", 1), ("Paris", 0), ("Rome Paris", 0.5), ("", 0), ("!", 0)]
)
def test_extractive_is_the_share_of_words_that_the_passage_has(answer, share):
    assert extractive(ask("It is in Rome.", "Why not Paris?"), answer, Example(())) == share


def test_a_part_of_a_hyphenated_word_counts_as_extractive():
    assert extractive(ask("A six-time winner from Rome's north.", "How often?"), "six Rome", Example(())) == 1


def test_a_prompt_of_another_layout_is_a_passage_as_a_whole():
    assert passage(user("Where is Rome?")) == "Where is Rome?"


def test_the_rejected_span_is_as_long_as_the_reference_and_shares_no_word_with_any():
    context = "The large harbour of Hamburg lies on the river Elbe, and ships from Japan reach it within five weeks."
    example = Example(ask(context, "Where is the harbour?"), ("river Elbe", "the river Elbe"))
    for seed in range(50):
        pair = compare(example, (), Random(seed))
        assert pair is not None
        assert pair.chosen == "river Elbe"
        assert len(pair.rejected.split()) == 2
        assert pair.rejected in context
        assert f1(pair.rejected, example) == 0


@pytest.mark.parametrize("answers", [(), ("It is in Rome",)])
def test_there_is_no_comparison_without_another_span(answers):
    assert compare(Example(ask("It is in Rome.", "Where?"), answers), (), Random(0)) is None


@pytest.mark.parametrize(
    "cell",
    [
        "{'text': ['the attic'], 'answer_start': [3]}",
        '{"text": ["the attic"]}',
        "{'text': array(['the attic'], dtype=object), 'answer_start': array([3], dtype=int32)}",
        "['the attic']",
        "the attic",
    ],
)
def test_a_csv_cell_may_hold_squads_answers_as_python_writes_them(cell):
    assert read({"context": "It lives in the attic.", "question": "Where?", "answers": cell}).answers == ("the attic",)


def test_a_cell_that_starts_like_squads_answers_and_cannot_be_read_is_left_out():
    with pytest.raises(ValueError, match="'answers' holds an object that cannot be read"):
        read({"context": "It lives in the attic.", "question": "Where?", "answers": "{'text': <attic>}"})


@pytest.mark.parametrize("cell", ["['attic' 'loft']", "{'text': array(['attic', 'loft'\n 'roof'], dtype=object)}"])
def test_a_list_as_numpy_prints_it_is_not_joined_to_one_answer(cell):
    with pytest.raises(ValueError, match="'answers' holds a list without commas"):
        read({"context": "It lives in the attic.", "question": "Where?", "answers": cell})


@pytest.mark.parametrize("write", [str, json.dumps], ids=["python", "json"])
@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"answer_start": [13], "text": ["the attic"]}, None),
        ([{"text": "the attic", "answer_start": 13}], "'answers' must be a list of texts"),
        ({"input_text": "the attic", "span_start": 13}, "'answers' is an object without 'text'"),
    ],
    ids=["start first", "a list of objects", "other keys"],
)
def test_no_object_in_a_cell_is_taken_for_the_text_of_an_answer(answers, said, write):
    row = {"context": "It lives in the attic.", "question": "Where?", "answers": write(answers)}
    if said is None:
        assert read(row).answers == ("the attic",)
    else:
        with pytest.raises(ValueError, match=re.escape(said)):
            read(row)
