"""PPO: values of states, advantages by them (GAE), and the clipped losses of policy and value function.

The value function is a head on the policy's trunk, so that one forward and backward serve both, or an adapter of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from peft import PeftModel

from rlrecipes.model.adapters import training
from rlrecipes.model.forward import causal, states_at
from rlrecipes.policy import ppo
from rlrecipes.policy.rollout import Advantages, MicroBatch, Rollout
from rlrecipes.policy.sampler import ValueHead
from rlrecipes.policy.trainer import PolicyTrainer
from rlrecipes.profile import PPOSettings


class SharedBasePPOTrainer(PolicyTrainer):
    """PPO for a policy that shares one base with its reference and its reward model."""

    settings: PPOSettings
    begins_at_mean = True
    """Whether the value function begins at the first batch's mean reward; plain TRL's, beside which it is measured, at 0."""

    def value_function(self, model: PeftModel) -> ValueHead:
        return ValueHead(model, causal(model).get_output_embeddings().weight.shape[1])

    def read_values(self) -> dict[str, Any]:
        return {"value": self.model.value_model, "value_adapter": self.settings.value == "adapter"}

    def estimate_advantages(self, rollout: Rollout, scores: torch.Tensor) -> Advantages:
        """Advantages, whitened over the answers' tokens, returns and the KL penalty, from the scores `[B]`."""
        assert rollout.values is not None
        rewards, penalty = self._rewards(rollout, scores)
        advantages = ppo.generalised_advantages(rewards, rollout.values, self.args.gamma, self.args.lam)
        return Advantages(ppo.whiten(advantages, ~rollout.padding), advantages + rollout.values, penalty)

    def begin(self, rollout: Rollout, scores: torch.Tensor) -> Rollout:
        """Lets every state begin with the first batch's mean reward as its value, and returns the batch with these values.

        From 0, all of the mean would be an advantage, which the last tokens get and the first do not (by `lam`): PPO would
        learn to end answers early, whatever they say, before it learns anything else.
        """
        if not self.begins_at_mean:
            return rollout
        assert rollout.values is not None
        mean = self._rewards(rollout, scores)[0].sum(1).mean()
        self.model.value_model.begin(mean)
        return dataclasses.replace(rollout, values=(rollout.values + mean).masked_fill(rollout.states_padding, 0))

    def _rewards(self, rollout: Rollout, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        args = self.args
        rewards, penalty = ppo.token_rewards(rollout, scores, kl_coef=args.kl_coef, kl_estimator=args.kl_estimator)
        return ppo.whiten(rewards, ~rollout.states_padding, keep_mean=True) if args.whiten_rewards else rewards, penalty

    def learn(self, rollout: Rollout, micro: MicroBatch, mini_batch: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = (~rollout.padding[mini_batch]).sum()
        states = (~rollout.states_padding[mini_batch]).sum()
        logprobs, hidden = self.logprobs(micro)
        of_policy, statistics = ppo.policy_losses(micro, logprobs, tokens, self.args.cliprange)
        if self.settings.value == "trunk":
            of_value = self._value_losses(micro, hidden, states)
            self.backward(rollout, micro, of_policy + self.args.vf_coef * of_value)
        else:
            self.backward(rollout, micro, of_policy)
            with training(self.policy, "value", "policy"):
                hidden = states_at(self.policy, micro.ids, micro.places)
                of_value = self._value_losses(micro, hidden, states)
                self.backward(rollout, micro, self.args.vf_coef * of_value)
        return statistics | {
            "loss/policy_avg": of_policy.detach().sum(),
            "loss/value_avg": of_value.detach().sum(),
        }

    def _value_losses(self, micro: MicroBatch, hidden: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.model.value_model(hidden)
        return ppo.value_losses(micro, values, states, self.args.cliprange_value)
