"""Why rows are left out is told once a reason, with its first row, and never with what a row holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlrecipes.data.load import load
from rlrecipes.data.reasons import LONGEST, Drop, counted, reason_of
from rlrecipes.errors import UserError
from rlrecipes.metrics import exact_match, mean_of
from rlrecipes.recipe import Columns, Evaluation, Example, Recipe, Reward, load_recipe, user

SECRET = "Zanzibar-4711"
FIT = {"fair": 1, "good": 2}
PERCENT = "'mark' must be a number, not %s"
WANTED = "a mark out of {}"


def by_f_string(row: Mapping[str, Any]) -> Any:
    raise ValueError(f"'mark' must be a number, not {row['mark']!r}")


def by_percent(row: Mapping[str, Any]) -> Any:
    raise ValueError(PERCENT % row["mark"])


def by_constant(row: Mapping[str, Any]) -> Any:
    raise ValueError(WANTED.format(row["mark"]))


def by_value_alone(row: Mapping[str, Any]) -> Any:
    raise ValueError(row["mark"])


def by_a_part(row: Mapping[str, Any]) -> Any:
    raise ValueError(f"'mark' starts with {row['mark'][:6].upper()}")


def by_number(row: Mapping[str, Any]) -> Any:
    return int(row["mark"])


def by_key(row: Mapping[str, Any]) -> Any:
    return FIT[row["mark"]]


def by_unpacking(row: Mapping[str, Any]) -> Any:
    one, two, three = row["mark"].split("-")
    return one + two + three


def by_json(row: Mapping[str, Any]) -> Any:
    return json.loads(row["mark"])


def by_assertion(row: Mapping[str, Any]) -> Any:
    assert row["mark"] in FIT, f"{row['mark']} is unfit"


def by_division(row: Mapping[str, Any]) -> Any:
    return 1 / (0 * len(row["mark"]))


def by_bytes(row: Mapping[str, Any]) -> Any:
    return (row["mark"] + "\ud83d").encode()


def by_attribute(row: Mapping[str, Any]) -> Any:
    return getattr(row, row["mark"])


READERS: list[tuple[Callable[[Mapping[str, Any]], Any], str]] = [
    (by_f_string, "'mark' must be a number, not …"),
    (by_percent, "'mark' must be a number, not …"),
    (by_constant, "a mark out of …"),
    (by_value_alone, "the reader raised ValueError (test_reasons.py, line "),
    (by_a_part, "'mark' starts with …"),
    (by_number, "the reader raised ValueError (test_reasons.py, line "),
    (by_key, "the reader raised KeyError (test_reasons.py, line "),
    (by_unpacking, "the reader raised ValueError (test_reasons.py, line "),
    (by_json, "Expecting value …"),
    (by_assertion, "the reader raised AssertionError"),
    (by_division, "the reader raised ZeroDivisionError"),
    (by_bytes, "the reader raised UnicodeEncodeError"),
    (by_attribute, "the reader raised AttributeError"),
]


def recipe(read: Callable[[Mapping[str, Any]], Any]) -> Recipe:
    def example(row: Mapping[str, Any]) -> Example:
        if row["mark"] != "good":
            read(row)
        return Example(user(row["ask"]), ("yes",))

    return Recipe(
        name="marks",
        summary="",
        columns=Columns(("ask", "mark"), example),
        reward=Reward(),
        evaluation=Evaluation((mean_of("exact", exact_match),)),
    )


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("read", "reason"), READERS, ids=[read.__name__ for read, _ in READERS])
@pytest.mark.parametrize("mark", [SECRET, SECRET + " must be a number, not " * 30_000])
def test_whatever_a_reader_raises_brings_no_value_into_its_reason(tmp_path, read, reason, mark):
    good = [{"ask": f"Say {i}", "mark": "good"} for i in range(30)]
    bad = [{"ask": f"Ask {i}", "mark": mark} for i in range(3)]
    ((told, count),) = load(recipe(read), write(tmp_path / "rows.jsonl", good + bad), {}, tmp_path).dropped.items()
    assert count == 3
    assert told.startswith(reason)
    assert told.endswith(" (first: rows.jsonl, row 31)")
    assert len(told) < LONGEST + 100
    assert not any(part in told.lower() for part in SECRET.lower().split("-"))
    with pytest.raises(UserError) as refusal:
        load(recipe(read), write(tmp_path / "rows.jsonl", bad), {}, tmp_path)
    assert SECRET not in str(refusal.value)
    assert reason.rpartition(" (")[0] in str(refusal.value)


LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("translation", {"source": "Ja", "target": "Yes"}),
    ("translation", {"source": "Ja", "target": "Yes", "rejected": "No"}),
    ("question_answering", {"context": "Ben ran home.", "question": "Who ran?", "answers": ["Ben"]}),
    ("dialogue", {"dialog": ["Hello!", "Hi."]}),
    ("text_generation", {"text": "the film we saw yesterday was long but never dull", "label": 1}),
    ("dialogue", {"prompt": "Hello!", "chosen": "Hi.", "rejected": "What?"}),
    ("dialogue", {"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}]}),
    ("dialogue", {"prompt": "Hello!", "completion": "Hi.", "score": 2}),
]
STRANGE = [
    None,
    "",
    "  ",
    SECRET,
    4711.5,
    True,
    [],
    [SECRET],
    [[SECRET]],
    [None],
    {},
    {"text": [SECRET, 5]},
    "\ud83d" + SECRET,
]


@pytest.mark.parametrize(("name", "row"), LAYOUTS)
@pytest.mark.parametrize("strange", STRANGE, ids=repr)
def test_no_recipe_and_no_layout_tells_a_value_of_a_row_that_it_leaves_out(tmp_path, name, row, strange):
    varied = {column: f"{value} {SECRET}" if isinstance(value, str) else value for column, value in row.items()}
    good = [
        varied | {column: f"{value} {i}" for column, value in row.items() if isinstance(value, str)} for i in range(30)
    ]
    for column in row:
        source = write(tmp_path / "rows.jsonl", [*good, varied | {column: strange}])
        told = left_out(load_recipe(name), source)
        assert not any(part in reason for reason in told for part in (*SECRET.split("-"), "yesterday", "Hello"))


def left_out(recipe: Recipe, source: str) -> Mapping[str, int]:
    """The reasons; none where a value of the wrong type stops everything, whose error may show a short excerpt of it."""
    try:
        return load(recipe, source, {}, Path("runs")).dropped
    except UserError:
        return {}


def test_the_recipes_of_the_project_tell_what_is_wrong_in_their_own_words(tmp_path):
    rows = [{"source": f"Satz {i}", "target": f"Sentence {i}" if i % 9 else 5} for i in range(30)]
    dropped = load(load_recipe("translation"), write(tmp_path / "rows.jsonl", rows), {}, tmp_path).dropped
    assert dropped == {"'target' must be a text that is not empty (first: rows.jsonl, row 1)": 4}


def test_reasons_are_counted_in_order_of_first_appearance_with_the_first_place():
    drops = [Drop("late", "b.jsonl, row 9"), Drop("empty", "b.jsonl, row 10"), Drop("late", "a.jsonl, row 1")]
    assert list(counted(drops).items()) == [
        ("late (first: b.jsonl, row 9)", 2),
        ("empty (first: b.jsonl, row 10)", 1),
    ]


def test_a_reason_may_name_columns_and_constants_but_no_word_that_a_value_only_starts_with():
    def raised(text: str) -> str:
        try:
            raise ValueError(text)
        except ValueError as error:
            return reason_of(error, frozenset(["post", "must be a text"]))

    assert raised("'post' must be a text") == "'post' must be a text"
    assert (
        raised("'post' must be a textbook") == "the reader raised ValueError (test_reasons.py, line " + str(LINE) + ")"
    )
    assert raised("post must be a text, poster") == "post must be a text …"


LINE = next(
    i for i, line in enumerate(Path(__file__).read_text().splitlines(), 1) if line.strip() == "raise ValueError(text)"
)


def test_a_column_that_the_recipe_explains_is_refused_with_what_it_holds(tmp_path):
    told = dataclasses.replace(recipe(by_number).columns, values={"mark": ("good", "bad")})
    graded = dataclasses.replace(recipe(by_number), columns=told)
    fine = [{"ask": f"Say {i}", "mark": ["good", " Good", "bad", None, ""][i % 5]} for i in range(40)]
    sink = dataclasses.replace(told, example=lambda row: Example(user(row["ask"]), ("yes",)))
    assert load(dataclasses.replace(graded, columns=sink), write(tmp_path / "fine.jsonl", fine), {}, tmp_path)
    strange = [{"ask": "Say", "mark": mark} for mark in ("good", 3, "so-so, a long story")]
    source = write(tmp_path / "rows.jsonl", strange)
    with pytest.raises(UserError, match=r"'mark' holds 3, good, so-so, a lo…, but marks knows good, bad alone"):
        load(graded, source, {}, tmp_path)
