"""Log-probabilities taken some tokens at a time are those of all logits at once."""

import pytest
import torch

from rlrecipes.model import likelihood
from rlrecipes.model.likelihood import softmax_and_logsumexp, token_logprobs


@pytest.fixture
def case():
    torch.manual_seed(0)
    weight = torch.randn(50, 8, dtype=torch.float64)
    states = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    return states, torch.randint(50, (23,)), lambda part: 30 * torch.tanh(part @ weight.T / 30)


@pytest.mark.parametrize("at_once", [1, 50, 500, 10**6])
def test_values_and_gradients_are_those_of_a_plain_log_softmax(case, monkeypatch, at_once):
    monkeypatch.setitem(likelihood.AT_ONCE, "cpu", at_once)
    states, tokens, logits = case
    weights = torch.randn(23, dtype=torch.float64)
    plain = logits(states).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    (expected,) = torch.autograd.grad((weights * plain).sum(), states)
    found = token_logprobs(states, tokens, logits)
    (gradient,) = torch.autograd.grad((weights * found).sum(), states)
    assert torch.allclose(found, plain, rtol=1e-10, atol=1e-12)
    assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-12)


def test_no_more_logits_are_made_at_once_than_allowed(case, monkeypatch):
    monkeypatch.setitem(likelihood.AT_ONCE, "cpu", 200)
    states, tokens, logits = case
    made = []

    def watched(part):
        made.append(part.shape[0] * 50)
        return logits(part)

    token_logprobs(states, tokens, watched)
    assert sum(made) >= 23 * 50
    assert max(made) <= 200


def test_without_gradients_nothing_is_kept_for_them(case):
    states, tokens, logits = case
    with torch.no_grad():
        assert token_logprobs(states, tokens, logits).grad_fn is None


def test_no_tokens_have_no_log_probabilities(case):
    states, tokens, logits = case
    assert token_logprobs(states[:0], tokens[:0], logits).shape == (0,)


def test_a_token_that_is_next_to_impossible_has_a_finite_log_probability():
    logits = torch.tensor([[0.0, -500.0, 400.0]])
    probabilities, total = softmax_and_logsumexp(logits)
    assert probabilities[0, 1] == 0
    assert (logits - total[:, None])[0].tolist() == pytest.approx([-400, -900, 0])
