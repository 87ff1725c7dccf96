"""A loaded reward model with the scale of its scores, and the held-out pairs that it can read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rlrecipes.after.examine.request import Request
from rlrecipes.errors import UserError
from rlrecipes.model.tokens import open_tokenizer
from rlrecipes.recipe import Comparison, Prompt, Rating
from rlrecipes.reward.head import load_scale
from rlrecipes.reward.model import RewardModel, load_beside, load_sharing
from rlrecipes.text import quoted


@dataclass(frozen=True)
class Pair:
    """A comparison with the scores of its answers."""

    recipe: str
    comparison: Comparison
    chosen: float
    rejected: float
    """The model's own scores, not standardised: their difference is the logit of a chance."""
    lengths: tuple[int, int]
    """Tokens of both, prompt included."""


@dataclass(frozen=True)
class Subject:
    """The model under examination."""

    request: Request
    model: RewardModel
    scale: tuple[float, float] | None
    """Mean and deviation of its scores over the demonstrations, as PPO has them; None for a model that no run has taken."""

    @cached_property
    def pairs(self) -> list[Pair]:
        """The comparisons that it can read whole."""
        fitting = []
        for recipe, comparison in self.request.comparisons:
            rows = [self.model.encode(comparison.prompt, text) for text in (comparison.chosen, comparison.rejected)]
            lengths = len(rows[0]["input_ids"]), len(rows[1]["input_ids"])
            if max(lengths) <= self.model.max_tokens:
                fitting.append((recipe, comparison, lengths))
        chosen, rejected = (
            self.raw([(pair.prompt, getattr(pair, side)) for _, pair, _ in fitting]) for side in ("chosen", "rejected")
        )
        return [Pair(*fitting[i][:2], chosen[i], rejected[i], fitting[i][2]) for i in range(len(fitting))]

    @cached_property
    def ratings(self) -> list[tuple[Rating, float]]:
        """The ratings that it can read whole, each with the score of its answer."""
        fits = [
            r
            for r in self.request.ratings
            if len(self.model.encode(r.prompt, r.answer)["input_ids"]) <= self.model.max_tokens
        ]
        return list(zip(fits, self.raw([(rating.prompt, rating.answer) for rating in fits]), strict=True))

    def raw(self, pairs: Sequence[tuple[Prompt, str]]) -> list[float]:
        """The model's own scores of answers to prompts; a text that is too long loses its front, as in PPO.

        Raises:
            UserError: a score is NaN or infinite.
        """
        rows = [self.model.cut(self.model.encode(prompt, answer)) for prompt, answer in pairs]
        scores = self.model.scores(rows, self.request.batch_size)
        for (prompt, answer), score in zip(pairs, scores, strict=True):
            if not math.isfinite(score):
                raise UserError(
                    f"the reward model gave {score} on the answer {quoted(answer)} to {quoted(prompt[-1].content)}; "
                    "make it again, or examine another one"
                )
        return scores


def open_subject(request: Request) -> Subject:
    """Loads the model.

    Raises:
        UserError: it or its base cannot be loaded, or does not fit.
    """
    finished = request.finished
    if finished is None:
        return Subject(request, load_beside(request.source, request.settings), None)
    scale = load_scale(finished.run.stage("reward"))
    base = finished.base_model()
    if request.source.shares(base):
        return Subject(request, load_sharing(request.source, base, request.settings, open_tokenizer(base)), scale)
    return Subject(request, load_beside(request.source, request.settings), scale)
