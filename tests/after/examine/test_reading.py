"""The pieces of an answer add up to its score, on the base as it is held in training."""

import pytest
import torch
from conftest import tiny_tokenizer

from rlrecipes.after.examine.reading import (
    LARGEST_GAP,
    TOGETHER,
    Piece,
    Reading,
    attributions,
    pieces_of,
    read,
    words_of,
)
from rlrecipes.model.tokens import load_tokenizer
from rlrecipes.profile import ModelSettings
from rlrecipes.recipe import user
from rlrecipes.reward.model import load_sharing
from rlrecipes.reward.source import find_reward_model


@pytest.fixture(scope="module", params=["none", "nf4"])
def model(request, checkpoint):
    """A reward adapter that says something, on a plain base and on one in 4 bits."""
    settings = ModelSettings(quantization=request.param, dtype="float32")
    tokenizer = load_tokenizer(checkpoint.model)
    return load_sharing(find_reward_model(str(checkpoint.reward)), str(checkpoint.model), settings, tokenizer)


def test_the_parts_add_up_to_the_difference_to_padding_and_none_of_the_weights_learns(model):
    row = model.encode(user("Say it."), "The child reads.")
    start = len(row["input_ids"]) - 17
    parts, above = attributions(model, row, start, 256)
    assert len(parts) == 17
    assert abs(above) > 0.01, "or the test would see nothing"
    assert sum(parts) == pytest.approx(above, abs=LARGEST_GAP * sum(map(abs, parts)))
    assert all(parameter.grad is None for parameter in model.model.parameters())
    blank = {"input_ids": [*row["input_ids"][:start], *[model.pad] * 17]}
    model.model.config.pad_token_id = -1  # so that both are read at their last place
    scores = [float(model.model(input_ids=torch.tensor([ids["input_ids"]])).logits.detach()) for ids in (row, blank)]
    assert above == pytest.approx(scores[0] - scores[1], abs=1e-4)


def test_a_reading_begins_where_the_answer_does_and_ends_with_what_ends_it(model):
    found = read(model, user("Say it."), "Größe 🙂", 0.5)
    assert [piece.text for piece in found.pieces] == [*"Größe 🙂", "<end>"]
    assert [piece.special for piece in found.pieces] == [False] * 7 + [True]
    assert found.whole


def test_no_more_points_are_held_at_once_than_was_said(model, monkeypatch):
    seen = []
    forward = model.model.forward
    monkeypatch.setattr(
        model.model,
        "forward",
        lambda **given: seen.append(given["inputs_embeds"].shape[:2].numel()) or forward(**given),
    )
    row = model.encode(user("x" * 60), "The child reads.")
    attributions(model, row, 70, 32)
    assert max(seen) <= TOGETHER
    assert len(seen) > 4


def test_a_reading_with_too_large_a_gap_shows_nothing():
    pieces = [Piece("a", 1.0), Piece("b", 1.0)]
    assert Reading(pieces, 2.0, 0.02).as_json() == {"pieces": [["a", 1.0], ["b", 1.0]], "score": 2.0, "gap": 0.02}
    assert Reading(pieces, 1.0, 0.5).as_json() == {"pieces": [], "score": 1.0, "gap": 0.5}


def test_tokens_that_share_a_character_are_one_piece_with_the_sum_of_their_parts():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("a🙂")["input_ids"]
    assert len(ids) == 5
    assert [(piece.text, piece.part) for piece in pieces_of(tokenizer, ids, [1, 2, 3, 4, 5])] == [("a", 1), ("🙂", 14)]


def test_words_are_ranked_by_their_mean_part_with_the_answers_that_have_them():
    def reading(*parts):
        texts = ["The", " chi", "ld", ".", "<end>"]
        return Reading([Piece(t, p, t == "<end>") for t, p in zip(texts, parts, strict=True)], 1.0, 0.0)

    found = words_of([reading(1, 2, 3, 0, -1), reading(1, 2, 3, 0, -2), reading(1, 2, 3, 0, -3)])
    assert [(entry["word"], entry["part"]["value"], entry["count"]) for entry in found] == [
        ("child", 5, 3),
        ("the", 1, 3),
        (".", 0, 3),
        ("<end>", -2, 3),
    ]
    assert words_of([reading(1, 2, 3, 0, -1)] * 2) == []


def test_marks_belong_to_the_word_that_the_pieces_make():
    texts = ("लड़", "की", " कि", "ता", "ब", "।")
    reading = Reading([Piece(text, 1.0) for text in texts], 6.0, 0.0)
    assert {found["word"]: found["part"]["value"] for found in words_of([reading] * 3)} == {
        "लड़की": 2,
        "किताब": 3,
        "।": 1,
    }
