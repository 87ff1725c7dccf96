from functools import cache
from random import Random

import pytest

from recipes.dialogue import builtin
from recipes.dialogue.builtin import SLOTS, Request
from recipes.dialogue.recipe import RECIPE, compare, polite, read, slots
from rlrecipes.recipe import Data, Example, Message, user
from rlrecipes.text import words

PROMPT = (
    Message("user", "I called at noon. I need a table for four."),
    Message("assistant", "On what day, and under what name?"),
    Message("user", "On Friday, the name is Miller."),
)
ASKED = {"kind": "table", "number": "four", "day": "Friday", "name": "Miller"}
RIGHT = "Certainly, your table for four is booked for Friday, Miller. Thank you!"
FOUR_SLOTS = Example(PROMPT, (RIGHT,), {"slots": ASKED})
ALL_SLOTS = "Certainly, your table for four is booked for Friday at seven, Miller. Thank you!"
FULL = Example(PROMPT, (ALL_SLOTS,), {"slots": ASKED | {"time": "seven"}})


@cache
def world() -> Data:
    return RECIPE.builtin()


def requests(count: int = 300) -> list[Request]:
    rng = Random(3)
    return [builtin._request(rng, held_out=False) for _ in range(count)]


def met(*texts: str) -> list[dict[str, str]]:
    """The names and days of some texts, each with each."""
    text = " ".join(texts)
    return [{"name": n, "day": d} for n in SLOTS["name"] if n in text for d in SLOTS["day"] if d in text]


def said(prompt) -> str:
    return " ".join(message.content for message in prompt)


def test_a_held_out_name_and_day_never_share_a_dialogue_in_training():
    data = world()
    dialogues = [
        met(said(e.prompt), *e.answers) for e in (*data.train.demonstrations, *data.train.prompts, *RECIPE.documents())
    ]
    dialogues += [met(said(c.prompt), c.chosen, c.rejected) for c in data.train.comparisons]
    assert not any(builtin.is_held_out(pair) for pairs in dialogues for pair in pairs)


def test_every_held_out_dialogue_has_a_name_and_day_that_training_lacks():
    for item in (*world().held_out.prompts, *world().held_out.comparisons):
        assert any(builtin.is_held_out(pair) for pair in met(said(item.prompt)))


def test_numbers_and_times_have_no_word_in_common():
    assert not set(SLOTS["number"]) & set(SLOTS["time"])


def test_every_value_is_said_in_the_dialogue_asked_for_or_in_passing():
    for request in requests():
        values = {value.lower() for value in (*request.slots.values(), *request.passing.values())}
        assert len(values) == len(SLOTS)
        assert values <= set(words(said(request.prompt)))


def test_each_of_number_day_and_time_is_left_open_by_a_third_of_the_requests():
    for slot in ("number", "day", "time"):
        open_in = [slot not in example.truth["slots"] for example in world().train.prompts]
        assert sum(open_in) / len(open_in) == pytest.approx(1 / 3, abs=0.04)


def test_the_world_speaks_as_its_specimen_does():
    request, rng = Request(PROMPT, ASKED, ("number",), {"time": "noon"}), Random(0)
    assert builtin.right(request, rng) == RIGHT
    assert builtin.distracted(request, rng) == "Certainly, your table is booked for Friday at noon, Miller. Thank you!"
    assert builtin.forgetful(request, rng) == "Certainly, your table is booked for Friday, Miller. Thank you!"
    assert builtin.curt(request, rng) == "Your table for four is booked for Friday, Miller."
    assert builtin.deaf(request, rng) == "On what day, and under what name?"


def test_a_distracted_answer_is_as_long_as_the_right_one_and_made_of_what_was_said():
    rng = Random(0)
    for request in requests():
        right, distracted = (words(style(request, rng)) for style in (builtin.right, builtin.distracted))
        assert right != distracted
        assert len(right) == len(distracted)
        assert {word for word in distracted if word not in right} <= {*words(said(request.prompt)), "for"}


def test_a_mistaken_answer_has_two_slots_wrong():
    rng = Random(0)
    for request in requests():
        example = Example(request.prompt, (), {"slots": request.slots})
        wrong = len(request.slots) * (1 - slots(builtin.mistaken(request, rng), example))
        assert wrong == pytest.approx(2)


def test_an_inventive_answer_is_complete_but_does_not_score_as_such():
    rng = Random(0)
    for request in requests():
        assert 0 < slots(builtin.inventive(request, rng), Example(request.prompt, (), {"slots": request.slots})) < 1


def test_most_demonstrations_are_forgetful():
    share = sum(slots(d.answers[0], d) < 1 for d in world().train.demonstrations) / len(world().train.demonstrations)
    assert share == pytest.approx(builtin.FAULTY, abs=0.03)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (ALL_SLOTS, 1),
        ("your TABLE for Four is booked for friday AT seven, miller", 1),
        ("Certainly, your table for four is booked at seven, Miller. Thank you!", 0.8),
        ("Certainly, your table for six is booked for Friday at seven, Miller. Thank you!", 0.8),
        ("Certainly, your table for four is booked for Friday at seven, Miller, for Monday.", 0.8),
        ("Certainly, your table at four is booked for Friday for seven, Miller.", 0.6),
        ("Under what name?", 0),
        ("", 0),
    ],
)
def test_slots_counts_the_values_that_stand_alone_in_their_place(answer, score):
    assert slots(answer, FULL) == pytest.approx(score)


def test_a_slot_that_nobody_asked_for_counts_as_a_wrong_one():
    assert slots(ALL_SLOTS, FOUR_SLOTS) == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("answer", "score"), [(RIGHT, 1), ("With PLEASURE!", 1), ("Your table is booked.", 0), ("", 0), ("thankful", 0)]
)
def test_courtesy_is_a_word_of_its_own(answer, score):
    assert polite((), answer, FULL) == score


def test_a_dialogue_is_read_as_turns_with_the_last_as_the_answer():
    example = read({"dialog": [*(message.content for message in PROMPT), RIGHT]})
    assert example == Example(PROMPT, (RIGHT,))


@pytest.mark.parametrize("dialog", [[], ["Hello."], ["Hello.", "Good day.", "A table, please."]])
def test_a_dialogue_must_end_with_the_assistant(dialog):
    with pytest.raises(ValueError, match="'dialog' must have an even number of turns"):
        read({"dialog": dialog})


@pytest.mark.parametrize("dialog", ["Hello.", ["Hello.", 3], ["Hello.", " "], {"turns": []}])
def test_a_dialogue_must_be_a_list_of_texts(dialog):
    with pytest.raises(ValueError, match="'dialog' must be a list of texts"):
        read({"dialog": dialog})


def test_the_rejected_answer_is_the_reply_to_another_prompt():
    others = [Example(user("Hello."), ("Good day.",)), FOUR_SLOTS]
    for seed in range(10):
        pair = compare(FOUR_SLOTS, others, Random(seed))
        assert pair is not None
        assert (pair.chosen, pair.rejected) == (RIGHT, "Good day.")


@pytest.mark.parametrize(
    "other",
    [
        FOUR_SLOTS,
        Example(PROMPT, ("Under what name?",)),
        Example(user("Hello."), (RIGHT.lower(),)),
        Example(user("Hello."), ("",)),
        Example(user("Hello.")),
    ],
)
def test_there_is_no_comparison_without_another_reply(other):
    assert compare(FOUR_SLOTS, [other], Random(0)) is None


def test_without_slots_the_headline_is_the_overlap_with_the_preferred_reply():
    applicable = [metric.name for metric in RECIPE.evaluation.metrics if metric.needs is None]
    assert applicable[0] == "overlap"
