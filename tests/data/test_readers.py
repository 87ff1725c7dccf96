"""Layouts that most people have are read as their authors meant them, and what is not read is named."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from rlrecipes.data.load import load
from rlrecipes.data.readers import LAYOUTS
from rlrecipes.data.turns import CHATS as TALKS
from rlrecipes.data.turns import UNUSABLE_KEYS
from rlrecipes.errors import UserError
from rlrecipes.recipe import Data, Message, Prompt, load_recipe, user

SYSTEM = Message("system", "Be kind.")
ASKED = Message("user", "Hello")
SAID = Message("assistant", "Hi")
AGAIN = Message("user", "And you?")


def turns(*messages: Message) -> list[dict[str, str]]:
    return [message._asdict() for message in messages]


def spoken(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": what} for who, what in pairs]


def loaded(
    folder: Path, row: Mapping[str, Any], recipe: str = "dialogue", more: Mapping[str, Any] | None = None
) -> Data:
    """Data of `row` for training, and of one for each side that differs from it in a prompt nobody shares."""
    folder = folder / "data"
    folder.mkdir()
    others = [other(row, f"Other {number}") for number in range(3)]
    write_rows(folder / "train.jsonl", [row, *others[:2], *([more] if more else [])])
    write_rows(folder / "test.jsonl", others[2:])
    return load(load_recipe(recipe), str(folder), {}, folder)


def other(row: Mapping[str, Any], word: str) -> dict[str, Any]:
    """A row of the same columns with another prompt."""
    return dict(json.loads(json.dumps(row).replace("Hello", word)))


HH = "\n\nHuman: Hello\n\nAssistant: {}\n\nHuman: And you?\n\nAssistant: {}"
CHATS: dict[str, tuple[dict[str, Any], Prompt, str]] = {
    "messages": ({"messages": turns(ASKED, SAID)}, (ASKED,), "Hi"),
    "text parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": ""}]},
                SAID._asdict(),
            ]
        },
        (ASKED,),
        "Hi",
    ),
    "an object of lists": ({"messages": {"role": ["user", "assistant"], "content": ["Hello", "Hi"]}}, (ASKED,), "Hi"),
    "a developer": (
        {"messages": [{"role": "developer", "content": "Be kind."}, *turns(ASKED, SAID)]},
        (SYSTEM, ASKED),
        "Hi",
    ),
    "a system column": ({"system": "Be kind.", "messages": turns(ASKED, SAID)}, (SYSTEM, ASKED), "Hi"),
    "sharegpt": (
        {"conversations": spoken(("system", "Be kind."), ("human", "Hello"), ("gpt", "Hi"))},
        (SYSTEM, ASKED),
        "Hi",
    ),
    "one conversation": ({"conversation": spoken(("human", "Hello"), ("gpt", "Hi"))}, (ASKED,), "Hi"),
    "alpaca": ({"instruction": "Hello", "input": "", "output": "Hi"}, (ASKED,), "Hi"),
    "alpaca with input": ({"instruction": "Hello", "input": "World", "output": "Hi"}, user("Hello\n\nWorld"), "Hi"),
    "alpaca with history": (
        {
            "instruction": "And you?",
            "input": None,
            "output": "Fine",
            "system": "Be kind.",
            "history": [["Hello", "Hi"]],
        },
        (SYSTEM, ASKED, SAID, AGAIN),
        "Fine",
    ),
    "dolly": ({"instruction": "Hello", "context": "World", "response": "Hi"}, user("Hello\n\nWorld"), "Hi"),
    "prompt and response": ({"prompt": "Hello", "response": "Hi"}, (ASKED,), "Hi"),
    "a chat beside its prompt": ({"prompt": "Hello", "completion": turns(SYSTEM, ASKED, SAID)}, (SYSTEM, ASKED), "Hi"),
}


@pytest.mark.parametrize("name", CHATS)
def test_a_demonstration_is_read_in_every_layout(tmp_path, name):
    row, prompt, answer = CHATS[name]
    demonstrations = loaded(tmp_path, row).train.demonstrations
    assert (prompt, answer) in [(example.prompt, example.answers[0]) for example in demonstrations]


PAIRS: dict[str, tuple[dict[str, Any], Prompt]] = {
    "hh": ({"chosen": HH.format("Hi", "Fine"), "rejected": HH.format("Hi", "What?")}, (ASKED, SAID, AGAIN)),
    "hh with a prompt": (
        {
            "prompt": HH.format("Hi", ""),
            "chosen": HH.format("Hi", "Fine"),
            "rejected": HH.format("Hi", "What?"),
        },
        (ASKED, SAID, AGAIN),
    ),
    "hh prompt alone": (
        {
            "prompt": "\n\nHuman: Hello\n\nAssistant: Hi\n\nHuman: And you?\n\nAssistant:",
            "chosen": "Fine",
            "rejected": "What?",
        },
        (ASKED, SAID, AGAIN),
    ),
    "the last turn beside whole chats": (
        {
            "prompt": "And you? Hello",
            "chosen": turns(ASKED, SAID, Message("user", "And you? Hello"), Message("assistant", "Fine")),
            "rejected": turns(ASKED, SAID, Message("user", "And you? Hello"), Message("assistant", "What?")),
        },
        (ASKED, SAID, Message("user", "And you? Hello")),
    ),
    "text that repeats the prompt": (
        {"prompt": "Hello", "chosen": "Hello Fine", "rejected": "Hello\nWhat?"},
        (ASKED,),
    ),
    "a system column": (
        {"system": "Be kind.", "prompt": "Hello", "chosen": "Fine", "rejected": "What?"},
        (SYSTEM, ASKED),
    ),
    "a winner": (
        {"prompt": "Hello", "response_a": "What?", "response_b": "Fine", "winner": "model_b", "is_tie": "no"},
        (ASKED,),
    ),
    "a winning column": (
        {"prompt": "Hello", "answer_a": "Fine", "answer_b": "What?", "winner": "Answer_A", "tie": 0},
        (ASKED,),
    ),
    "two conversations": (
        {
            "conversation_a": turns(ASKED, Message("assistant", "What?")),
            "conversation_b": turns(ASKED, Message("assistant", "Fine")),
            "winner": "b",
        },
        (ASKED,),
    ),
    "a winner beside the chosen": (
        {"prompt": "Hello", "chosen": "Fine", "rejected": "What?", "winner": "chosen"},
        (ASKED,),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_comparison_is_read_in_every_layout(tmp_path, name):
    row, prompt = PAIRS[name]
    pairs = loaded(tmp_path, row).train.comparisons
    assert (prompt, "Fine", "What?") in [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"is_tie": True}, "'is_tie' is true"),
        ({"tie": "yes"}, "'tie' is true"),
        ({"winner": "tie (bothbad)"}, "'winner' names neither answer"),
        ({"chosen_score": 2, "rejected_score": "7.5"}, "'chosen_score' is below 'rejected_score'"),
        ({"chosen-rating": 3.5, "rejected-rating": 3.5}, "a tie: 'chosen-rating' equals 'rejected-rating'"),
        ({"chosen_rating": 1, "rejected_rating": 4}, "'chosen_rating' is below 'rejected_rating'"),
        ({"score_chosen": 2, "score_rejected": 2.0, "margin": 1}, "a tie: 'score_chosen' equals 'score_rejected'"),
    ],
)
@pytest.mark.parametrize("recipe", ["dialogue", "translation"])
def test_a_pair_that_says_its_chosen_answer_is_no_better_is_left_out_with_the_reason(tmp_path, recipe, said, reason):
    row = {"prompt": "Hello", "chosen": "Fine", "rejected": "What?"}
    if recipe == "translation":
        row = {"source": "Hello", "target": "Fine", "rejected": "What?"}
    data = loaded(tmp_path, row, recipe, more=other(row, "Bye") | said)
    assert data.dropped == {f"{reason} (first: train.jsonl, row 4)": 1}


@pytest.mark.parametrize(
    "names",
    [("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"), ("reward_chosen", "reward_rejected")],
)
@pytest.mark.parametrize(("rest", "margin"), [({}, 5.5), ({"margin": 2}, 2), ({"margin": None}, 5.5)])
def test_two_scores_are_a_margin_where_none_is_written(tmp_path, names, rest, margin):
    row = {"prompt": "Hello", "chosen": "Fine", "rejected": "What?", **dict(zip(names, (8.5, "3"), strict=True))}
    data = loaded(tmp_path, row | rest)
    assert {pair.margin for pair in data.train.comparisons} == {margin}
    assert not [note for note in data.notes if "Not read" in note]


@pytest.mark.parametrize("name", ["chosen_score", "rejected_score", "score_chosen", "score_rejected"])
def test_a_score_of_one_answer_alone_is_named_as_unread(tmp_path, name):
    data = loaded(tmp_path, {"prompt": "Hello", "chosen": "Fine", "rejected": "What?", name: 3})
    assert {pair.margin for pair in data.train.comparisons} == {None}
    assert any(note.startswith("Not read: ") and f"'{name}'" in note for note in data.notes)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"winner": "rejected"}, r"'winner' must be chosen or tie, but found text \('rejected'\); .* another name"),
        ({"is_tie": "perhaps"}, "'is_tie' must be true or false"),
        ({"chosen_score": "good", "rejected_score": 1}, "'chosen_score' must be a finite number"),
    ],
)
def test_what_is_said_of_a_pair_in_other_words_is_refused(tmp_path, more, said):
    row = {"prompt": "Hello", "chosen": "Fine", "rejected": "What?"}
    with pytest.raises(UserError, match=said):
        loaded(tmp_path, row | more)
    with pytest.raises(UserError, match="'winner' must be model_a, model_b, a, b, response_a, response_b or tie"):
        loaded(tmp_path / "data", {"prompt": "Hello", "response_a": "A", "response_b": "B", "winner": "gpt-4"})


def test_an_answer_that_merely_begins_as_its_prompt_does_stays_whole(tmp_path):
    data = loaded(
        tmp_path, {"prompt": "Hello", "completion": "Hello yourself"}, more={"prompt": "Why", "completion": "No."}
    )
    assert "Hello yourself" in [example.answers[0] for example in data.train.demonstrations]


@pytest.mark.parametrize(("good", "bad"), [(True, False), (1, 0), ("true", "false")])
def test_an_unpaired_preference_is_a_rating_and_never_a_demonstration_where_it_is_bad(tmp_path, good, bad):
    rows = [{"prompt": f"Hello {i}", "completion": f"Answer {i}", "label": (good, bad)[i % 2]} for i in range(40)]
    data = load(load_recipe("dialogue"), str(write_rows(tmp_path / "rows.jsonl", rows)), {}, tmp_path)
    assert {rating.score for rating in data.train.ratings} == {0.0, 1.0}
    imitated = {example.answers[0] for example in data.train.demonstrations}
    assert imitated
    assert not imitated & {row["completion"] for row in rows[1::2]}


def test_a_label_that_is_neither_good_nor_bad_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"row 1: field 'label' must be true or false, but found a number \(3\)"):
        loaded(tmp_path, {"prompt": "Hello", "completion": "Hi", "label": 3})


def test_two_languages_in_one_column_are_read_in_their_order_and_said(tmp_path):
    rows = [{"id": i, "translation": {"fr": f"Enfant {i}", "en": f"Child {i}"}} for i in range(40)]
    path = str(write_rows(tmp_path / "rows.jsonl", rows))
    data = load(load_recipe("translation"), path, {}, tmp_path)
    assert ("Translate: Enfant 1", ("Child 1",)) in [
        (e.prompt[0].content, e.answers) for e in (*data.train.prompts, *data.held_out.prompts)
    ]
    assert any("from fr to en" in note for note in data.notes)
    turned = load(load_recipe("translation"), path, {"source": "translation.en", "target": "translation.fr"}, tmp_path)
    assert ("Translate: Child 1", ("Enfant 1",)) in [
        (e.prompt[0].content, e.answers) for e in (*turned.train.prompts, *turned.held_out.prompts)
    ]


def test_one_of_several_scores_is_named_by_columns(tmp_path):
    rows = [{"prompt": f"Hello {i}", "response": f"Hi {i}", "helpfulness": i % 5, "coherence": 4} for i in range(40)]
    path = str(write_rows(tmp_path / "rows.jsonl", rows))
    data = load(load_recipe("dialogue"), path, {"score": "helpfulness"}, tmp_path)
    assert {rating.score for rating in data.train.ratings} == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert "Not read: 'coherence' (40 rows)." in data.notes


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "Hello", "completion": "Hi", "id": 7}, "'id'"),
        ({"messages": [{**ASKED._asdict(), "name": "Ann"}, SAID._asdict()]}, "'messages[].name'"),
        ({"messages": turns(ASKED, SAID, AGAIN)}, "turns behind the last answer"),
        (
            {"messages": [*turns(ASKED, SAID, AGAIN), {**SAID._asdict(), "train": False}]},
            "turns behind the last answer",
        ),
        ({"source": "Hello", "target": "Hi", "margin": 2, "id": [1]}, "'id'"),
    ],
)
def test_what_is_not_read_is_named_with_its_rows(tmp_path, row, name):
    recipe = "translation" if "source" in row else "dialogue"
    notes = loaded(tmp_path, row, recipe).notes
    assert any(note.startswith("Not read: ") and f"{name} (4 rows)" in note for note in notes), notes


@pytest.mark.parametrize("weight", [0, "0", False])
@pytest.mark.parametrize("column", ["completion", "chosen"])
def test_an_answer_of_weight_0_is_left_out_wherever_it_stands(tmp_path, column, weight):
    def row(number):
        said = {**SAID._asdict(), **({"weight": weight} if number % 2 else {})}
        return {"prompt": f"Hello {number}", column: [said], **({"rejected": "Go"} if column == "chosen" else {})}

    path = write_rows(tmp_path / "rows.jsonl", [row(number) for number in range(40)])
    data = load(load_recipe("dialogue"), str(path), {}, tmp_path)
    assert data.dropped == {f"the answer in '{column}' has weight 0 (first: rows.jsonl, row 2)": 20}
    assert not [note for note in data.notes if "Not read" in note]


def test_an_answer_that_nobody_is_to_imitate_may_stand_behind_the_last_one(tmp_path):
    row = {"messages": [*turns(ASKED, SAID), {**SAID._asdict(), "weight": 0}]}
    assert not [note for note in loaded(tmp_path, row).notes if "behind the last answer" in note]


@pytest.mark.parametrize(
    ("recipe", "row"),
    [
        ("translation", {"source": "Hallo", "target": "Hello", "rejected": "Goodbye"}),
        ("question_answering", {"context": "Ann sells hats.", "question": "Who?", "answers": ["Ann"]}),
        ("dialogue", {"dialog": ["Hello", "Hi"]}),
    ],
)
def test_a_system_column_is_the_first_turn_beside_a_recipes_own_columns_too(tmp_path, recipe, row):
    lists = [{**row, next(iter(row)): f"{number} {next(iter(row.values()))}"} for number in range(40)]
    if "dialog" in row:
        lists = [{"dialog": [f"Hello {number}", "Hi"]} for number in range(40)]
    path = write_rows(tmp_path / "rows.jsonl", [each | {"system": "Be kind."} for each in lists])
    data = load(load_recipe(recipe), str(path), {}, tmp_path)
    rows = (*data.train.prompts, *data.held_out.prompts, *data.train.comparisons)
    assert rows
    assert {row.prompt[0] for row in rows} == {SYSTEM}
    assert not [note for note in data.notes if "Not read" in note]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hello", "completion": "Ann"},
        {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Ann"}]},
    ],
)
@pytest.mark.parametrize(("more", "first"), [({}, "Answer as a pirate."), ({"system": "Be brief."}, "Be brief.")])
def test_a_system_prompt_is_the_first_turn_unless_a_system_column_is_and_both_are_told(tmp_path, row, more, first):
    data = loaded(tmp_path, {**row, "system_prompt": "Answer as a pirate.", **more})
    assert {example.prompt[0] for example in data.train.demonstrations} == {("system", first)}
    assert any("'system_prompt'" in note for note in data.notes)


@pytest.mark.parametrize("empty", [None, "", [], {}])
def test_what_is_empty_need_not_be_read(tmp_path, empty):
    notes = loaded(tmp_path, {"prompt": "Hello", "completion": "Hi", "id": empty, "tools": empty}).notes
    assert not [note for note in notes if "Not read" in note]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [ASKED._asdict(), {**SAID._asdict(), "tool_calls": [{"id": 1}]}]}, "a turn with 'tool_calls'"),
        (
            {"messages": [ASKED._asdict(), {**SAID._asdict(), "reasoning_content": "Hm"}]},
            "a turn with 'reasoning_content'",
        ),
        ({"messages": [*turns(ASKED), {"role": "tool", "content": "4"}, *turns(SAID)]}, "a turn of the role 'tool'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, *turns(SAID)]},
            "a turn that holds more than text",
        ),
        (
            {"messages": [ASKED._asdict(), {"role": "assistant", "content": [{"type": "text", "text": None}]}]},
            "empty answer",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "content": "In French."}]}, *turns(SAID)]},
            "a turn that holds more than text",
        ),
        (
            {"messages": [ASKED._asdict(), {"role": "assistant", "content": None, "refusal": "No."}]},
            "a turn of the assistant without text",
        ),
        ({"messages": [ASKED._asdict(), {**SAID._asdict(), "weight": 0}]}, "every answer has weight 0"),
        (
            {"prompt": "Human: Hello\n\nAssistant:", "completion": "Hi\n\nHuman: Thanks\n\nAssistant: Bye"},
            "an answer that goes on with other turns",
        ),
        ({"messages": turns(ASKED, SAID), "tools": [{"name": "add"}]}, "'tools' cannot be used"),
        ({"messages": turns(ASKED, SAID), "images": ["a.png"]}, "'images' cannot be used"),
        (
            {"system": "Be rude.", "messages": turns(SYSTEM, ASKED, SAID)},
            "the chat has another system turn than 'system'",
        ),
        ({"prompt": "Why?", "completion": turns(ASKED, SAID)}, "the prompt is no part of the chat in 'completion'"),
    ],
)
def test_a_row_that_would_be_another_task_is_left_out_whole(tmp_path, row, reason):
    plain = (
        {"prompt": "Bye", "completion": "Bye"} if "prompt" in row else {"messages": turns(Message("user", "Bye"), SAID)}
    )
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(
        folder / "train.jsonl",
        [
            plain,
            row,
            other(plain, "Other") | ({"prompt": "Ah"} if "prompt" in row else {"messages": turns(AGAIN, SAID)}),
        ],
    )
    write_rows(folder / "test.jsonl", [{"messages": turns(Message("user", "Now"), SAID)}])
    data = load(load_recipe("dialogue"), str(folder), {}, tmp_path)
    assert {text.partition(" (first")[0]: count for text, count in data.dropped.items()} == {reason: 1}


def test_a_split_column_decides_the_side(tmp_path):
    rows = [
        {"prompt": f"Hello {i}", "completion": "Hi", "split": ("train", "test", "validation")[i % 3]} for i in range(30)
    ]
    data = load(load_recipe("dialogue"), str(write_rows(tmp_path / "rows.jsonl", rows)), {}, tmp_path)
    assert {example.prompt[0].content for example in data.held_out.prompts} == {f"Hello {i}" for i in range(1, 30, 3)}
    assert {example.prompt[0].content for example in data.train.prompts} == {f"Hello {i}" for i in range(0, 30, 3)}
    assert any("10 rows of the validation split are not used" in note for note in data.notes)


def test_a_column_of_that_name_with_other_words_is_not_taken_for_a_split(tmp_path):
    rows = [{"prompt": f"Hello {i}", "completion": "Hi", "split": ("train", "spain")[i % 2]} for i in range(30)]
    data = load(load_recipe("dialogue"), str(write_rows(tmp_path / "rows.jsonl", rows)), {}, tmp_path)
    assert any("No file is named as held out" in note for note in data.notes)
    assert "Not read: 'split' (30 rows)." in data.notes


@pytest.mark.parametrize("held_out", ["Testing", "held out", "development"])
def test_a_split_column_that_says_something_else_of_some_rows_is_refused(tmp_path, held_out):
    def rows(*said):
        return [{"prompt": f"Hello {i}", "completion": "Hi", "split": said[i % len(said)]} for i in range(30)]

    path = write_rows(tmp_path / "rows.jsonl", rows("train", held_out))
    assert len(load(load_recipe("dialogue"), str(path), {}, tmp_path).held_out.prompts) == 15
    path = write_rows(tmp_path / "rows.jsonl", rows("train", held_out, "unused"))
    with pytest.raises(UserError, match=r"row 3: 'split' is 'unused', and test or validation in others; write train, "):
        load(load_recipe("dialogue"), str(path), {}, tmp_path)


def test_every_layout_has_a_row_in_the_docs():
    page = (Path(__file__).resolve().parents[2] / "docs" / "own-data.md").read_text(encoding="utf-8")
    for layout in LAYOUTS:
        assert ", ".join(f"`{name}`" for name in layout.needs) in page, layout.needs


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.grades], ids=lambda layout: layout.needs[0])
@pytest.mark.parametrize(("column", "bad", "good"), [("score", 1, 7.5), ("label", False, True)])
def test_a_grade_beside_any_demonstration_keeps_the_bad_answer_from_being_imitated(tmp_path, layout, column, bad, good):
    def written(i: int) -> dict[str, Any]:
        one = layout.needs[0]
        if one in TALKS:
            return {one: turns(Message("user", f"Hello {i}"), Message("assistant", f"Answer {i}"))}
        return {one: f"Hello {i}", layout.needs[1]: f"Answer {i}"}

    rows = [written(i) | {column: (good, bad)[i % 2]} for i in range(40)]
    data = load(load_recipe("dialogue"), str(write_rows(tmp_path / "rows.jsonl", rows)), {}, tmp_path)
    assert {rating.score for rating in data.train.ratings} == {float(good), float(bad)}
    imitated = {int(example.answers[0].split()[1]) % 2 for example in data.train.demonstrations}
    assert imitated == {0}
    assert not [note for note in data.notes if "Not read" in note]


def test_a_grade_that_is_not_used_is_named(tmp_path):
    notes = loaded(
        tmp_path,
        {"prompt": "Hello", "completion": "Hi", "score": 1, "label": True},
        more={"prompt": "Why", "completion": "No.", "score": 0, "label": False},
    ).notes
    assert "Not read: 'label' (5 rows)." in notes


def as_numpy_writes(chat: list[dict[str, str]]) -> str:
    return "[" + "\n ".join(map(str, chat)) + "]"


@pytest.mark.parametrize("write_chat", [json.dumps, str, as_numpy_writes])
def test_a_chat_in_a_cell_of_text_is_a_chat(tmp_path, write_chat):
    row = {
        "prompt": "Hello",
        "chosen": write_chat(turns(ASKED, Message("assistant", "It's }\n{ fine"))),
        "rejected": write_chat(turns(ASKED, Message("assistant", "What?"))),
    }
    assert ((ASKED,), "It's }\n{ fine", "What?") in [
        (pair.prompt, pair.chosen, pair.rejected) for pair in loaded(tmp_path, row).train.comparisons
    ]


def test_a_chat_in_a_cell_that_cannot_be_read_leaves_out_its_row_without_a_word_of_it(tmp_path):
    plain = {"prompt": "Hello", "completion": "Hi"}
    data = loaded(tmp_path, plain, more={"prompt": "Why", "completion": "[{'role': 'user', 'content': secret}]"})
    reason = "the chat in 'completion' is written as text that cannot be read (first: train.jsonl, row 4)"
    assert data.dropped == {reason: 1}


@pytest.mark.parametrize("answer", ["[1, 2, 3]", "[{'a': 1}]", "{'role': 'x'}", "[role] yes"])
def test_an_answer_that_is_code_stays_text(tmp_path, answer):
    demonstrations = loaded(tmp_path, {"prompt": "Hello", "completion": answer}).train.demonstrations
    assert answer in [example.answers[0] for example in demonstrations]


@pytest.mark.parametrize("key", UNUSABLE_KEYS)
def test_a_turn_that_holds_more_than_its_text_leaves_out_its_row(tmp_path, key):
    row = {"messages": turns(ASKED, SAID)}
    data = loaded(tmp_path, row, more={"messages": [{**AGAIN._asdict(), key: ["x"]}, SAID._asdict()]})
    assert data.dropped == {f"a turn with '{key}' (first: train.jsonl, row 4)": 1}


def test_answers_that_nearly_all_repeat_their_prompts_are_freed_of_them_and_a_few_are_told(tmp_path):
    rows = [{"prompt": f"Hello {i}", "completion": f"Hello {i}: Hi {i}"} for i in range(40)]
    rows += [{"prompt": "Why?", "completion": "No."}, {"prompt": "Why not?", "completion": None}]
    few = [{"prompt": f"Ah {i}", "completion": f"Ah {i}" * 2 if i < 4 else "Oh"} for i in range(20)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "test.jsonl", few)
    data = load(load_recipe("dialogue"), str(tmp_path), {}, tmp_path)
    assert {example.answers[0] for example in data.train.demonstrations} == {": Hi " + str(i) for i in range(40)} | {
        "No."
    }
    assert "The prompt is taken off the start of 'completion', which repeats it in 40 rows." in data.notes
    assert "'completion' starts with the prompt in 4 of 20 rows, and stays as it is." in data.notes


@pytest.mark.parametrize(
    ("asks", "answers", "more"),
    [
        ("instruction", ("output",), {}),
        ("instruction", ("chosen", "rejected"), {}),
        ("prompt", ("answer_a", "answer_b"), {"winner": "a"}),
    ],
)
def test_answers_of_every_layout_are_freed_of_their_prompts(tmp_path, asks, answers, more):
    said = {name: f" Good {name}" for name in answers}
    rows = [{asks: f"Say {i}.", **{name: f"Say {i}.{text}" for name, text in said.items()}, **more} for i in range(40)]
    write_rows(tmp_path / "train.jsonl", rows)
    data = load(load_recipe("dialogue"), str(tmp_path / "train.jsonl"), {}, tmp_path)
    assert {example.answers for example in data.train.demonstrations} == {(f"Good {answers[0]}",)}
    if len(answers) > 1:
        assert {pair.rejected for pair in data.train.comparisons} == {f"Good {answers[1]}"}


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"id": 7, "German": "Das Kind {}", "English": "Child {}"}, "COLUMNS='source=German target=English'"),
        (
            {"id": 7, "German text": "Das Kind {}", "English": "Child {}"},
            "--columns 'source=German text' target=English",
        ),
        ({"pair": {"a": "Das Kind {}", "b": "Child {}"}}, "COLUMNS='source=pair.a target=pair.b'"),
        ({"id": 7, "target": "Child {}"}, None),
    ],
)
def test_a_refusal_names_a_mapping_that_works_or_none(tmp_path, row, mapping):
    rows = [json.loads(json.dumps(row).replace("{}", str(i))) for i in range(40)]
    path = str(write_rows(tmp_path / "rows.jsonl", rows))
    with pytest.raises(UserError) as error:
        load(load_recipe("translation"), path, {}, tmp_path)
    assert len(str(error.value).replace(path, "")) < 300
    if mapping is None:
        assert "such as" not in str(error.value)
        return
    assert str(error.value).endswith(f"map names, such as {mapping}")
    pairs = shlex.split(mapping.removeprefix("COLUMNS=").removeprefix("--columns "))
    columns = dict(pair.split("=") for text in pairs for pair in (text.split() if "COLUMNS" in mapping else [text]))
    assert load(load_recipe("translation"), path, columns, tmp_path).train.demonstrations


@pytest.mark.parametrize(
    ("names", "mapping"),
    [
        (("Ticket", "Question", "Answer"), "COLUMNS='prompt=Question completion=Answer'"),
        (("Passage", "Question", "Answer"), "COLUMNS='context=Passage question=Question answers=Answer'"),
        (("Ticket", "question", "answers"), None),
    ],
)
def test_no_mapping_makes_a_passage_of_whatever_column_is_left(tmp_path, names, mapping):
    texts = ("Ben took cup {} to the house", "Who took cup {}?", "Ben {}")
    rows = [dict(zip(names, (text.format(i) for text in texts), strict=True)) for i in range(9)]
    with pytest.raises(UserError) as error:
        load(load_recipe("question_answering"), str(write_rows(tmp_path / "rows.jsonl", rows)), {}, tmp_path)
    told = f"map names, such as {mapping}" if mapping else "docs/own-data.md has what each of them holds"
    assert str(error.value).endswith(told)
