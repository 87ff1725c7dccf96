"""RLOO and GRPO: several answers to each prompt, and advantages from how their rewards differ. There is no value function.

In RLOO the KL penalty is part of the reward; in GRPO it is part of the loss.
"""

from __future__ import annotations

import torch

from rlrecipes.policy import groups
from rlrecipes.policy.kl import estimate_kl
from rlrecipes.policy.rollout import Advantages, MicroBatch, Rollout
from rlrecipes.policy.trainer import PolicyTrainer
from rlrecipes.profile import GroupSettings, GRPOSettings, RLOOSettings


class GroupTrainer(PolicyTrainer):
    """What RLOO and GRPO share."""

    settings: GroupSettings

    def measures(self, rollout: Rollout, scores: torch.Tensor) -> dict[str, float]:
        return groups.group_measures(scores, self.settings.num_generations)

    def learned(self, rollout: Rollout) -> torch.Tensor:
        """The tokens `[B, T]` of a batch that are learned from."""
        return groups.learned_tokens(~rollout.padding, rollout.ended, self.settings)

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
