"""Answers to one prompt are judged by each other as RLOO's and GRPO's papers say; no model in sight."""

import math
from statistics import fmean, stdev

import pytest
import torch

from rlrecipes.policy import groups
from rlrecipes.policy.kl import estimate_kl
from rlrecipes.policy.rollout import MicroBatch
from rlrecipes.profile import GRPOSettings, RLOOSettings

EACH = 4
SCORES = torch.tensor([0.0, 1.0, 2.5, -3.0, 7.0, 7.0, 7.0, 7.0, 10.0, 11.0, 12.5, 9.0])
"""Of three prompts: one answered well and badly, one always alike, and one easy."""


def by_prompt(values: torch.Tensor) -> list[list[float]]:
    return values.view(-1, EACH).tolist()


# Advantages.


def test_an_answer_is_set_against_the_mean_of_the_others_to_its_prompt():
    expected = [
        score - fmean(others)
        for group in by_prompt(SCORES)
        for i, score in enumerate(group)
        for others in [group[:i] + group[i + 1 :]]
    ]
    assert groups.left_out(SCORES, EACH).tolist() == pytest.approx(expected, abs=1e-5)


def test_normalised_advantages_are_taken_over_the_batch_and_not_over_a_prompt():
    expected = [(score - fmean(SCORES.tolist())) / (stdev(SCORES.tolist()) + 1e-4) for score in SCORES.tolist()]
    assert groups.normalised(SCORES).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("scale", "divisor"),
    [
        ("group", lambda group: stdev(group) + 1e-4),
        ("batch", lambda group: stdev(SCORES.tolist()) + 1e-4),
        ("none", lambda group: 1.0),
    ],
)
def test_an_answer_is_set_against_all_to_its_prompt_over_what_scale_rewards_names(scale, divisor):
    expected = [(score - fmean(group)) / divisor(group) for group in by_prompt(SCORES) for score in group]
    assert groups.within_groups(SCORES, EACH, scale).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "advantages",
    [groups.left_out, *(lambda s, k, x=x: groups.within_groups(s, k, x) for x in ("group", "batch", "none"))],
)
def test_an_easier_prompt_gives_no_advantage(advantages):
    easier = SCORES + torch.tensor([0.0, 5.0, -2.0]).repeat_interleave(EACH)
    moved = advantages(easier, EACH).view(-1, EACH)
    before = advantages(SCORES, EACH).view(-1, EACH)
    assert moved.sum(1).tolist() == pytest.approx([0.0] * 3, abs=1e-5)
    assert torch.equal(moved.sign(), before.sign())
    assert not moved[1].any(), "answers that are all alike"


# What a token weighs.

LENGTHS = torch.tensor([1, 0, 5, 2])
OF_BATCH = torch.tensor(20)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("grpo", [1 / 4, 1 / 4, 1 / 20, 1 / 8]),
        ("bnpo", [1 / 8] * 4),
        ("dapo", [1 / 10] * 4),
        ("dr_grpo", [1 / 28] * 4),
    ],
)
def test_a_token_weighs_what_its_loss_type_says(loss_type, expected):
    found = groups.token_weights(LENGTHS, OF_BATCH, mini_batches=2, longest=7, loss_type=loss_type)
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_answers_without_a_token_to_learn_from_have_finite_weights(loss_type):
    none = torch.zeros(3, dtype=torch.long)
    assert groups.token_weights(none, none.sum(), mini_batches=1, longest=7, loss_type=loss_type).isfinite().all()


# The losses, by numbers that can be counted by hand.


def micro(ratios: list[list[float]], advantages: list[float], ended: list[bool]) -> tuple[MicroBatch, torch.Tensor]:
    """Answers with these ratios of their tokens, padded with rubbish, and their log-probabilities in training."""
    steps = max(map(len, ratios))
    mask = torch.tensor([[t < len(row) for t in range(steps)] for row in ratios])
    old = torch.full((len(ratios), steps), -1.0)
    moved = torch.tensor([[math.log(r) for r in row] + [3.0] * (steps - len(row)) for row in ratios])
    unread = torch.zeros(len(ratios), steps, dtype=torch.long)
    batch = MicroBatch(
        rows=torch.arange(len(ratios)),
        ids=unread,
        places=unread,
        response=unread,
        mask=mask,
        states_mask=mask,
        logprobs=old,
        reference_logprobs=old - 0.5,
        advantages=torch.tensor(advantages)[:, None].expand(-1, steps) * mask,
        ended=torch.tensor(ended),
    )
    return batch, old + moved


RATIOS = [[1.1, 2.0, 0.5], [1.5], [0.7, 0.9]]


def test_rloo_clips_the_product_of_an_answers_ratios():
    batch, logprobs = micro(RATIOS, [2.0, 1.0, -1.0], [True, True, True])
    losses, statistics = groups.rloo_losses(batch, logprobs, 6, torch.tensor(6), RLOOSettings())
    expected = [-2.0 * 1.1, -1.0 * 1.2, 0.8]
    assert (losses[:, 0] * 6).tolist() == pytest.approx(expected)
    assert float(statistics["policy/clipfrac_avg"]) == pytest.approx(3 / 6), "all tokens of the last two"


def test_grpo_clips_each_token_by_the_side_that_its_advantage_climbs():
    batch, logprobs = micro(RATIOS, [2.0, 1.0, -1.0], [True, True, True])
    weights = torch.tensor([1.0, 10.0, 100.0])
    losses, statistics = groups.grpo_losses(batch, logprobs, weights, torch.tensor(6), GRPOSettings(), 0.0)
    expected = [-2.0 * 1.1, -2.0 * 1.2, -2.0 * 0.5, -10 * 1.2, 0, 0, 100 * 0.8, 100 * 0.9, 0]
    assert losses.flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert float(statistics["policy/clipfrac_avg"]) == pytest.approx(3 / 6)
    assert float(statistics["val/ratio"]) == pytest.approx(sum(sum(row) for row in RATIOS) / 6)


def test_epsilon_high_lets_a_ratio_rise_further_than_it_may_fall():
    batch, logprobs = micro([[1.25], [0.7], [1.5]], [1.0, -1.0, 1.0], [True, True, True])
    settings = GRPOSettings(epsilon=0.2, epsilon_high=0.3)
    losses, _ = groups.grpo_losses(batch, logprobs, torch.ones(3), torch.tensor(3), settings, 0.0)
    assert losses.flatten().tolist() == pytest.approx([-1.25, 0.8, -1.3])


def test_a_sequence_has_the_geometric_mean_of_its_tokens_ratios():
    batch, logprobs = micro([[2.0, 0.5, 1.1], [0.9]], [1.0, 1.0], [True, True])
    settings = GRPOSettings(importance_sampling_level="sequence")
    losses, _ = groups.grpo_losses(batch, logprobs, torch.ones(2), torch.tensor(4), settings, 0.0)
    assert losses[0].tolist() == pytest.approx([-(1.1 ** (1 / 3))] * 3)
    assert losses[1].tolist() == pytest.approx([-0.9, 0, 0])


def test_before_the_first_step_a_sequence_teaches_what_its_tokens_do():
    """So `importance_sampling_level` is refused where a batch takes one step."""
    batch, logprobs = micro([[1.0] * 3, [1.0]], [2.0, -1.0], [True, True])
    logprobs.requires_grad_()
    gradients = []
    for level in ("token", "sequence"):
        settings = GRPOSettings(importance_sampling_level=level)
        losses, _ = groups.grpo_losses(batch, logprobs, torch.ones(2), torch.tensor(4), settings, 0.1)
        gradients += torch.autograd.grad(losses.sum(), logprobs)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


def test_the_kl_of_a_token_is_added_to_its_loss_and_to_no_padding():
    batch, logprobs = micro(RATIOS, [0.0, 0.0, 0.0], [True, True, True])
    losses, _ = groups.grpo_losses(batch, logprobs, torch.ones(3), torch.tensor(6), GRPOSettings(), 0.3)
    expected = 0.3 * estimate_kl(logprobs, batch.reference_logprobs, "k3").masked_fill(~batch.mask, 0)
    assert torch.allclose(losses, expected)
    q_over_p = math.exp(-0.5) / 1.1
    assert float(losses[0, 0]) == pytest.approx(0.3 * (q_over_p - 1 - math.log(q_over_p)), rel=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_an_answer_without_end_is_learned_from_only_where_it_is_not_masked(masked):
    batch, logprobs = micro(RATIOS, [2.0, 1.0, -1.0], [True, False, True])
    logprobs.requires_grad_()
    of_grpo = GRPOSettings(mask_truncated_completions=masked)
    of_rloo = RLOOSettings(mask_truncated_completions=masked, epsilon=0.9)
    for losses in (
        groups.grpo_losses(batch, logprobs, torch.ones(3), torch.tensor(6), of_grpo, 0.1)[0],
        groups.rloo_losses(batch, logprobs, 3, torch.tensor(6), of_rloo)[0],
    ):
        (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
        assert bool(gradient[1].any()) is not masked
        assert gradient[0].any()
        assert not gradient[~batch.mask].any()


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_statistics_hold_no_graph(algorithm):
    batch, logprobs = micro(RATIOS, [2.0, 1.0, -1.0], [True, True, True])
    logprobs.requires_grad_()
    if algorithm == "rloo":
        losses, statistics = groups.rloo_losses(batch, logprobs, 3, torch.tensor(6), RLOOSettings())
    else:
        losses, statistics = groups.grpo_losses(batch, logprobs, torch.ones(3), torch.tensor(6), GRPOSettings(), 0.1)
    assert losses.requires_grad
    assert not any(value.requires_grad for value in statistics.values())
