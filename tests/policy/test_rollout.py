"""A rollout is cut into micro-batches that hold what their rows need and no more; no model in sight."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from rlrecipes.policy.ppo import whiten
from rlrecipes.policy.rollout import (
    Drawn,
    Rollout,
    broken_row,
    in_order,
    join_drawn,
    join_rows,
    micro_batch,
    places_before,
)
from rlrecipes.recipe import Example, user

STEPS, PROMPTS, ANSWERS = 5, (2, 4, 3), (1, 2, 5)
"""Of three answers, the last one uses up its budget."""


@pytest.fixture
def rollout() -> Rollout:
    """Numbers that tell their row and column."""
    prompts, lengths, places = torch.tensor(PROMPTS), torch.tensor(ANSWERS), torch.arange(STEPS)[None]
    table = torch.arange(3)[:, None] * 100 + torch.arange(9)[None]
    steps = table[:, :STEPS].float()
    return Rollout(
        examples=[Example(user("?"), ("!",))] * 3,
        answers=["!"] * 3,
        ids=table,
        prompt_lengths=prompts,
        response=table[:, :STEPS],
        logprobs=steps + 0.1,
        reference_logprobs=steps + 0.2,
        values=steps + 0.3,
        entropy=steps,
        padding=places >= lengths[:, None],
        states_padding=places > lengths[:, None],
        ended=torch.tensor([True, True, False]),
        last_states=torch.zeros(3, 2),
    )


def test_a_micro_batch_is_cut_to_the_states_and_tokens_of_its_longest_row(rollout):
    advantages, returns = rollout.values + 1000, rollout.values + 2000
    micro = micro_batch(rollout, advantages, returns, torch.tensor([1, 0]))
    assert micro.ids.tolist() == [[100, 101, 102, 103, 104, 105], [0, 1, 2, 3, 4, 5]]
    assert micro.places.tolist() == [[3, 4, 5], [1, 2, 3]]
    assert micro.response.tolist() == [[100, 101, 102], [0, 1, 2]]
    assert micro.mask.tolist() == [[True, True, False], [True, False, False]]
    assert micro.states_mask.tolist() == [[True, True, True], [True, True, False]]
    for found, whole in (
        (micro.logprobs, rollout.logprobs),
        (micro.values, rollout.values),
        (micro.advantages, advantages),
        (micro.returns, returns),
    ):
        assert torch.equal(found, whole[[1, 0], :3])


def test_rows_that_are_read_together_are_of_one_length_or_to_one_prompt(rollout):
    rows = torch.tensor([2, 1, 0])
    assert in_order(rollout, rows, by_prompt=False).tolist() == [0, 1, 2]
    turned = dataclasses.replace(rollout, prompt_lengths=torch.tensor([9, 4, 3]))
    assert in_order(turned, rows, by_prompt=False).tolist() == [1, 2, 0]
    assert in_order(turned, rows, by_prompt=True).tolist() == [0, 1, 2]


def test_an_answer_that_uses_up_its_budget_has_no_state_behind_it(rollout):
    micro = micro_batch(rollout, rollout.values, rollout.values, torch.tensor([2]))
    assert micro.ids.tolist() == [[200, 201, 202, 203, 204, 205, 206]]
    assert micro.places.tolist() == [[2, 3, 4, 5, 6]]
    assert micro.states_mask.all()


def test_states_stand_before_their_tokens_and_never_outside_of_the_row():
    assert places_before(torch.tensor([1, 3]), steps=4, width=5).tolist() == [[0, 1, 2, 3], [2, 3, 4, 4]]


def test_chunks_are_joined_at_the_width_of_the_widest():
    wide, narrow = torch.tensor([[1, 2, 3]]), torch.tensor([[4], [5]])
    assert join_rows([narrow, wide], 7).tolist() == [[4, 7, 7], [5, 7, 7], [1, 2, 3]]
    assert join_rows([torch.tensor([1]), torch.tensor([2, 3])], 7).tolist() == [1, 2, 3]


@pytest.mark.parametrize("values", [[1.0, 3.0], [1.0, 2.0, 6.0]])
def test_whitened_values_have_mean_nought_and_variance_one_over_the_mask(values):
    count = len(values)
    padded = torch.tensor([[*values, 9.0]])
    mask = torch.tensor([[True] * count + [False]])
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    expected = [(value - mean) / deviation for value in values]
    assert whiten(padded, mask)[0].tolist() == pytest.approx([*expected, 0.0])
    assert whiten(padded, mask, keep_mean=True)[0].tolist() == pytest.approx([*(v + mean for v in expected), 0.0])


def test_a_single_value_is_whitened_to_nought():
    assert whiten(torch.tensor([[5.0, 7.0]]), torch.tensor([[True, False]])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_the_first_row_with_a_number_that_is_none_is_found(broken):
    assert broken_row(torch.tensor([[1.0, 2.0], [3.0, broken], [broken, 4.0]])) == 1
    assert broken_row(torch.tensor([[broken, broken]])) == 0
    assert broken_row(torch.zeros(2, 2)) is None


# Several draws.


def shorter(rollout: Rollout) -> Rollout:
    """Its first two rows as a rollout of answers of two tokens at most, and texts of seven."""
    first = rollout.rows(torch.tensor([0, 1]))
    narrow = ("response", "logprobs", "reference_logprobs", "values", "entropy", "padding", "states_padding")
    cut = {name: getattr(first, name)[:, :2] for name in narrow}
    return replace(first, ids=first.ids[:, :7], **cut)


def test_some_rows_of_a_rollout_are_those_rows_of_everything(rollout):
    named = replace(rollout, answers=["a", "b", "c"], examples=[Example(user(text), ()) for text in "xyz"])
    taken = named.rows(torch.tensor([2, 0]))
    assert taken.answers == ["c", "a"]
    assert [example.prompt[-1].content for example in taken.examples] == ["z", "x"]
    assert taken.tensors().keys() == named.tensors().keys()
    assert "rounding" not in taken.tensors()
    for name, tensor in taken.tensors().items():
        assert torch.equal(tensor, getattr(named, name)[[2, 0]])


def test_draws_of_several_widths_are_joined_and_padded(rollout):
    few = shorter(rollout)
    scores, more = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])
    drawn = join_drawn([Drawn(few, {"t": scores}, scores), Drawn(rollout, {"t": more}, more)], pad=-1)
    joined = drawn.rollout
    assert drawn.scores.tolist() == drawn.terms["t"].tolist() == [1, 2, 3, 4, 5]
    assert len(joined.answers) == len(joined.examples) == 5
    assert joined.ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6, -1, -1]
    assert joined.response[1].tolist() == [100, 101, -1, -1, -1]
    assert joined.lengths.tolist() == [1, 2, 1, 2, 5]
    assert joined.states_padding[0].tolist() == [False, False, True, True, True]
    assert joined.logprobs[1].tolist() == pytest.approx([100.1, 101.1, 0, 0, 0])
    for name, tensor in joined.rows(torch.tensor([2, 3, 4])).tensors().items():
        assert torch.equal(tensor, getattr(rollout, name))


def test_one_draw_is_left_as_it_is(rollout):
    drawn = Drawn(rollout, {}, torch.zeros(3))
    assert join_drawn([drawn], pad=0) is drawn
