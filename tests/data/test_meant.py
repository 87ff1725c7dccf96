"""What the authors of files meant, where a reader could take it otherwise and say nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from rlrecipes.data.load import load
from rlrecipes.errors import UserError
from rlrecipes.recipe import Data, Message, load_recipe

SECRET = "the patient at pier 5 is Jane Roe"


def read(
    folder: Path, recipe: str, row: Callable[[int], Mapping[str, Any]], columns: Mapping[str, str] | None = None
) -> Data:
    """The data of forty rows in one file of lines."""
    path = write_rows(folder / "rows.jsonl", [dict(row(i)) for i in range(40)])
    return load(load_recipe(recipe), str(path), columns or {}, folder)


def in_cells(folder: Path, recipe: str, row: Callable[[int], Mapping[str, str]]) -> Data:
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(row(0)))
        table.writeheader()
        table.writerows(row(i) for i in range(40))
    return load(load_recipe(recipe), str(folder / "rows.csv"), {}, folder)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def answers(data: Data) -> set[str]:
    return {answer for example in (*data.train.demonstrations, *data.held_out.prompts) for answer in example.answers}


# Chats.


def test_a_key_that_is_null_in_a_turn_hides_no_other_of_the_same_meaning(tmp_path):
    def said(who: str, what: str) -> dict[str, Any]:
        return {"role": None, "content": None, "from": who, "value": what}

    data = read(tmp_path, "dialogue", lambda i: {"messages": [said("human", f"Pier {i}?"), said("gpt", f"Boat {i}")]})
    assert answers(data) == {f"Boat {i}" for i in range(40)}
    assert not [note for note in data.notes if "Not read" in note]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_chat_that_is_written_as_text_is_one_on_every_system(tmp_path, end):
    chat = "Human: Pier {}?||Assistant: By day?||Human: Yes.||Assistant:".replace("|", end)
    data = read(tmp_path, "dialogue", lambda i: {"prompt": chat.format(i), "chosen": f"Boat {i}", "rejected": "No."})
    assert (Message("assistant", "By day?"), Message("user", "Yes.")) in {
        pair.prompt[1:] for pair in data.train.comparisons
    }


def test_a_chat_whose_columns_are_of_different_lengths_loses_no_turn_in_silence(tmp_path):
    whole = {"role": ["user", "assistant"], "content": ["Pier?", "Boat."]}
    cut = {"role": ["user", "assistant", "user", "assistant"], "content": ["Pier?", "By day?", "Yes."]}
    with pytest.raises(UserError, match="row 5: field 'messages' must be a list of messages, but found an object of "):
        read(tmp_path, "dialogue", lambda i: {"messages": cut if i == 4 else whole})


@pytest.mark.parametrize("roles", [("tool_call", "tool_response"), ("tool_call", "tool_result")])
def test_a_turn_of_a_tool_leaves_out_its_row_alone(tmp_path, roles):
    def row(i: int) -> dict[str, Any]:
        used = [turn(role, "7") for role in roles] if i % 5 == 0 else []
        return {"messages": [turn("user", f"Pier {i}?"), *used, turn("assistant", f"Boat {i}")]}

    assert sum(read(tmp_path, "dialogue", row).dropped.values()) == 8


@pytest.mark.parametrize("between", [", ", "\n "])
def test_what_numpy_writes_is_undone_around_texts_and_not_within_them(tmp_path, between):
    def row(i: int) -> dict[str, str]:
        said = [turn("user", f"Say np.array([{i}, 2])."), turn("assistant", f"It is np.array([{i}, 2]), dear.")]
        return {"messages": f"[{between.join(map(str, said))}]"}

    assert answers(in_cells(tmp_path, "dialogue", row)) == {f"It is np.array([{i}, 2]), dear." for i in range(40)}


@pytest.mark.parametrize(
    "write", [str, json.dumps, lambda value: str(value).replace("[", "array([").replace("]", "], dtype=object)")]
)
def test_answers_in_a_cell_keep_their_characters(tmp_path, write):
    def row(i: int) -> dict[str, str]:
        given = {"text": [f"the caf\u00e9 {i} \U0001f6a2"]}
        return {"context": f"Kim is in the caf\u00e9 {i}.", "question": f"Where {i}?", "answers": write(given)}

    assert answers(in_cells(tmp_path, "question_answering", row)) == {
        f"the caf\u00e9 {i} \U0001f6a2" for i in range(40)
    }


# Columns.


def test_a_column_whose_name_another_one_takes_is_named(tmp_path):
    def row(i: int) -> dict[str, Any]:
        return {"source": {"text": f"Kahn {i}", "lang": "de"}, "target": f"Boat {i}", "edit": f"The boat {i}"}

    notes = read(tmp_path, "translation", row, {"source": "source.text", "target": "edit"}).notes
    (note,) = [note for note in notes if note.startswith("Not read, since another column is read under that name")]
    assert "'source.lang' (40 rows), 'target' (40 rows)" in note
    swapped = read(
        tmp_path,
        "translation",
        lambda i: {"source": f"Boat {i}", "target": f"Kahn {i}"},
        {"source": "target", "target": "source"},
    )
    assert not [note for note in swapped.notes if "Not read" in note]


def test_the_split_may_stand_in_a_column_of_another_name(tmp_path):
    def row(i: int) -> dict[str, Any]:
        return {"prompt": f"Pier {i}?", "completion": f"Boat {i}", "part": ("train", "Held-out")[i % 4 == 0]}

    assert len(read(tmp_path, "dialogue", row, {"split": "part"}).held_out.prompts) == 10


def test_a_file_of_another_language_is_not_read_as_the_public_set_that_it_resembles(tmp_path):
    def row(i: int) -> dict[str, Any]:
        told = {"lp": "en-fr_FR", "is_bad_source": False}
        return {**told, "source": f"Boat {i} is red.", "target": f"Le bateau {i} est rouge."}

    data = read(tmp_path, "translation", row)
    assert "German" not in "".join(message.content for example in data.train.prompts for message in example.prompt)
    assert any("'lp' (40 rows)" in note for note in data.notes)


# Refusals.


@pytest.mark.parametrize(
    "row",
    [
        {"messages": SECRET},
        {"messages": [turn("user", SECRET), turn("agent", SECRET)]},
        {"messages": [{"role": "user", "content": {"text": SECRET}}]},
        {"prompt": [SECRET], "completion": SECRET},
        {"prompt": "Hello", "completion": "Hi", "score": SECRET},
        {"prompt": "Hello", "completion": "Hi", "score": "Jane Roe"},
        {"prompt": "Hello", "completion": "Hi", "label": SECRET},
        {"prompt": "Hello", "response_a": "Hi", "response_b": "Ho", "winner": SECRET},
        {"prompt": "Hello", "response_a": "Hi", "response_b": "Ho", "winner": "Jane王小明说第二个更短"},
        {"prompt": "Hello", "completion": "Hi", "score": "Janeเบอร์โทรหนึ่งสอง"},
        {"messages": [{"role": "Jane田中さんの電話番号", "content": "Hi"}]},
    ],
)
def test_a_refusal_shows_no_sentence_of_a_row(tmp_path, row):
    with pytest.raises(UserError) as error:
        read(tmp_path, "dialogue", lambda i: row)
    assert "Jane" not in str(error.value)
    assert "row 1: field" in str(error.value)
    assert len(str(error.value).replace(str(tmp_path), "")) < 300


def test_the_bytes_of_a_row_are_not_shown_and_a_label_of_another_script_is(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = pyarrow.table({"prompt": [b"Jane Roe"] * 9, "completion": [b"Hi"] * 9})
    pyarrow.parquet.write_table(rows, tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"row 1: field 'prompt' must be .*, but found bytes; mend the row$"):
        load(load_recipe("dialogue"), str(tmp_path / "rows.parquet"), {}, tmp_path)
    with pytest.raises(UserError, match=r"found text \('非常满意'\)"):
        read(tmp_path, "dialogue", lambda i: {"prompt": f"Hello {i}", "completion": "Hi", "label": "非常满意"})


def test_an_unknown_role_is_named(tmp_path):
    with pytest.raises(UserError, match=r"but found text \('customer'\)"):
        read(tmp_path, "dialogue", lambda i: {"messages": [turn("customer", SECRET), turn("agent", SECRET)]})


def test_stars_where_true_or_false_should_stand_are_offered_as_a_score(tmp_path):
    def row(i: int) -> dict[str, Any]:
        return {"prompt": f"Pier {i}?", "completion": f"Boat {i}", "label": i % 5 + 1}

    with pytest.raises(UserError, match="score=label"):
        read(tmp_path, "dialogue", row)
    assert len({rating.score for rating in read(tmp_path, "dialogue", row, {"score": "label"}).train.ratings}) == 5


def test_a_name_that_no_layout_has_is_answered_in_one_short_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no field 'zzzz'; known are ") as error:
        read(tmp_path, "dialogue", lambda i: {"prompt": f"{i}?", "completion": "Hi"}, {"zzzz": "prompt"})
    assert len(str(error.value)) <= 300


@pytest.mark.parametrize(
    ("recipe", "names", "offered"),
    [
        ("dialogue", ("Answer", "Question"), "prompt=Question completion=Answer"),
        ("dialogue", ("assistant", "user"), "prompt=user completion=assistant"),
        ("translation", ("Target", "Source"), "source=Source target=Target"),
        ("translation", ("n", "target_text", "source_text"), "source=source_text target=target_text"),
        ("dialogue", ("system_prompt", "question", "response"), "prompt=question"),
        ("dialogue", ("role", "content"), None),
        ("dialogue", ("system", "question", "chosen", "rejected"), "prompt=question"),
        ("dialogue", ("status", "input", "chosen", "rejected"), "prompt=input"),
        ("translation", ("kind", "input", "target"), "source=input"),
        ("translation", ("url", "topic", "text_de", "text_en"), None),
        ("question_answering", ("question", "wrong_one", "notes", "right_one"), None),
        (
            "question_answering",
            ("question", "wrong_one", "passage", "right_answer"),
            "context=passage answers=right_answer",
        ),
    ],
)
def test_a_refusal_offers_a_column_for_what_it_is_called(tmp_path, recipe, names, offered):
    with pytest.raises(UserError) as error:
        read(tmp_path, recipe, lambda i: {name: f"{name} {i}" for name in names})
    assert str(error.value).rstrip("'").endswith(offered or "docs/own-data.md has what each of them holds")


def test_a_score_with_an_underscore_is_no_number(tmp_path):
    with pytest.raises(UserError, match="row 4: field 'score' must be"):
        read(
            tmp_path,
            "dialogue",
            lambda i: {"prompt": f"Boat {i}?", "completion": "Red.", "score": "1_2" if i == 3 else "2"},
        )


def test_a_pair_of_languages_that_the_first_row_lacks_is_the_one_that_most_rows_have(tmp_path):
    pairs = {0: None, 1: {"fr": "Bateau", "en": "Boat"}}
    data = read(
        tmp_path, "translation", lambda i: {"translation": pairs.get(i, {"de": f"Kahn {i}", "en": f"Boat {i}"})}
    )
    assert answers(data) == {f"Boat {i}" for i in range(2, 40)}
    assert sum(data.dropped.values()) == 2
