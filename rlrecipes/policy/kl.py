"""The KL divergence of the policy from the reference: estimates of it, and the control of its weight."""

from __future__ import annotations

import torch

from rlrecipes.profile import PolicySettings


def estimate_kl(logprobs: torch.Tensor, reference: torch.Tensor, estimator: str) -> torch.Tensor:
    """An estimate for each sampled token, from its log-probabilities under policy and reference, in their shape.

    With p of the policy and q of the reference, `estimator` is k1, `log p/q`, or k3, `q/p - 1 + log p/q`
    (joschu.net/blog/kl-approx.html).
    """
    log_ratio = reference - logprobs
    return -log_ratio if estimator == "k1" else log_ratio.exp() - 1 - log_ratio


def adapted_kl_coef(kl_coef: float, kl: float, settings: PolicySettings, episodes: int) -> float:
    """The KL weight after a batch of `episodes` answers: proportional control where there is a `kl_target` (arXiv 1909.08593,
    section 2.2)."""
    if not settings.kl_target:
        return kl_coef
    error = min(max(kl / settings.kl_target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / settings.kl_horizon)
