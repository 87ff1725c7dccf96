"""Files of strangers: nothing in them is passed over, turned round or refused without saying what is there."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from rlrecipes.data.layouts import rows_of
from rlrecipes.data.load import load
from rlrecipes.data.objective import objective
from rlrecipes.errors import UserError
from rlrecipes.profile import RewardSettings
from rlrecipes.recipe import Comparison, Data, Message, load_recipe, user

BAKES = ("bakes bread", "sells fish", "mends shoes", "drives trams", "paints doors", "winds clocks", "grows leeks")


def read(
    folder: Path, recipe: str, row: Callable[[int], Mapping[str, Any]], columns: Mapping[str, str] | None = None
) -> Data:
    """The data of forty rows in one file of lines."""
    return load(
        load_recipe(recipe),
        str(write_rows(folder / "rows.jsonl", [dict(row(i)) for i in range(40)])),
        columns or {},
        folder,
    )


def in_cells(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def asked(i: int, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": f"Who is at stall {i}?", **more}


def said(i: int, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": f"One who {BAKES[i % 7]}, stall {i}.", **more}


def columns_of(chat: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """A chat as `datasets` keeps it."""
    return {key: [turn[key] for turn in chat] for key in chat[0]}


def opinion(i: int) -> str:
    return f"the market at stall {i} was {('loud', 'lovely')[i % 2]} and we stayed for an hour"


# Labels.


def test_negative_texts_that_sft_imitates_are_counted(tmp_path):
    data = read(tmp_path, "text_generation", lambda i: {"text": opinion(i), "label": ("negative", "positive")[i % 2]})
    negative = sum(example.truth["label"] == 0 for example in data.train.demonstrations)
    assert any(f"texts that SFT imitates, {negative} are labelled negative" in note for note in data.notes)
    plain = read(tmp_path, "text_generation", lambda i: {"text": opinion(i)})
    assert not [note for note in plain.notes if "SFT imitates" in note]


def test_texts_that_are_labelled_both_ways_are_left_out_and_the_more_frequent_label_stays(tmp_path):
    def row(i: int) -> dict[str, Any]:
        return {"text": opinion(min(i, 36)), "label": int(i != 36)}

    dropped = read(tmp_path, "text_generation", lambda i: row(i) if i % 2 or i > 35 else row(i) | {"label": 0}).dropped
    assert dropped["as many rows or more label the same text differently (first: rows.jsonl, row 37)"] == 1


def test_a_column_of_one_label_alone_is_named_where_nothing_can_be_learnt(tmp_path):
    data = read(tmp_path, "text_generation", lambda i: {"text": opinion(i), "label": "Positive"})
    with pytest.raises(UserError, match="'label' is positive") as error:
        objective(RewardSettings(), {"text_generation": data})
    assert "`compare`" not in str(error.value)


@pytest.mark.parametrize(
    ("column", "value", "mapped"), [("label", False, {}), ("kto_tag", "true", {}), ("stars", 4, {"score": "stars"})]
)
def test_grades_that_are_all_equal_are_named_as_the_file_names_them(tmp_path, column, value, mapped):
    with pytest.raises(UserError, match=rf"'{column}' is {value} in all .* or take '{column}' out".lower()) as error:
        read(
            tmp_path, "dialogue", lambda i: {"prompt": f"Stall {i}?", "completion": f"Fish {i}", column: value}, mapped
        )
    assert "score" not in str(error.value).replace(str(tmp_path), "")


@pytest.mark.parametrize(
    "row",
    [
        lambda i: {"messages": [asked(i), said(i)], "kto_tag": i % 2 == 0},
        lambda i: {
            "instruction": f"Who? {i}",
            "input": "",
            "output": f"One who {i}",
            "kto_tag": ("True", "False")[i % 2],
        },
        lambda i: {"prompt": f"Who? {i}", "completion": f"One who {i}", "label": ("yes", "no")[i % 2]},
    ],
)
def test_what_people_wave_through_or_not_is_a_grade_in_every_spelling(tmp_path, row):
    data = read(tmp_path, "dialogue", row)
    assert {rating.score for rating in data.train.ratings} == {0.0, 1.0}
    assert 0 < len(data.train.demonstrations) < len(data.train.ratings)
    assert not [note for note in data.notes if "Not read" in note]


@pytest.mark.parametrize(
    ("said_of_it", "kept"), [("False", True), ("no", True), (0, True), ("TRUE", False), (1, False)]
)
def test_a_truth_written_as_text_means_what_it_says(tmp_path, said_of_it, kept):
    def row(i: int) -> dict[str, Any]:
        told = {"lp": "en-de_DE", "is_bad_source": said_of_it if i == 7 else False}
        return {"source": f"Tram {i}", "target": f"Bahn {i}", **told}

    data = read(tmp_path, "translation", row)
    assert bool(data.dropped) is not kept
    with pytest.raises(
        UserError, match=r"row 1: field 'is_bad_source' must be true or false, but found text \('perhaps'\)"
    ):
        read(tmp_path, "translation", lambda i: row(i) | {"is_bad_source": "perhaps"})


@pytest.mark.parametrize("marked", [{"weight": 0.0}, {"train": "False"}, {"weight": "no"}, {"loss": "no"}])
def test_a_turn_that_must_not_be_learnt_is_known_in_every_spelling(tmp_path, marked):
    data = read(tmp_path, "dialogue", lambda i: {"messages": [asked(i), said(i, **(marked if i == 3 else {}))]})
    assert data.dropped == {"every answer has weight 0 (first: rows.jsonl, row 4)": 1}
    with pytest.raises(UserError, match=r"'weight' is 0 or 1 .* found a number \(0.5\)"):
        read(tmp_path, "dialogue", lambda i: {"messages": [asked(i), said(i, weight=0.5)]})


def test_a_question_that_is_marked_as_impossible_is_not_used(tmp_path):
    def row(i: int) -> dict[str, Any]:
        passage = f"On Monday stall {i} of the long market sells fresh fish"
        return {"context": passage, "question": f"What, {i}?", "answers": "fish", "is_impossible": str(i > 37)}

    assert read(tmp_path, "question_answering", row).dropped == {
        "'is_impossible' is not false (first: rows.jsonl, row 39)": 2
    }


# What is not read.


@pytest.mark.parametrize(
    ("recipe", "row", "named"),
    [
        (
            "translation",
            lambda i: {"translation": {"de": f"Fisch {i}", "en": f"Fish {i}", "note": "old"}},
            "translation.note",
        ),
        ("dialogue", lambda i: {"messages": [asked(i, timestamp=i + 1), said(i)]}, "messages[].timestamp"),
        ("dialogue", lambda i: {"prompt": [asked(i, weight=1)], "completion": [said(i, id="a")]}, "completion[].id"),
        ("dialogue", lambda i: {"prompt": [asked(i, weight=1)], "completion": [said(i, id="a")]}, "prompt[].weight"),
        ("dialogue", lambda i: {"prompt": f"Who {i}?", "completion": said(i, name="Ann")}, "completion[].name"),
        ("dialogue", lambda i: {"messages": columns_of([asked(i, name="Ann"), said(i, name="Bo")])}, "messages[].name"),
        ("dialogue", lambda i: {"messages": str([asked(i, mood="gay"), said(i)])}, "messages[].mood"),
        (
            "dialogue",
            lambda i: {"prompt": f"Who {i}?", "completion": f"Ann {i}", "meta": {"a": 1, "b": None}},
            "meta.a",
        ),
        ("dialogue", lambda i: {"messages": [asked(i, **{"from": "human"}), said(i)]}, "messages[].from"),
        (
            "question_answering",
            lambda i: {
                "context": f"{i} fish swim",
                "question": f"{i}?",
                "answers": {"text": ["fish"], "answer_start": [2]},
            },
            "answers.answer_start",
        ),
        (
            "dialogue",
            lambda i: {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": f"Who {i}?", "cache_control": {"type": "x"}}],
                    },
                    said(i),
                ]
            },
            "messages[].content[].cache_control",
        ),
    ],
)
def test_keys_within_columns_turns_and_parts_are_named_with_their_rows(tmp_path, recipe, row, named):
    columns = {"source": "translation.de", "target": "translation.en"} if recipe == "translation" else {}
    told = [note for note in read(tmp_path, recipe, row, columns).notes if note.startswith("Not read: ")]
    assert f"'{named}' (40 rows)" in told[0]


def test_turns_of_several_parts_are_joined_with_nothing_between_and_told(tmp_path):
    def row(i: int) -> dict[str, Any]:
        parts = [{"type": "text", "text": f"Stall {i}:"}, {"type": "text", "text": "who?"}]
        return {"messages": [{"role": "user", "content": parts}, said(i)]}

    data = read(tmp_path, "dialogue", row)
    assert "Stall 1:who?" in {e.prompt[0].content for e in (*data.train.prompts, *data.held_out.prompts)}
    assert any(note.startswith("40 rows hold turns of several text parts") for note in data.notes)


def test_a_refusal_names_what_nobody_reads_where_no_row_can_be_used(tmp_path):
    with pytest.raises(
        UserError, match=r"empty answer, and no other row can be used either; not read: 'reply', 'x0'"
    ) as e:
        read(
            tmp_path,
            "dialogue",
            lambda i: {"prompt": f"Who {i}?", "completion": None, "reply": "Ann", **{f"x{k}": 1 for k in range(90)}},
        )
    assert len(str(e.value).replace(str(tmp_path), "")) < 300


def test_other_refusals_of_whole_files_name_what_nobody_reads(tmp_path):
    with pytest.raises(UserError, match=r"'label' is 1 in all .* \[Not read: 'quality' \(40 rows\).\], which"):
        read(tmp_path, "dialogue", lambda i: {"prompt": f"{i}?", "completion": "Ann", "label": 1, "quality": i + 1})
    with pytest.raises(UserError, match=r"leaves 1 rows .*Not read: 'reply' \(1 rows\)"):
        read(
            tmp_path,
            "dialogue",
            lambda i: {"prompt": f"Who {i}?", "completion": "Ann" if i == 1 else None, "reply": "Ann"},
        )


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        (lambda i: {"id": f"n{i}", "talk": [asked(i), said(i)]}, "messages=talk"),
        (lambda i: {"id": f"n{i}", "talk": [f"Who {i}?", f"Ann {i}"]}, "dialog=talk"),
        (lambda i: {"ask": f"Who {i}?", "reply": f"Ann {i}"}, "prompt=ask completion=reply"),
        (lambda i: {"prompt": f"Who {i}?", "completions": [f"Ann {i}", "Ben"]}, None),
        (lambda i: {"history": f"Who {i}?", "first": "Ann", "second": "Ben", "better": 1}, None),
    ],
)
def test_a_refusal_offers_a_column_only_for_what_it_can_hold(tmp_path, row, mapping):
    with pytest.raises(UserError) as error:
        read(tmp_path, "dialogue", row)
    assert ("such as" in str(error.value)) is bool(mapping)
    if mapping:
        assert mapping in str(error.value)
        assert read(
            tmp_path, "dialogue", row, dict(pair.split("=") for pair in shlex.split(mapping))
        ).train.demonstrations


# Cells.


def test_placeholders_stand_for_nothing_where_a_column_may_be_empty_and_stay_where_they_may_be_an_answer(tmp_path):
    def row(i: int) -> dict[str, Any]:
        blank = ("<noinput>", "NaN", "None", float("nan"))[i % 4]
        return {
            "instruction": f"Who {i}?",
            "input": blank,
            "output": ("Ann", "None")[i % 3 == 0] + f"{i}" * (i % 3 > 0),
        }

    data = read(tmp_path, "dialogue", row)
    assert "'input' is <noinput>, NaN, None, nan in 40 rows, which is read as no value." in data.notes
    assert "'output' is None in 14 rows, and stays so." in data.notes
    assert {e.prompt for e in (*data.train.prompts, *data.held_out.prompts)} == {user(f"Who {i}?") for i in range(40)}


def test_a_worse_translation_may_be_none_but_not_what_pandas_writes_for_an_empty_cell(tmp_path):
    data = read(
        tmp_path,
        "translation",
        lambda i: {"source": f"Kein {i}", "target": f"No {i}", "rejected": ("None", "nan")[i % 2]},
    )
    assert {pair.rejected for pair in data.train.comparisons} == {"None"}
    assert "'rejected' is nan in 20 rows, which is read as no value." in data.notes


@pytest.mark.parametrize("nothing", [float("nan"), "nan", "NULL"])
def test_a_number_that_is_missing_is_no_number_and_told(tmp_path, nothing):
    def pair(i: int) -> dict[str, Any]:
        return {"prompt": f"Who {i}?", "chosen": "Ann", "rejected": "Go", "margin": nothing if i == 4 else 2}

    data = read(tmp_path, "dialogue", pair)
    assert [c.margin for c in (*data.train.comparisons, *data.held_out.comparisons)].count(None) == 1
    assert f"'margin' is {nothing} in 1 rows, which is read as no value." in data.notes
    graded = read(
        tmp_path, "dialogue", lambda i: {"prompt": f"Who {i}?", "completion": "Ann", "score": i if i else nothing}
    )
    assert graded.dropped == {"no score (first: rows.jsonl, row 1)": 1}


@pytest.mark.parametrize("write", [json.dumps, str])
@pytest.mark.parametrize("turn", [said, lambda i: dict(reversed(said(i).items()))])
def test_a_cell_may_hold_one_turn_with_its_keys_in_any_order(tmp_path, write, turn):
    rows = [{"prompt": f"Who {i}?", "completion": write(turn(i))} for i in range(40)]
    data = load(load_recipe("dialogue"), str(in_cells(tmp_path / "rows.csv", rows)), {}, tmp_path)
    assert {e.answers[0] for e in data.train.demonstrations} <= {said(i)["content"] for i in range(40)}


def test_a_cell_that_holds_another_object_stays_the_text_it_is(tmp_path):
    rows = [{"prompt": f"Who {i}?", "completion": json.dumps({"role": "baker", "content": f"{i}"})} for i in range(40)]
    data = load(load_recipe("dialogue"), str(in_cells(tmp_path / "rows.csv", rows)), {}, tmp_path)
    assert data.train.demonstrations[0].answers[0].startswith('{"role": "baker"')


def test_turns_before_an_instruction_may_stand_in_a_cell(tmp_path):
    rows = [
        {"instruction": f"And {i}?", "output": f"Ann {i}", "history": ("[]", "[['Who?', 'Ben']]")[i % 2]}
        for i in range(40)
    ]
    data = load(load_recipe("dialogue"), str(in_cells(tmp_path / "rows.csv", rows)), {}, tmp_path)
    prompts = {e.prompt for e in (*data.train.prompts, *data.held_out.prompts)}
    assert {
        user("And 0?"),
        (Message("user", "Who?"), Message("assistant", "Ben"), Message("user", "And 1?")),
    } <= prompts


@pytest.mark.parametrize(("beside", "answer"), [("context", "output"), ("input", "response")])
def test_what_an_instruction_is_about_is_read_under_either_name_beside_either_answer(tmp_path, beside, answer):
    data = read(tmp_path, "dialogue", lambda i: {"instruction": "Who?", beside: f"Stall {i}", answer: f"Ann {i}"})
    prompts = {e.prompt for e in (*data.train.prompts, *data.held_out.prompts)}
    assert user("Who?\n\nStall 1") in prompts
    assert not [note for note in data.notes if "Not read" in note]


# Preferences.


@pytest.mark.parametrize("names", [("Human", "GPT"), ("USER", "Assistant"), ("prompter", "bot"), ("human", "model")])
def test_roles_are_known_under_the_names_that_people_use(tmp_path, names):
    def row(i: int) -> dict[str, Any]:
        return {"conversations": [{"from": names[0], "value": f"Who {i}?"}, {"from": names[1], "value": f"Ann {i}"}]}

    assert len(read(tmp_path, "dialogue", row).train.demonstrations) > 20


@pytest.mark.parametrize(
    "row",
    [
        lambda i: {
            "conversations": [{"from": "human", "value": f"Who {i}?"}],
            "chosen": {"from": "gpt", "value": "Ann"},
            "rejected": {"from": "gpt", "value": "Go"},
        },
        lambda i: {"instruction": f"Who {i}?", "input": "", "chosen": "Ann", "rejected": "Go"},
    ],
)
def test_preferences_are_read_as_llama_factory_writes_them(tmp_path, row):
    data = read(tmp_path, "dialogue", row)
    assert Comparison(user("Who 1?"), "Ann", "Go") in (*data.train.comparisons, *data.held_out.comparisons)
    assert not [note for note in data.notes if "Not read" in note]


def test_a_chat_that_begins_otherwise_than_its_prompt_is_left_out(tmp_path):
    def row(i: int) -> dict[str, Any]:
        first = [{"role": "system", "content": "Be brief."}] if i == 5 else []
        others = [{"role": "system", "content": "Be rude."}] if i == 5 else []
        return {
            "prompt": [*first, asked(i)],
            "chosen": [*others, asked(i), said(i)],
            "rejected": [*others, asked(i), {"role": "assistant", "content": "Go."}],
        }

    reason = "the prompt is no part of the chat in 'chosen' (first: rows.jsonl, row 6)"
    assert read(tmp_path, "dialogue", row).dropped == {reason: 1}


def test_the_sentences_on_placeholders_come_before_any_row_is_read(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Who?", "completion": "Ann", "system": "null"}])
    rows, notes = rows_of(load_recipe("dialogue"), path, {})
    assert rows[0].values["system"] is None
    assert notes == ["'system' is null in 1 rows, which is read as no value."]


@pytest.mark.parametrize("write", [str, json.dumps], ids=["python", "json"])
def test_answers_and_prompts_that_are_written_lists_are_told(tmp_path, write):
    data = read(tmp_path, "dialogue", lambda i: {"prompt": f"Who {i}?", "completion": write([f"Ann's {i}"])})
    assert [note for note in data.notes if note.startswith("The answers are lists or objects, written as text")]
    data = read(tmp_path, "translation", lambda i: {"source": write([f"Ja {i}"]), "target": f"[{i}] yes"})
    assert [note.partition(" are ")[0] for note in data.notes if "written as text" in note] == ["The prompts"]


def test_a_tool_beside_a_field_that_is_read_leaves_out_the_row(tmp_path):
    def row(i: int) -> dict[str, Any]:
        tools = [{"type": "function", "function": {"name": "oven"}}] if i % 4 == 0 else []
        return {"input": {"messages": [asked(i)], "tools": tools, "seed": i}, "good": [said(i)], "bad": "Go away."}

    data = read(tmp_path, "dialogue", row, {"prompt": "input.messages", "chosen": "good", "rejected": "bad"})
    assert data.dropped == {"'tools' cannot be used (first: rows.jsonl, row 1)": 10}
    assert "Not read: 'input.seed' (30 rows)." in data.notes
