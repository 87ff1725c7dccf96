"""Every usual layout of rows is understood, rows without content are counted, wrong types are named."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlrecipes.data.layouts import Records, check_names, records, rows_of
from rlrecipes.data.readers import Record
from rlrecipes.data.unread import unread_notes
from rlrecipes.errors import UserError
from rlrecipes.metrics import exact_match, mean_of
from rlrecipes.recipe import (
    UNLEARNED,
    Columns,
    Comparison,
    Data,
    Evaluation,
    Example,
    HubSet,
    Message,
    Prompt,
    Rating,
    Recipe,
    Reward,
    Split,
    user,
)

HELLO = user("Hello")
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
TURNS: Prompt = (Message("system", "Be kind."), Message("user", "Hello"))


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def translation(row: Mapping[str, Any]) -> Example:
    if not isinstance(row["source"], str):
        raise ValueError("source must be text")
    return Example(user(f"Translate: {row['source']}"), (row["target"],))


RECIPE = Recipe(
    name="translation",
    summary="",
    builtin=lambda: Data("built-in", Split(), Split()),
    documents=lambda: (),
    columns=Columns(("source", "target"), translation, optional=("rejected",)),
    reward=Reward(),
    evaluation=Evaluation((mean_of("exact", exact_match),)),
    compare=lambda example, others, rng: None,
    compared="the rejected answer is worse",
)


def write(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def records_of(path: Path, columns: Mapping[str, str], recipe: Recipe = RECIPE) -> Records:
    return records(recipe, rows_of(recipe, path, columns)[0])


def only(path: Path, row: Mapping[str, Any]) -> Record:
    (record,), _ = records_of(write(path / "rows.jsonl", row), {})
    return record


def dropped(path: Path, row: Mapping[str, Any]) -> dict[str, int]:
    """Why `row` is left out, beside a row of the same columns that is fine."""
    good = {"source": "Ja", "target": "Yes"} if "source" in row else {"prompt": "Hello", "completion": "Hi", "score": 1}
    good = {"prompt": "Hello", "chosen": "Hi", "rejected": "What?"} if "chosen" in row else good
    kept, drops = records_of(write(path / "rows.jsonl", good, row), {})
    assert len(kept) == 1
    assert {drop.place for drop in drops} == {"rows.jsonl, row 2"}
    return dict(Counter(drop.reason for drop in drops))


def trouble(path: Path, *rows: Mapping[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        records_of(write(path / "rows.jsonl", *rows), {})
    return str(error.value)


def test_a_row_in_the_recipes_own_columns_is_read_by_the_recipe(tmp_path):
    example = Example(user("Translate: Ja"), ("Yes",))
    assert only(tmp_path, {"source": "Ja", "target": "Yes"}) == Record(example.prompt, example)


def test_the_recipes_own_columns_come_before_any_other_layout(tmp_path):
    row = {"source": "Ja", "target": "Yes", "prompt": "Hello", "completion": "Hi"}
    assert only(tmp_path, row).prompt == user("Translate: Ja")


def refusing(columns: tuple[str, ...]) -> Recipe:
    """The recipe with a data set of the hub, none of whose rows can be used."""

    def read(row: Mapping[str, Any]) -> Example:
        raise ValueError("read as the hub's")

    return dataclasses.replace(RECIPE, hub=(HubSet("owner/set", ("demonstrations",), columns, read, "MIT"),))


def test_a_file_in_a_usual_layout_is_read_as_such_though_a_set_of_the_hub_has_the_same_columns(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"prompt": "Hello", "completion": "Hi"})
    (record,), _ = records_of(path, {}, refusing(("prompt", "completion")))
    assert record == Record(HELLO, Example(HELLO, ("Hi",)))


def test_a_file_with_all_columns_of_a_set_of_the_hub_is_read_as_that_set_whatever_else_it_has(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"post": "Hello", "prompt": "Hello", "completion": "Hi"})
    with pytest.raises(UserError, match="read as the hub's"):
        records_of(path, {}, refusing(("post", "completion")))
    assert records_of(path, {}, refusing(("post", "votes")))[0] == [Record(HELLO, Example(HELLO, ("Hi",)))]


def test_a_rejected_answer_in_the_recipes_own_columns_gives_a_comparison_too(tmp_path):
    prompt = user("Translate: Ja")
    record = only(tmp_path, {"source": "Ja", "target": "Yes", "rejected": "No"})
    assert record == Record(prompt, Example(prompt, ("Yes",)), Comparison(prompt, "Yes", "No"))


@pytest.mark.parametrize("rejected", ["Yes", "", " ", None])
def test_a_rejected_answer_that_is_right_or_empty_leaves_a_demonstration(tmp_path, rejected):
    record = only(tmp_path, {"source": "Ja", "target": "Yes", "rejected": rejected})
    assert record.example is not None
    assert record.comparison is None


@pytest.mark.parametrize("off", [{"weight": 0}, {"train": False}, {"loss": False}])
@pytest.mark.parametrize(
    ("unlearned", "answer", "left_out"),
    [((), "c", None), ((0,), "c", [1]), ((2,), "b", None), ((0, 2), "b", [1]), ((1,), "c", [3])],
)
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_a_turn_of_weight_0_is_no_answer(tmp_path, off, unlearned, answer, left_out, system):
    messages: list[dict[str, Any]] = []
    for place, text in enumerate("abc"):
        on = dict.fromkeys(off, 1)
        messages += [
            {"role": "user", "content": f"{text}?"},
            {**assistant(text), **(off if place in unlearned else on)},
        ]
    row = {"messages": messages} | ({"system": system} if system else {})
    demonstration = only(tmp_path, row).example
    assert demonstration is not None
    assert demonstration.answers == (answer,)
    before = 1 if system else 0
    expected = {} if left_out is None else {UNLEARNED: [place + before for place in left_out]}
    assert demonstration.truth == expected
    assert len(demonstration.prompt) == before + 1 + 2 * "abc".index(answer)


def test_a_chat_whose_answers_all_have_weight_0_is_left_out_with_the_reason(tmp_path):
    row = {"messages": [*CHAT, {**assistant("a"), "weight": 0}]}
    with pytest.raises(UserError, match="row 1: every answer has weight 0"):
        records_of(write(tmp_path / "rows.jsonl", row), {})


def test_prompts_and_answers_may_be_text_or_messages(tmp_path):
    text = only(tmp_path, {"prompt": "Hello", "chosen": "Hi", "rejected": "What?"})
    chat = only(tmp_path, {"prompt": CHAT, "chosen": [assistant("Hi")], "rejected": [assistant("What?")]})
    assert text.comparison == Comparison(HELLO, "Hi", "What?")
    assert chat.comparison == Comparison(TURNS, "Hi", "What?")


def test_an_answer_may_repeat_the_prompt_before_it(tmp_path):
    row = {"prompt": "Hello", "chosen": [CHAT[1], assistant("Hi")], "rejected": [CHAT[1], assistant("What?")]}
    assert only(tmp_path, row).comparison == Comparison(HELLO, "Hi", "What?")


def test_the_shared_beginning_of_two_chats_is_their_prompt(tmp_path):
    for chosen, rejected in (("Hi", "What?"), ("What?", "Hi")):
        row = {"chosen": [*CHAT, assistant(chosen)], "rejected": [*CHAT, assistant(rejected)]}
        assert only(tmp_path, row) == Record(TURNS, comparison=Comparison(TURNS, chosen, rejected))


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("behind", [[], [CHAT[1]]])
def test_the_last_message_of_the_assistant_is_the_answer_and_all_before_it_the_prompt(tmp_path, turns, behind):
    messages = [message for i in range(turns) for message in ({"role": "user", "content": f"{i}?"}, assistant(f"{i}."))]
    record = only(tmp_path, {"messages": messages + behind})
    prompt = tuple(Message(message["role"], message["content"]) for message in messages[:-1])
    assert record == Record(prompt, Example(prompt, (f"{turns - 1}.",)))


def test_a_graded_answer_is_a_rating(tmp_path):
    row = {"prompt": "Hello", "completion": [assistant("Hi")], "score": 3}
    assert only(tmp_path, row) == Record(HELLO, rating=Rating(HELLO, "Hi", 3.0))


def test_a_completion_is_a_demonstration(tmp_path):
    assert only(tmp_path, {"prompt": "Hello", "completion": "Hi"}) == Record(HELLO, Example(HELLO, ("Hi",)))


@pytest.mark.parametrize("margin", [None, 0, 1.5])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hello", "chosen": "Hi", "rejected": "No"},
        {
            "chosen": [{"role": "user", "content": "Hello"}, assistant("Hi")],
            "rejected": [{"role": "user", "content": "Hello"}, assistant("No")],
        },
        {"source": "Ja", "target": "Yes", "rejected": "No"},
    ],
)
def test_a_comparison_may_have_a_margin_in_every_layout(tmp_path, row, margin):
    (record,), _ = records_of(write(tmp_path / "rows.jsonl", row | {"margin": margin}), {})
    assert record.comparison is not None
    assert record.comparison.margin == margin


def test_a_score_may_be_a_number_in_text_as_csv_has_it(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,completion,score\nHello,Hi,2.5\n", encoding="utf-8")
    (record,), _ = records_of(tmp_path / "rows.csv", {})
    assert record.rating == Rating(HELLO, "Hi", 2.5)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": " ", "completion": "Hi", "score": 1}, "empty prompt"),
        ({"prompt": None, "completion": "Hi", "score": 1}, "empty prompt"),
        ({"prompt": [], "completion": "Hi", "score": 1}, "empty prompt"),
        ({"prompt": "Hello", "completion": "\n", "score": 1}, "empty answer"),
        ({"prompt": "Hello", "score": 1}, "empty answer"),
        ({"prompt": "Hello", "completion": "Hi"}, "no score"),
        ({"prompt": "Hello", "completion": "\ud83d", "score": 1}, "broken character"),
        ({"prompt": "Hello", "chosen": "Hi", "rejected": "Hi"}, "chosen equals rejected"),
        ({"prompt": "Hello", "chosen": "Hi", "rejected": "Hi \n"}, "chosen equals rejected"),
        ({"prompt": "Hello", "chosen": "Hi", "rejected": ""}, "empty answer"),
        ({"source": 3, "target": "Yes"}, "source must be text"),
        ({"source": "Ja"}, "no value in 'target'"),
        ({"source": "Ja", "target": ""}, "empty answer"),
    ],
)
def test_a_row_without_content_is_left_out_and_counted_by_its_reason(tmp_path, row, reason):
    assert dropped(tmp_path, row) == {reason: 1}


@pytest.mark.parametrize("order", [("chosen", "rejected"), ("rejected", "chosen")])
@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ([*CHAT, assistant("Hi")], [*CHAT, assistant("What?"), CHAT[1], assistant("Hm.")], "differ in more"),
        ([*CHAT, assistant("Hi"), assistant("Hi again")], CHAT, "differ in more"),
        ([*CHAT, assistant("Hi")], [*CHAT, CHAT[1]], "differ in more"),
        ([CHAT[1], assistant("Hi")], [CHAT[0], assistant("Hi")], "differ in more"),
        ([*CHAT, assistant("Hi")], [*CHAT, assistant("Hi")], "chosen equals rejected"),
    ],
)
def test_chats_that_part_before_their_last_answer_are_left_out(tmp_path, one, other, reason, order):
    good = {"chosen": [*CHAT, assistant("Hi")], "rejected": [*CHAT, assistant("What?")]}
    bad = dict(zip(order, (one, other), strict=True))
    kept, (drop,) = records_of(write(tmp_path / "rows.jsonl", good, bad), {})
    assert len(kept) == 1
    assert reason in drop.reason


def test_a_file_of_which_no_row_can_be_used_is_an_error_with_the_first_reason(tmp_path):
    message = trouble(tmp_path, {"source": 3, "target": "Yes"}, {"source": "Ja", "target": ""})
    assert message.startswith(f"{tmp_path / 'rows.jsonl'}, row 1: source must be text, and no other row")


@pytest.mark.parametrize(
    ("row", "field", "words"),
    [
        ({"prompt": 3, "completion": "Hi"}, "prompt", "text or a list of messages, but found a number (3"),
        ({"prompt": "Hello", "completion": True}, "completion", "one assistant message, but found true or false"),
        ({"prompt": "Hello", "completion": [CHAT[1]]}, "completion", "one assistant message, but found a list"),
        ({"prompt": "Hello", "completion": "Hi", "score": "high"}, "score", "a finite number, but found text ('high')"),
        ({"prompt": "Hello", "completion": "Hi", "score": "1,500"}, "score", "('1,500'); write decimals with a point"),
        ({"prompt": "Hello", "completion": "Hi", "score": 1e999}, "score", "a finite number, but found a number"),
        ({"prompt": "Hello", "completion": "Hi", "score": True}, "score", "a finite number, but found true or false"),
        (
            {"prompt": "Hello", "chosen": "Hi", "rejected": "No", "margin": -1},
            "margin",
            "0 or more, but found a number (-1)",
        ),
        (
            {"prompt": "Hello", "chosen": "Hi", "rejected": "No", "margin": "wide"},
            "margin",
            "0 or more, but found text",
        ),
        ({"messages": "Hello"}, "messages", "a list of messages, but found text"),
        (
            {"messages": [{"role": "narrator", "content": "Hello"}]},
            "messages",
            "with the roles system, user, assistant",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "a list of"),
        ({"chosen": "[Hi", "rejected": "What?"}, "chosen", "a list of messages, but found text"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_by_row_and_field_with_what_was_expected_and_found(
    tmp_path, row, field, words
):
    message = trouble(tmp_path, row)
    assert f"rows.jsonl, row 1: field '{field}' must be" in message
    assert words in message


def test_columns_of_no_known_layout_are_answered_with_those_found_those_known_and_how_to_map_them(tmp_path):
    message = trouble(tmp_path, {"source": "Ja", "post_edit": "Yes"})
    assert "has the columns source, post_edit, but translation reads source+target, or prompt+chosen" in message
    assert message.endswith("map names, such as COLUMNS='target=post_edit'")


@pytest.mark.parametrize("names", [[f"column {i}" for i in range(10_000)], ["a" * 700, "b" * 700]])
@pytest.mark.parametrize("columns", [{}, {"source": "foo"}])
def test_a_refusal_is_short_however_many_and_long_the_columns_are(tmp_path, names, columns):
    path = write(tmp_path / "rows.jsonl", dict.fromkeys(names, "x"))
    with pytest.raises(UserError) as error:
        records(RECIPE, rows_of(RECIPE, path, columns)[0])
    assert len(str(error.value).replace(str(path), "")) < 290


def test_a_long_name_that_is_not_read_is_shortened():
    assert len(unread_notes(Counter(["'" + "b" * 70_000 + "'"]))[0]) < 100


def test_a_mapped_column_is_read_under_its_new_name(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"source": "Ja", "post_edit": "Yes", "machine": "No"})
    (record,), _ = records_of(path, {"target": "post_edit", "rejected": "machine"})
    assert record.comparison == Comparison(user("Translate: Ja"), "Yes", "No")


def test_mapping_to_a_name_that_nothing_reads_is_answered_with_the_nearest(tmp_path):
    check_names(RECIPE, {"rejected": "machine", "completion": "answer"})
    with pytest.raises(UserError, match=r"rejectd=machine: there is no field 'rejectd'; did you mean 'rejected'"):
        check_names(RECIPE, {"rejectd": "machine"})
    with pytest.raises(UserError, match=r"rating=stars: there is no field 'rating'; did you mean 'score'"):
        check_names(RECIPE, {"prompt": "q", "rating": "stars"})


@pytest.mark.parametrize(("written", "number"), [("4,5", 4.5), ("-0,25", -0.25), ("4.5", 4.5), ("3", 3)])
def test_a_score_may_have_a_comma_before_its_decimals_as_spreadsheets_write_it(tmp_path, written, number):
    path = tmp_path / "ratings.csv"
    path.write_text(f"prompt;completion;score\nHello;Hi;{written}\n")
    (record,), _ = records_of(path, {})
    assert record.rating == Rating(HELLO, "Hi", number)
