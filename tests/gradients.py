"""Gradients that are worth comparing: of an objective that every parameter moves, and held to their own size."""

from collections.abc import Iterable, Sequence

import torch


def gradients(states: torch.Tensor, parameters: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Those of a fixed random projection of hidden states.

    A sum of squares will not do: behind a normalisation it is constant, and its gradient is rounding.
    """
    projection = torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((states * projection).sum(), parameters)


def assert_alike(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor], size: float) -> None:
    """Each gradient is at least so large somewhere, and the two differ by rounding alone."""
    for gradient, other in zip(found, expected, strict=True):
        largest = other.abs().max().item()
        assert largest > size, "of so small a gradient rounding is a part"
        assert (gradient - other).abs().max().item() < 1e-4 * largest
