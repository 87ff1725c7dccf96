"""Files become training and held-out data that never overlap, and whatever was derived is told."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rlrecipes.data.load import fingerprint, lists, load
from rlrecipes.data.split import HELD_OUT, canonical, draw, halves, sample_by_hash, set_aside
from rlrecipes.errors import UserError
from rlrecipes.metrics import exact_match, mean_of
from rlrecipes.recipe import Columns, Comparison, Data, Evaluation, Example, Rating, Recipe, Reward, Split, user

BUILTIN = Data("built-in", Split([Example(user("a"), ("b",))]), Split())


def compare(example: Example, others: Sequence[Example], rng: Random) -> Comparison | None:
    """Rejects another example's answer."""
    wrong = [other.answers[0] for other in others if other.answers[0] not in example.answers]
    return Comparison(example.prompt, example.answers[0], rng.choice(wrong)) if wrong else None


RECIPE = Recipe(
    name="translation",
    summary="",
    builtin=lambda: BUILTIN,
    documents=lambda: (),
    columns=Columns(
        required=("source", "target"),
        example=lambda row: Example(user(row["source"]), (row["target"],), {"level": row["level"]} if "level" in row else {}),
        optional=("rejected", "level"),
    ),
    reward=Reward(),
    evaluation=Evaluation((mean_of("exact", exact_match),)),
    compare=compare,
    compared="the rejected answer belongs to another prompt",
)  # fmt: skip


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def loaded(recipe: Recipe, source: str | None, columns: Mapping[str, str] | None = None) -> Data:
    return load(recipe, source, columns or {}, Path("runs"))


def demonstrations(first: int, last: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Say {i}", "completion": f"It is {i}"} for i in range(first, last)]


def pairs(first: int, last: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Say {i}", "chosen": f"It is {i}", "rejected": "What?"} for i in range(first, last)]


def prompts_of(*parts: Sequence[Example] | Sequence[Comparison]) -> set[Any]:
    return {item.prompt for part in parts for item in part}


def all_training_prompts(data: Data) -> set[Any]:
    return prompts_of(data.train.demonstrations, data.train.prompts, data.train.comparisons)


def all_held_out_prompts(data: Data) -> set[Any]:
    return prompts_of(data.held_out.prompts, data.held_out.comparisons)


# The source.


def test_without_a_source_the_recipes_own_world_is_taken():
    assert loaded(RECIPE, None) is BUILTIN


def test_columns_without_a_source_are_refused():
    with pytest.raises(UserError, match="no file is named"):
        loaded(RECIPE, None, {"target": "post_edit"})


def test_columns_are_mapped_and_checked(tmp_path):
    rows = [{"source": f"Sage {i}", "post_edit": f"It is {i}", "machine": f"Is {i}"} for i in range(50)]
    source = write(tmp_path / "rows.jsonl", rows)
    data = loaded(RECIPE, source, {"target": "post_edit", "rejected": "machine"})
    assert data.source == source
    assert data.train.comparisons[0].chosen.startswith("It is")
    assert data.train.comparisons[0].rejected.startswith("Is")
    with pytest.raises(UserError, match="did you mean 'target'"):
        loaded(RECIPE, source, {"taget": "post_edit"})


# The split.


def test_one_row_in_five_is_held_out_and_told(tmp_path):
    data = loaded(RECIPE, write(tmp_path / "rows.jsonl", demonstrations(0, 1000)))
    assert len(data.train.demonstrations) + len(data.held_out.prompts) == 1000
    assert not data.held_out.demonstrations
    assert len(data.held_out.prompts) == pytest.approx(200, abs=40)
    assert f"{len(data.held_out.prompts)} of 1,000 rows" in data.notes[0]


def test_appended_rows_never_move_old_ones(tmp_path):
    before = loaded(RECIPE, write(tmp_path / "rows.jsonl", demonstrations(100, 200)))
    after = loaded(RECIPE, write(tmp_path / "rows.jsonl", demonstrations(0, 300)))
    assert prompts_of(before.held_out.prompts) <= prompts_of(after.held_out.prompts)
    assert prompts_of(before.train.prompts) <= prompts_of(after.train.prompts)


def test_all_rows_of_a_prompt_stay_on_one_side(tmp_path):
    rows = [{"prompt": f"Say {i % 40}", "completion": f"It is {i}"} for i in range(200)]
    data = loaded(RECIPE, write(tmp_path / "rows.jsonl", rows))
    assert not all_training_prompts(data) & all_held_out_prompts(data)
    assert {len(example.answers) for example in [*data.train.prompts, *data.held_out.prompts]} == {5}


@pytest.mark.parametrize(
    "name",
    [
        "test.jsonl",
        "my_test.jsonl",
        "squad-dev-v2.0.jsonl",
        "Validation.jsonl",
        "eval.jsonl",
        "testing.jsonl",
        "flores.devtest.jsonl",
        "newstest2014.jsonl",
        "development.jsonl",
    ],
)
def test_a_file_with_a_name_for_it_is_the_held_out_split(tmp_path, name):
    write(tmp_path / "rows.jsonl", demonstrations(0, 20))
    write(tmp_path / name, demonstrations(20, 30))
    data = loaded(RECIPE, str(tmp_path))
    assert prompts_of(data.held_out.prompts) == {user(f"Say {i}") for i in range(20, 30)}
    assert len(data.train.demonstrations) == 20
    assert any(name in note for note in data.notes)


def test_a_validation_split_alone_is_held_out_and_not_said_to_be_unused(tmp_path):
    write(tmp_path / "train.jsonl", demonstrations(0, 20))
    write(tmp_path / "validation.jsonl", demonstrations(20, 30))
    data = loaded(RECIPE, str(tmp_path))
    assert prompts_of(data.held_out.prompts) == {user(f"Say {i}") for i in range(20, 30)}
    assert [note for note in data.notes if "validation.jsonl" in note] == ["The held-out split is validation.jsonl."]


@pytest.mark.parametrize("name", ["latest.jsonl", "contest.jsonl", "device.jsonl", "medieval.jsonl"])
def test_a_name_that_only_contains_the_letters_of_test_is_trained_on(tmp_path, name):
    write(tmp_path / name, demonstrations(0, 50))
    write(tmp_path / "train.jsonl", demonstrations(50, 100))
    data = loaded(RECIPE, str(tmp_path))
    assert len(data.train.demonstrations) + len(data.held_out.prompts) == 100
    assert len(data.train.demonstrations) > 50


def test_test_is_held_out_rather_than_validation_which_is_then_not_used(tmp_path):
    write(tmp_path / "train.jsonl", demonstrations(0, 20))
    write(tmp_path / "validation.jsonl", demonstrations(20, 30))
    write(tmp_path / "test.jsonl", demonstrations(30, 40))
    data = loaded(RECIPE, str(tmp_path))
    assert (len(data.train.demonstrations), len(data.held_out.prompts)) == (20, 10)
    assert prompts_of(data.held_out.prompts) == {user(f"Say {i}") for i in range(30, 40)}
    assert "validation.jsonl is not used, since the folder has a test split." in data.notes


def test_a_single_file_is_split_whatever_its_name(tmp_path):
    data = loaded(RECIPE, write(tmp_path / "test.jsonl", demonstrations(0, 100)))
    assert data.train.demonstrations
    assert data.held_out.prompts


def test_a_held_out_prompt_never_occurs_in_training(tmp_path):
    write(tmp_path / "train.jsonl", demonstrations(0, 20))
    write(tmp_path / "train_pairs.jsonl", pairs(10, 30))
    write(tmp_path / "test.jsonl", pairs(15, 25))
    data = loaded(RECIPE, str(tmp_path))
    assert not all_training_prompts(data) & all_held_out_prompts(data)
    assert data.dropped == {"prompt is held out (first: train.jsonl, row 16)": 15}


def test_examples_are_drawn_from_all_of_a_sorted_file_and_keep_their_order():
    examples = [Example(user(f"Say {i}"), ("yes",)) for i in range(200)]
    chosen = sample_by_hash(50, examples)
    places = [examples.index(example) for example in chosen]
    assert len(places) == 50
    assert places == sorted(places)
    assert 10 < sum(place < 100 for place in places) < 40
    assert sample_by_hash(50, examples) == chosen
    assert sample_by_hash(200, examples) == examples


def test_at_most_a_thousand_prompts_are_held_out_and_the_others_are_not_trained_on(tmp_path):
    write(tmp_path / "train.jsonl", demonstrations(0, 20))
    write(tmp_path / "test.jsonl", demonstrations(10, 1300))
    data = loaded(RECIPE, str(tmp_path))
    assert len(data.held_out.prompts) == HELD_OUT == 1000
    assert all_training_prompts(data) == {user(f"Say {i}") for i in range(10)}
    assert "Of 1,290 held-out prompts 1,000 are kept; the others are not trained on either." in data.notes


def test_of_a_sorted_file_the_prompts_that_are_held_out_come_from_all_of_it(tmp_path):
    write(tmp_path / "train.jsonl", demonstrations(0, 20))
    rows = [{"prompt": f"Ask {i:04}", "completion": "Yes"} for i in range(2000)]
    write(tmp_path / "test.jsonl", rows)
    held_out = loaded(RECIPE, str(tmp_path)).held_out.prompts
    assert len(held_out) == HELD_OUT
    assert 400 < sum(example.prompt < user("Ask 1000") for example in held_out) < 600
    assert [example.prompt for example in held_out] == sorted(example.prompt for example in held_out)


def test_two_training_rows_are_enough(tmp_path):
    write(tmp_path / "train.jsonl", demonstrations(0, 2))
    write(tmp_path / "test.jsonl", demonstrations(2, 4))
    assert len(loaded(RECIPE, str(tmp_path)).train.demonstrations) == 2


def test_too_few_training_rows_are_an_error_that_says_what_was_left_out(tmp_path):
    write(tmp_path / "train.jsonl", demonstrations(0, 5))
    write(tmp_path / "test.jsonl", demonstrations(0, 5))
    with pytest.raises(
        UserError, match=r"leaves 0 rows to train on \(left out: prompt is held out \(first: train\.jsonl, row 1\): 5\)"
    ):
        loaded(RECIPE, str(tmp_path))


def test_no_held_out_rows_are_an_error_that_says_how_to_give_some(tmp_path):
    rows = [{"prompt": "Say 1", "completion": f"It is {i}"} for i in range(5)]
    with pytest.raises(UserError, match=r"no rows to hold out .*test\.jsonl"):
        loaded(RECIPE, write(tmp_path / "rows.jsonl", rows))


# Rows left out.


def test_rows_left_out_are_counted_by_reason(tmp_path):
    bad = [
        {"prompt": "Hello", "completion": ""},
        {"prompt": "", "completion": "Hi"},
        {"prompt": " ", "completion": "Hi"},
    ]
    rows = [*demonstrations(0, 50), *bad, *demonstrations(0, 3)]
    data = loaded(RECIPE, write(tmp_path / "rows.jsonl", rows))
    assert data.dropped == {
        "empty answer (first: rows.jsonl, row 51)": 1,
        "empty prompt (first: rows.jsonl, row 52)": 2,
        "duplicate row (first: rows.jsonl, row 54)": 3,
    }
    assert len(data.train.demonstrations) + len(data.held_out.prompts) == 50


# What is derived.


def test_chosen_answers_are_the_demonstrations_where_there_are_only_comparisons(tmp_path):
    write(tmp_path / "train.jsonl", pairs(0, 20))
    write(tmp_path / "test.jsonl", pairs(20, 30))
    data = loaded(RECIPE, str(tmp_path))
    assert data.train.demonstrations[0] == Example(user("Say 0"), ("It is 0",))
    assert data.held_out.prompts[0] == Example(user("Say 20"), ("It is 20",))
    assert "Demonstrations are the chosen answers of the comparisons (20 in training, 10 held out)." in data.notes


def test_demonstrations_stay_as_read_where_there_are_some_beside_comparisons(tmp_path):
    write(tmp_path / "train.jsonl", demonstrations(0, 20))
    write(tmp_path / "train_pairs.jsonl", pairs(50, 70))
    write(tmp_path / "test.jsonl", pairs(20, 30))
    data = loaded(RECIPE, str(tmp_path))
    assert prompts_of(data.train.demonstrations) == {user(f"Say {i}") for i in range(20)}
    assert prompts_of(data.train.comparisons) == {user(f"Say {i}") for i in range(50, 70)}


def test_each_split_derives_its_comparisons_from_its_own_examples(tmp_path):
    write(tmp_path / "train.jsonl", demonstrations(0, 20))
    write(tmp_path / "test.jsonl", demonstrations(20, 30))
    data = loaded(RECIPE, str(tmp_path))
    assert {pair.rejected for pair in data.train.comparisons} <= {example.answers[0] for example in data.train.prompts}
    assert {pair.rejected for pair in data.held_out.comparisons} <= {
        example.answers[0] for example in data.held_out.prompts
    }
    note = "The data bring no preferences: the rejected answer belongs to another prompt (20 in training, 10 held out)."
    assert note in data.notes


def test_no_answer_is_in_both_halves_of_the_held_out_comparisons_of_which_one_trains_the_judge(tmp_path):
    write(tmp_path / "train.jsonl", demonstrations(0, 20))
    write(tmp_path / "test.jsonl", demonstrations(20, 220))
    parts = halves(loaded(RECIPE, str(tmp_path)).held_out.comparisons)
    assert sum(map(len, parts)) == 200
    first, second = ({text for row in part for text in (row.chosen, row.rejected)} for part in parts)
    assert not first & second


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_hardly_an_answer_of_the_comparisons_that_choose_a_step_is_in_those_that_are_learned_from(tmp_path, split):
    many = {"train": (1200, 1220), "held_out": (20, 1020)}[split]
    write(tmp_path / "train.jsonl", demonstrations(0, 20 if split == "held_out" else 1200))
    write(tmp_path / "test.jsonl", demonstrations(*many))
    comparisons = getattr(loaded(RECIPE, str(tmp_path)), split).comparisons
    learned = halves(comparisons)[0] if split == "held_out" else comparisons  # the judge learns from a half
    others, aside = set_aside(learned, [pair.prompt for pair in learned])
    known = {text for pair in others for text in (pair.chosen, pair.rejected)}
    seen = [pair for pair in aside if {pair.chosen, pair.rejected} & known]
    assert len(aside) >= 40
    assert len(seen) <= len(aside) // 10


def test_prompts_are_distinct_with_all_their_references_unless_their_truth_differs(tmp_path):
    rows = [{"source": f"Sage {i}", "target": f"It is {i}", "level": 1} for i in range(50)]
    rows += [{"source": f"Sage {i}", "target": f"That is {i}", "level": 1} for i in range(50)]
    rows += [{"source": f"Sage {i}", "target": f"It is {i}", "level": 2} for i in range(50)]
    data = loaded(RECIPE, write(tmp_path / "rows.jsonl", rows))
    assert len(data.train.demonstrations) + 3 * len(data.held_out.prompts) / 2 == 150
    assert {(len(example.answers), example.truth["level"]) for example in data.train.prompts} == {(2, 1), (1, 2)}


def test_native_rows_without_a_rejected_answer_give_no_comparison_beside_others_that_have_one(tmp_path):
    rows = [{"source": f"Sage {i}", "target": f"It is {i}", "rejected": "It is 7"} for i in range(20)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", demonstrations(20, 30))
    data = loaded(RECIPE, str(tmp_path))
    assert (len(data.train.demonstrations), len(data.train.comparisons)) == (20, 19)
    assert any("give no comparison (1 in training, 0 held out)" in note for note in data.notes)


def test_several_graded_answers_give_the_best_as_demonstration_and_best_against_worst_as_comparison(tmp_path):
    rows = [{"prompt": f"Say {i}", "completion": f"{word} {i}", "score": score}
            for i in range(50) for word, score in (("Hm", 2), ("It is", 5), ("What", 1))]  # fmt: skip
    data = loaded(RECIPE, write(tmp_path / "rows.jsonl", rows))
    first = data.train.prompts[0]
    number = first.answers[0].split()[-1]
    assert first.answers == (f"It is {number}",)
    assert data.train.comparisons[0] == Comparison(first.prompt, f"It is {number}", f"What {number}")
    assert len(data.train.demonstrations) == len(data.train.comparisons) == len(data.train.ratings) / 3
    assert len(data.held_out.prompts) == len(data.held_out.comparisons) == 50 - len(data.train.demonstrations)
    counts = f"({len(data.train.demonstrations)} in training, {len(data.held_out.prompts)} held out)."
    assert list(data.notes[1:]) == [
        f"Demonstrations are the best graded answers of each prompt {counts}",
        f"Comparisons are the best against the worst graded answer of a prompt {counts}",
    ]


def test_equal_scores_make_no_comparison(tmp_path):
    rows = [{"prompt": f"Say {i}", "completion": f"{word} {i}", "score": 2 if word == "It is" and i % 2 else 1}
            for i in range(50) for word in ("It is", "What")]  # fmt: skip
    data = loaded(RECIPE, write(tmp_path / "rows.jsonl", rows))
    assert len(data.train.comparisons) + len(data.held_out.comparisons) == 25
    assert all(pair.chosen.startswith("It is") for pair in data.train.comparisons)


def test_single_graded_answers_serve_as_demonstrations_from_the_median_on(tmp_path):
    write(tmp_path / "train.jsonl", [row | {"score": i} for i, row in enumerate(demonstrations(0, 20))])
    write(tmp_path / "test.jsonl", [row | {"score": i} for i, row in enumerate(demonstrations(20, 31))])
    data = loaded(RECIPE, str(tmp_path))
    assert data.train.demonstrations == [Example(user(f"Say {i}"), (f"It is {i}",)) for i in range(10, 20)]
    assert prompts_of(data.held_out.prompts) == {user(f"Say {i}") for i in range(30, 31)}
    assert data.train.ratings[0] == Rating(user("Say 0"), "It is 0", 0.0)
    assert len(data.train.ratings) == 20
    assert len(data.held_out.ratings) == 11
    assert not data.train.comparisons
    assert not data.held_out.comparisons
    assert (
        "Answers scored 9.5 or more serve as demonstrations and references (10 in training, 1 held out)." in data.notes
    )
    assert "Answers scored below 9.5 do not (10 in training, 10 held out)." in data.notes
    assert (
        "Ratings that make no pairs teach the reward model by regression (20 in training, 11 held out)." in data.notes
    )


def test_a_prompt_that_recurs_by_chance_does_not_become_the_only_comparison(tmp_path):
    twice = [{"prompt": "Say 0", "completion": "What?", "score": 0}]
    rows = [row | {"score": 1} for row in demonstrations(0, 60)] + twice
    data = loaded(RECIPE, write(tmp_path / "rows.jsonl", rows))
    assert not data.train.comparisons
    assert len(data.train.ratings) > 20


@pytest.mark.parametrize("up", [0.1, 0.4, 0.5, 0.9])
@pytest.mark.parametrize("scale", [(0, 1), (-1, 1), (1, 5)])
def test_a_thumb_down_is_never_a_demonstration_and_no_reference(tmp_path, up, scale):
    def thumbs(first: int, last: int, up: float) -> list[dict[str, Any]]:
        good = first + up * (last - first)
        return [row | {"score": scale[i < good]} for i, row in enumerate(demonstrations(first, last), first)]

    write(tmp_path / "train.jsonl", thumbs(0, 100, up))
    write(tmp_path / "test.jsonl", thumbs(100, 140, 1 - up))
    data = loaded(RECIPE, str(tmp_path))
    assert len(data.train.demonstrations) == len(data.train.prompts) == round(100 * up)
    assert len(data.held_out.prompts) == round(40 * (1 - up)), "the training rows' bound holds for both"
    told = f"Answers scored {scale[1]} or more serve as demonstrations and references"
    assert f"{told} ({round(100 * up)} in training, {round(40 * (1 - up))} held out)." in data.notes


def test_the_best_of_several_answers_is_no_demonstration_where_all_have_the_lowest_score(tmp_path):
    rows = [{"prompt": f"Say {i}", "completion": word, "score": 1 if word == "Yes" and i % 2 else 0}
            for i in range(40) for word in ("Yes", "No")]  # fmt: skip
    write(tmp_path / "train.jsonl", rows[:60])
    write(tmp_path / "test.jsonl", rows[60:])
    data = loaded(RECIPE, str(tmp_path))
    assert prompts_of(data.train.demonstrations) == {user(f"Say {i}") for i in range(1, 30, 2)}
    assert prompts_of(data.held_out.prompts) == {user(f"Say {i}") for i in range(31, 40, 2)}
    assert "Prompts whose best answer is scored below 1 give none (15 in training, 5 held out)." in data.notes


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([1, 1, 1, 1], [1, 1], "all grades in .* are equal: 'score' is 1 in all 4 .*, or take 'score' out"),
        ([1, 2, 3, 4], [1, 2], "no held-out answer in .* is scored 2.5 or more"),
    ],
)
def test_scores_that_leave_nothing_to_imitate_or_to_judge_by_are_refused(tmp_path, train, test, said):
    for name, scores in (("train", train), ("test", test)):
        rows = [{"prompt": f"{name} {i}", "completion": "Yes", "score": score} for i, score in enumerate(scores)]
        write(tmp_path / f"{name}.jsonl", rows)
    with pytest.raises(UserError, match=said):
        loaded(RECIPE, str(tmp_path))


# Votes.


def test_scores_of_one_answer_are_votes_and_equal_rows_too(tmp_path):
    votes = {"It is": (4, 4, 3), "Hm": (5, 1, 1)}
    rows = [{"prompt": f"Say {i}", "completion": answer, "score": score}
            for i in range(40) for answer, scores in votes.items() for score in scores]  # fmt: skip
    data = loaded(RECIPE, write(tmp_path / "rows.jsonl", rows))
    assert data.dropped == {}
    assert {example.answers for example in (*data.train.demonstrations, *data.held_out.prompts)} == {("It is",)}
    assert {(pair.chosen, pair.rejected) for pair in data.train.comparisons} == {("It is", "Hm")}
    assert {(rating.answer, round(rating.score, 3)) for rating in data.train.ratings} == {
        ("It is", 3.667),
        ("Hm", 2.333),
    }
    train, held_out = len(data.train.prompts), len(data.held_out.prompts)
    told = f"({6 * train} in training, {6 * held_out} held out)."
    assert f"Scores of one answer to one prompt are votes, and their mean counts {told}" in data.notes
    assert f"Answers are left with one score each ({2 * train} in training, {2 * held_out} held out)." in data.notes


def test_spaces_around_an_answer_make_no_other_answer_to_vote_on(tmp_path):
    given = (("An oak", 5), ("An oak ", 1), ("\nAn oak", 1), ("An ash", 4))
    rows = [
        {"prompt": f"Tree {i}?", "completion": answer, "score": score} for i in range(40) for answer, score in given
    ]
    data = loaded(RECIPE, write(tmp_path / "rows.jsonl", rows))
    assert {(pair.chosen, pair.rejected) for pair in data.train.comparisons} == {("An ash", "An oak")}
    pairs = [{"prompt": f"Tree {i}?", "chosen": "An oak", "rejected": "An ash"} for i in range(40)]
    pairs += [{"prompt": "Tree 7?", "chosen": "An ash\n", "rejected": " An oak"}]
    data = loaded(RECIPE, write(tmp_path / "pairs.jsonl", pairs))
    assert sum(data.dropped.values()) == 2


@pytest.mark.parametrize(
    ("one", "other", "left", "reason"),
    [
        (2, 1, "one", "more rows prefer its rejected answer to the chosen one"),
        (1, 3, "other", "more rows prefer its rejected answer to the chosen one"),
        (2, 2, None, "as many rows prefer its rejected answer to the chosen one"),
        (3, 0, "one", None),
    ],
)
def test_comparisons_that_disagree_are_votes_of_which_the_majority_stays(tmp_path, one, other, left, reason):
    rows = [{"prompt": "Ask", "chosen": "one", "rejected": "other"}] * one
    rows += [{"prompt": "Ask", "chosen": "other", "rejected": "one"}] * other
    write(tmp_path / "train.jsonl", [*pairs(0, 5), *rows])
    write(tmp_path / "test.jsonl", pairs(5, 10))
    data = loaded(RECIPE, str(tmp_path))
    assert [pair.chosen for pair in data.train.comparisons if pair.prompt == user("Ask")] == ([left] if left else [])
    assert [example.answers[0] for example in data.train.prompts[5:]] == ([left] if left else [])
    assert sum(data.dropped.values()) == one + other - bool(left)
    assert reason is None or any(told.startswith(reason) for told in data.dropped)


# Near-duplicates.


NEARLY = [
    "What is an über-café?",
    "  what is  an über-café?\n",
    "WHAT IS AN ÜBER-CAFÉ?",
    "What is an u\u0308ber-cafe\u0301?",
]


@pytest.mark.parametrize("other", NEARLY)
def test_a_training_row_whose_prompt_is_nearly_a_held_out_one_is_left_out(tmp_path, other):
    write(tmp_path / "train.jsonl", [*demonstrations(0, 20), {"prompt": other, "completion": "A café"}])
    write(tmp_path / "test.jsonl", [{"prompt": NEARLY[0], "completion": "A café"}])
    data = loaded(RECIPE, str(tmp_path))
    assert data.dropped == {"prompt is held out (first: train.jsonl, row 21)": 1}
    assert all_training_prompts(data) == {user(f"Say {i}") for i in range(20)}


def test_prompts_that_differ_are_drawn_as_in_finished_runs(tmp_path):
    data = loaded(RECIPE, write(tmp_path / "rows.jsonl", demonstrations(0, 60)))
    assert prompts_of(data.held_out.prompts) == {user(f"Say {i}") for i in range(60) if draw(user(f"Say {i}")) % 5 == 0}
    assert draw(user("Say 0")) % 10**8 == 15169497
    assert fingerprint(data) == "31882173922d2b21"


def test_the_draw_treats_nearly_equal_prompts_as_one_and_moves_no_other(tmp_path):
    plain = loaded(RECIPE, write(tmp_path / "rows.jsonl", demonstrations(0, 200)))
    shouted = [row | {"prompt": f" {row['prompt'].upper()}"} for row in demonstrations(0, 200)]
    both = loaded(RECIPE, write(tmp_path / "rows.jsonl", demonstrations(0, 200) + shouted))
    for one, two in ((plain.train, both.train), (plain.held_out, both.held_out)):
        assert [example.prompt for example in two.prompts[: len(one.prompts)]] == [ex.prompt for ex in one.prompts]
        assert {ex.prompt[0].content.strip().lower() for ex in two.prompts} == {
            ex.prompt[0].content.lower() for ex in one.prompts
        }
    assert not both.dropped


def test_a_blank_reference_beside_a_good_one_leaves_the_row_out(tmp_path):
    two = dataclasses.replace(
        RECIPE, columns=Columns(("ask", "answers"), lambda row: Example(user(row["ask"]), tuple(row["answers"])))
    )
    rows = [{"ask": f"Say {i}", "answers": ["Yes", blank]} for i in range(10) for blank in ("Ja", "", " \n", 5)]
    data = loaded(two, write(tmp_path / "rows.jsonl", rows))
    assert data.dropped == {
        "empty answer (first: rows.jsonl, row 2)": 20,
        "a value is no text (first: rows.jsonl, row 4)": 10,
    }
    assert {example.answers for example in (*data.train.prompts, *data.held_out.prompts)} == {("Yes", "Ja")}


def test_a_judge_is_fitted_to_the_held_out_rows_and_told(tmp_path):
    seen: list[Sequence[Example]] = []
    judge = mean_of("judged", exact_match)

    def fit(held_out: Sequence[Example]) -> Any:
        seen.append(held_out)
        return judge

    source = write(tmp_path / "rows.jsonl", demonstrations(0, 50))
    data = loaded(dataclasses.replace(RECIPE, judge=fit), source)
    assert data.metrics == (judge,)
    assert seen == [data.held_out.prompts]
    assert "The metric judged is a judge fitted to the held-out rows alone." in data.notes
    assert loaded(dataclasses.replace(RECIPE, judge=lambda held_out: None), source).metrics == ()


# The fingerprint.


def test_the_fingerprint_is_the_same_for_the_same_rows_wherever_they_lie(tmp_path):
    here = loaded(RECIPE, write(tmp_path / "here.jsonl", demonstrations(0, 50)))
    there = loaded(RECIPE, write(tmp_path / "there.jsonl", demonstrations(0, 50)))
    assert fingerprint(here) == fingerprint(there)
    assert len(fingerprint(here)) == 16
    assert int(fingerprint(here), 16) >= 0


def test_the_fingerprint_does_not_heed_notes_and_metrics():
    told = dataclasses.replace(BUILTIN, notes=("A note.",), metrics=(mean_of("exact", exact_match),))
    assert fingerprint(told) == fingerprint(BUILTIN)


@pytest.mark.parametrize(
    "changed",
    [
        {"train": Split([Example(user("a"), ("c",))])},
        {"train": Split([Example(user("a"), ("b",), {"slots": {"x", "y"}})])},
        {"train": dataclasses.replace(BUILTIN.train, prompts=[Example(user("a"), ("b",))])},
        {"train": dataclasses.replace(BUILTIN.train, comparisons=[Comparison(user("a"), "b", "c")])},
        {"train": dataclasses.replace(BUILTIN.train, ratings=[Rating(user("a"), "b", 1.0)])},
        {"held_out": Split(prompts=[Example(user("a"), ("b",))])},
        {"held_out": Split(comparisons=[Comparison(user("a"), "b", "c")])},
        {"held_out": Split(ratings=[Rating(user("a"), "b", 1.0)])},
    ],
)
def test_the_fingerprint_changes_with_anything_trained_on_or_judged_by(changed):
    assert fingerprint(dataclasses.replace(BUILTIN, **changed)) != fingerprint(BUILTIN)


def test_every_list_of_either_split_is_counted_under_a_name_of_its_own():
    kinds = [field.name for field in dataclasses.fields(Split)]
    marked = [Split(**{kind: f"{side} {kind}" for kind in kinds}) for side in ("train", "held out")]
    nothing_held_out_is_imitated = {"held out demonstrations"}
    rows = {f"{side} {kind}" for side in ("train", "held out") for kind in kinds} - nothing_held_out_is_imitated
    assert set(lists(Data("marked", *marked)).values()) == rows


def test_data_that_finished_runs_were_trained_on_keep_their_fingerprint():
    pair, rating = Comparison(user("a"), "b", "c"), Rating(user("a"), "b", 1.0)
    train = dataclasses.replace(BUILTIN.train, prompts=BUILTIN.train.demonstrations, comparisons=[pair])
    held_out = Split(prompts=[Example(user("z"), ("y",), {"slots": {"x", "y"}})], comparisons=[pair])
    assert fingerprint(Data("pairs", train, held_out)) == "e2448ca1cd09ec9d"
    rated = dataclasses.replace(held_out, ratings=[Rating(user("z"), "y", 2.0)])
    assert fingerprint(Data("rated", dataclasses.replace(train, ratings=[rating]), rated)) == "b3a8fff7bb8d85c4"


def test_a_margin_is_part_of_the_fingerprint_and_none_is_not():
    plain, wide = ([Comparison(user("a"), "b", "c", margin=margin)] for margin in (None, 2.0))
    without, with_margin = (Data("pairs", Split(comparisons=pairs), Split()) for pairs in (plain, wide))
    assert fingerprint(without) != fingerprint(with_margin)
    assert "margin" not in canonical(plain)  # what was made before there were margins is still up to date


def test_reading_data_imports_no_heavy_library():
    code = (
        "import sys, rlrecipes.data; print([m for m in ('torch', 'datasets', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_home_of_a_user_who_is_not_there_holds_no_data(tmp_path):
    with pytest.raises(UserError, match=r"~nobody-has-this/rows\.jsonl"):
        loaded(RECIPE, "~nobody-has-this/rows.jsonl")
