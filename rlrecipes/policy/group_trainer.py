"""RLOO and GRPO: several answers to each prompt, and advantages from how their rewards differ. There is no value function.

In RLOO the KL penalty is part of the reward; in GRPO it is part of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from rlrecipes.policy import groups
from rlrecipes.policy.group_measures import amiss, group_measures, teaching, unfilled, unspread
from rlrecipes.policy.kl import estimate_kl
from rlrecipes.policy.rollout import Advantages, Drawn, MicroBatch, Rollout, join_drawn
from rlrecipes.policy.trainer import PolicyTrainer
from rlrecipes.profile import MOST_DRAWS, GroupSettings, GRPOSettings, RLOOSettings
from rlrecipes.run.console import say
from rlrecipes.run.processes import from_first


class GroupTrainer(PolicyTrainer):
    """What RLOO and GRPO share."""

    settings: GroupSettings

    @property
    def prompts_each(self) -> int:
        """Prompts of a batch that is learned from."""
        return self.settings.batch // self.settings.num_generations

    def draw(self, batches: Iterator[dict[str, torch.Tensor]]) -> Drawn:
        """The scored answers to the next prompts; with `dynamic_sampling`, to more until a batch of them can teach."""
        parts = [super().draw(batches)]
        while self.settings.dynamic_sampling and len(parts) < MOST_DRAWS and self._teaching(parts) < self.prompts_each:
            parts.append(super().draw(batches))
        return join_drawn(parts, self.processing_class.pad_token_id)

    def _teaching(self, parts: Sequence[Drawn]) -> int:
        """Prompts that can teach, the same number in all processes."""
        return from_first(lambda: sum(int(self._can_teach(part.rollout, part.scores).sum()) for part in parts))

    def _can_teach(self, rollout: Rollout, scores: torch.Tensor) -> torch.Tensor:
        return teaching(rollout.answers, scores, self.settings.num_generations)

    def taught_by(self, rollout: Rollout, scores: torch.Tensor, of_all: Advantages) -> tuple[Rollout, Advantages]:
        """Of several draws, the first prompts that can teach; where they do not fill a batch, others fill it up."""
        if len(scores) == self.settings.batch:
            return rollout, of_all
        dull = from_first(lambda: (~self._can_teach(rollout, scores)).tolist())
        order = sorted(range(len(dull)), key=lambda prompt: dull[prompt])[: self.prompts_each]
        each = torch.arange(self.settings.num_generations)
        rows = (torch.tensor(sorted(order))[:, None] * len(each) + each).flatten().to(scores.device)
        taken = rollout.rows(rows)
        return taken, self.estimate_advantages(taken, scores[rows])

    def measures(self, drawn: Drawn) -> dict[str, float]:
        """Of all that were drawn. With `dynamic_sampling` also the draws, and the share of the batch that cannot teach."""
        found = group_measures(drawn, self.reward, self.settings.num_generations)
        if self.settings.dynamic_sampling:
            found["groups/draws"] = len(drawn.scores) / self.settings.batch
            found["groups/missing"] = max(0, self.prompts_each - self._teaching([drawn])) / self.prompts_each
        return found

    def look_out(self, update: int, measured: dict[str, float]) -> None:
        if said := amiss(self.state.log_history, measured, self.settings):
            say(f"  {said}")

    def taught_nothing(self) -> list[str]:
        return unspread(self.state.log_history, self.settings)

    def warnings(self) -> list[str]:
        return [] if self.taught_nothing() else unfilled(self.state.log_history, self.settings)

    def learned(self, rollout: Rollout) -> torch.Tensor:
        """The tokens `[B, T]` of a batch that are learned from."""
        return groups.learned_tokens(~rollout.padding, rollout.ended, self.settings)

    def logprobs(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """As `PolicyTrainer.logprobs`, from a pass that may read a prompt once for all its answers."""
        before = micro.places[:, 0]
        hidden = self.sampler.states(micro.ids, micro.places, before + 1, before + micro.states_mask.sum(1))
        return self.sampler.logprobs(hidden, micro.response, micro.mask), hidden

    def _of_answers(self, rollout: Rollout, advantages: torch.Tensor, penalty: torch.Tensor) -> Advantages:
        """Of advantages `[B]`: each token has its answer's."""
        return Advantages(advantages[:, None].expand_as(penalty).masked_fill(rollout.padding, 0), None, penalty)


class RLOOTrainer(GroupTrainer):
    """An answer's advantage is its reward less the mean of the others' to the same prompt."""

    settings: RLOOSettings

    def estimate_advantages(self, rollout: Rollout, scores: torch.Tensor) -> Advantages:
        kl = estimate_kl(rollout.logprobs, rollout.reference_logprobs, "k1").masked_fill(~self.learned(rollout), 0)
        penalty = -self.args.kl_coef * kl
        advantages = groups.left_out(scores + penalty.sum(1), self.settings.num_generations)
        if self.settings.normalize_advantages:
            advantages = groups.normalised(advantages)
        return self._of_answers(rollout, advantages, penalty)

    def learn(self, rollout: Rollout, micro: MicroBatch, mini_batch: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = self.learned(rollout)[mini_batch].sum().clamp(min=1)
        logprobs, _ = self.logprobs(micro)
        losses, statistics = groups.rloo_losses(micro, logprobs, len(mini_batch), tokens, self.settings)
        self.backward(rollout, micro, losses)
        return statistics | {"loss/policy_avg": losses.detach().sum()}


class GRPOTrainer(GroupTrainer):
    """An answer's advantage is its reward less the mean of all to the same prompt, over their standard deviation."""

    settings: GRPOSettings

    def estimate_advantages(self, rollout: Rollout, scores: torch.Tensor) -> Advantages:
        kl = estimate_kl(rollout.logprobs, rollout.reference_logprobs, "k3").masked_fill(~self.learned(rollout), 0)
        advantages = groups.within_groups(scores, self.settings.num_generations, self.settings.scale_rewards)
        return self._of_answers(rollout, advantages, -self.args.kl_coef * kl)

    def learn(self, rollout: Rollout, micro: MicroBatch, mini_batch: torch.Tensor) -> dict[str, torch.Tensor]:
        lengths = self.learned(rollout).sum(1)
        weights = torch.zeros(len(lengths), device=lengths.device)
        weights[mini_batch] = groups.token_weights(
            lengths[mini_batch],
            lengths.sum(),
            self.settings.mini_batches,
            self.args.response_length,
            self.settings.loss_type,
        )
        tokens = lengths[mini_batch].sum().clamp(min=1)
        logprobs, _ = self.logprobs(micro)
        losses, statistics = groups.grpo_losses(
            micro, logprobs, weights[micro.rows], tokens, self.settings, self.args.kl_coef
        )
        self.backward(rollout, micro, losses)
        return statistics | {"loss/policy_avg": losses.detach().sum()}
