"""PPO on one shared base: TRL's `PPOTrainer` with its `train()` written as four named steps.

TRL's: the configuration, the optimizer and schedule, the data loader, callbacks and logging, and the algorithm, formula for
formula (KL penalty per token, generalised advantages, clipped policy and value losses; arXiv 1707.06347, 1909.08593).

Ours, because TRL 1.12's loop ignores or breaks on them:

- reference and reward model are adapters of the policy's base, and the value head stands on the policy's trunk, so one
  forward and one backward serve both; TRL takes up to four models
- the reward is a sum of named functions and the learned score, each logged apart
- gradients are clipped (`max_grad_norm`), a batch of any number of mini- and micro-batches takes the steps it says, and the
  loss is a mean over a mini-batch's tokens, so the micro-batch size changes memory and nothing else
- KL adapts to a target or ends the run; a NaN or infinite reward or loss stops it before the weights are touched
- old log-probabilities come from the forward pass that computes the values, so the first ratio is exactly 1

Shapes: B answers of at most T tokens to prompts padded to P tokens; H is the hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from trl.experimental.ppo import PPOConfig as PPOConfig
from trl.experimental.ppo import PPOTrainer
from trl.trainer.utils import selective_log_softmax

from rlrecipes.checkpoint import (
    Checkpoint,
    Checkpoints,
    random_states,
    set_random_states,
    set_trainable,
    trainable,
)
from rlrecipes.encoding import decode, pad_left
from rlrecipes.errors import UserError
from rlrecipes.models import ScoreHead, adapter, generate, hidden_states, next_token_logits
from rlrecipes.profile import PPOSettings
from rlrecipes.recipe import Example, Reward
from rlrecipes.rewards import score_term


class ValueHead(nn.Module):
    """A linear value of the policy's hidden states; it starts at 0, so that the first advantages are the rewards."""

    base_model_prefix = "trunk"  # PPOTrainer looks here for a critic's transformer; ours is the policy itself

    def __init__(self, trunk: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.score = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)


@dataclass(frozen=True)
class Rollout:
    """A batch of answers and everything that does not change while the policy learns from it."""

    examples: list[Example]
    answers: list[str]
    ids: torch.Tensor
    """`[B, P + T]`: left-padded prompts, right-padded answers."""
    context: int
    """P"""
    logprobs: torch.Tensor
    """`[B, T]` of the sampled tokens under the policy that sampled them; 0 on padding."""
    reference_logprobs: torch.Tensor
    """`[B, T]`, likewise under the reference."""
    values: torch.Tensor
    """`[B, T]`; the state after EOS has one too, as in TRL."""
    entropy: torch.Tensor
    """`[B, T]` in nats; 0 on padding."""
    padding: torch.Tensor
    """`[B, T]`, true behind an answer's last token."""
    states_padding: torch.Tensor
    """`[B, T]`, true behind the state that follows the last token."""
    ended: torch.Tensor
    """`[B]`, true where the answer holds EOS."""
    last_states: torch.Tensor
    """`[B, H]` hidden states of the last tokens under the reward adapter; empty without a learned reward."""

    @property
    def lengths(self) -> torch.Tensor:
        """`[B]`, in tokens, EOS included."""
        return (~self.padding).sum(1)


class SharedBasePPOTrainer(PPOTrainer):
    """PPO for a policy that shares one base with its reference and its reward model.

    Args:
        model: the base with adapters `policy` (trainable), `reference` and, for a learned reward, `reward`.
        prompts: examples and their prompt ids.
        reward, head: what to climb; `head` turns the reward adapter's hidden states into scores.
        settings: the profile's `[ppo]` table; `args` holds the part of it that TRL knows.
        on_samples: called with greedy answers to `samples` as often as `num_sample_generations` says.
    """

    control: Any

    def __init__(
        self,
        args: PPOConfig,
        model: PeftModel,
        tokenizer: Any,
        prompts: Sequence[tuple[Example, list[int]]],
        reward: Reward,
        head: ScoreHead | None,
        settings: PPOSettings,
        samples: Sequence[tuple[Example, list[int]]] = (),
        on_samples: Callable[[list[dict[str, Any]], int], None] | None = None,
        callbacks: list[Any] | None = None,
    ) -> None:
        self.examples = [example for example, _ in prompts]
        self.reward, self.head, self.settings = reward, head, settings
        self.samples, self.on_samples = samples, on_samples
        self.stopped: str | None = None
        super().__init__(
            args=args,
            processing_class=tokenizer,
            model=model,
            ref_model=None,
            reward_model=nn.Identity(),  # scored by `score`, not by TRL
            value_model=ValueHead(model, model.config.get_text_config().hidden_size),
            train_dataset=Dataset.from_list([{"input_ids": ids, "index": i} for i, (_, ids) in enumerate(prompts)]),
            data_collator=self._collate,
            callbacks=callbacks,
        )

    @property
    def policy(self) -> PeftModel:
        """The wrapped base; its active adapter is `policy` outside of `adapter(…)` blocks."""
        return self.model.policy

    def train(self, checkpoints: Checkpoints | None = None) -> None:
        """Rollout, score, advantages, update: until `total_episodes` are used up or the KL leaves its bounds.

        With `checkpoints` it goes on from the newest, and saves when one is due.
        """
        batches = self._begin(checkpoints.newest() if checkpoints else None)
        for update in range(self.state.global_step + 1, self.args.num_total_batches + 1):
            rollout = self.roll_out(next(batches))
            terms, scores = self.score(rollout)
            advantages, returns, penalty = self.estimate_advantages(rollout, scores)
            losses = self.update(rollout, advantages, returns)
            kl = (rollout.logprobs - rollout.reference_logprobs).sum(1).mean().item()
            self._finish_update(update, {**self._objectives(rollout, terms, scores, penalty, kl), **losses})
            self._adapt_kl(kl)
            if self.settings.kl_stop and kl > self.settings.kl_stop:
                self.stopped = (
                    f"KL per answer was {kl:.1f} after update {update}, above ppo.kl_stop={self.settings.kl_stop}"
                )
                break
            if checkpoints and checkpoints.due():
                checkpoints.save(update, self.resume_state())
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)

    # 1. rollout

    @torch.no_grad()
    def roll_out(self, batch: dict[str, torch.Tensor]) -> Rollout:
        """Samples an answer to each prompt and takes all that the update needs from the three adapters."""
        queries = batch["input_ids"]
        pad, context = self.processing_class.pad_token_id, queries.shape[1]
        self.model.eval()
        chunk = self.args.local_rollout_forward_batch_size
        responses = [
            generate(self.policy, part, self.processing_class, self.args.response_length, self.args.temperature)
            for part in queries.split(chunk)
        ]
        longest = max(part.shape[1] for part in responses)
        response = torch.cat([nn.functional.pad(part, (0, longest - part.shape[1]), value=pad) for part in responses])
        ids = torch.cat([queries, response], 1)

        padding = response == pad
        states_padding = torch.cat([torch.zeros_like(padding[:, :1]), padding[:, :-1]], 1)
        parts = [self._evaluate_tokens(part, context) for part in ids.split(chunk)]
        logprobs, reference, values, entropy, last_states = (torch.cat(column) for column in zip(*parts, strict=True))
        examples = [self.examples[i] for i in batch["index"].tolist()]
        return Rollout(
            examples=examples,
            answers=[decode(self.processing_class, row) for row in response],
            ids=ids,
            context=context,
            logprobs=logprobs.masked_fill(padding, 0),
            reference_logprobs=reference.masked_fill(padding, 0),
            values=values.masked_fill(states_padding, 0),
            entropy=entropy.masked_fill(padding, 0),
            padding=padding,
            states_padding=states_padding,
            ended=(response == self.processing_class.eos_token_id).any(1),
            last_states=last_states,
        )

    def _evaluate_tokens(self, ids: torch.Tensor, context: int) -> tuple[torch.Tensor, ...]:
        """Log-probabilities, reference log-probabilities, values and entropies `[b, T]`, and last hidden states `[b, H]`."""
        pad, response = self.processing_class.pad_token_id, ids[:, context:]
        states = hidden_states(self.policy, ids, pad)[:, context - 1 : -1]
        logits = next_token_logits(self.policy, states) / (self.args.temperature + 1e-7)
        logprobs = selective_log_softmax(logits, response)
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        values = self._value(states)
        del logits
        with adapter(self.policy, "reference"):
            states = hidden_states(self.policy, ids, pad)[:, context - 1 : -1]
            logits = next_token_logits(self.policy, states) / (self.args.temperature + 1e-7)
            reference = selective_log_softmax(logits, response)
        del logits
        last_states = states.new_zeros(len(ids), 0)
        if self.head is not None:
            with adapter(self.policy, "reward"):
                last = context + (response != pad).sum(1) - 1
                last_states = hidden_states(self.policy, ids, pad)[torch.arange(len(ids), device=ids.device), last]
        return logprobs, reference, values, entropy, last_states

    # 2. score

    def score(self, rollout: Rollout) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Each term's unweighted values `[B]`, and the scores `[B]`: their weighted sum, clipped, less the EOS penalty.

        Raises:
            UserError: a term raises, or gives NaN or infinity; nothing has been updated by then.
        """
        terms = {
            term.name: torch.tensor(score_term(term, rollout.answers, rollout.examples), device=rollout.ids.device)
            for term in self.reward.terms
        }
        weights = {term.name: term.weight for term in self.reward.terms}
        if self.head is not None:
            terms["learned"], weights["learned"] = self.head(rollout.last_states), self.reward.learned
            if not torch.isfinite(terms["learned"]).all():
                raise UserError("the reward model gave NaN or infinity; make it again: make reward FORCE=1")
        scores = torch.stack([weights[name] * values for name, values in terms.items()]).sum(0)
        if self.settings.reward_clip:
            scores = scores.clamp(-self.settings.reward_clip, self.settings.reward_clip)
        return terms, scores - self.settings.missing_eos_penalty * (~rollout.ended)

    # 3. advantages

    def estimate_advantages(
        self, rollout: Rollout, scores: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Whitened advantages, returns and KL penalties, each `[B, T]` (GAE, arXiv 1506.02438)."""
        log_ratio = rollout.reference_logprobs - rollout.logprobs
        kl = -log_ratio if self.args.kl_estimator == "k1" else log_ratio.exp() - 1 - log_ratio
        penalty = -self.args.kl_coef * kl
        rewards = penalty.clone()
        # As in TRL, the score is paid on the state after EOS where there is one, so that EOS itself is credited by GAE.
        steps = rewards.shape[1]
        paid_at = torch.where(rollout.lengths < steps, rollout.lengths, rollout.lengths - 1)
        rewards[torch.arange(len(rewards), device=rewards.device), paid_at] += scores
        if self.args.whiten_rewards:
            rewards = _whiten(rewards, ~rollout.states_padding, keep_mean=True)
        advantages = torch.zeros_like(rewards)
        following = torch.zeros_like(scores)
        for t in reversed(range(steps)):
            next_value = rollout.values[:, t + 1] if t + 1 < steps else 0.0
            delta = rewards[:, t] + self.args.gamma * next_value - rollout.values[:, t]
            following = delta + self.args.gamma * self.args.lam * following
            advantages[:, t] = following
        return _whiten(advantages, ~rollout.padding), advantages + rollout.values, penalty

    # 4. update

    def update(self, rollout: Rollout, advantages: torch.Tensor, returns: torch.Tensor) -> dict[str, float]:
        """`num_ppo_epochs` passes over the batch, one optimizer step a mini-batch; returns the means of what it saw."""
        self.model.train()
        seen: list[dict[str, float]] = []
        for _ in range(self.args.num_ppo_epochs):
            order = torch.from_numpy(np.random.permutation(len(rollout.answers)))
            for mini_batch in order.split(self.args.local_mini_batch_size):
                tokens = (~rollout.padding[mini_batch]).sum()
                states = (~rollout.states_padding[mini_batch]).sum()
                sums: dict[str, float] = {}
                for rows in mini_batch.split(self.args.per_device_train_batch_size):
                    loss, statistics = self._loss(rollout, advantages, returns, rows, tokens, states)
                    if not torch.isfinite(loss):
                        raise UserError("the PPO loss is NaN or infinite; nothing was updated; lower ppo.learning_rate")
                    # Accelerate divides by the number of micro-batches, which the mean over the mini-batch has done.
                    self.accelerator.backward(loss * self.accelerator.gradient_accumulation_steps)
                    sums = {key: sums.get(key, 0.0) + value for key, value in statistics.items()}
                norm = self.accelerator.clip_grad_norm_(self._trainable(), self.args.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
                seen.append({**sums, "policy/grad_norm": float(norm)})
        return {key: float(np.mean([statistics[key] for statistics in seen])) for key in seen[0]}

    def _loss(
        self,
        rollout: Rollout,
        advantages: torch.Tensor,
        returns: torch.Tensor,
        rows: torch.Tensor,
        tokens: torch.Tensor,
        states_count: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """One micro-batch's share of its mini-batch's loss (`tokens` and `states_count` are the mini-batch's)."""
        args, ids = self.args, rollout.ids[rows]
        states = hidden_states(self.policy, ids, self.processing_class.pad_token_id)[:, rollout.context - 1 : -1]
        logits = next_token_logits(self.policy, states) / (args.temperature + 1e-7)
        log_ratio = selective_log_softmax(logits, ids[:, rollout.context :]) - rollout.logprobs[rows]
        mask, states_mask = ~rollout.padding[rows], ~rollout.states_padding[rows]
        log_ratio = log_ratio.masked_fill(~mask, 0)
        ratio = log_ratio.exp()
        gain = advantages[rows]
        policy_losses = torch.max(-gain * ratio, -gain * ratio.clamp(1 - args.cliprange, 1 + args.cliprange))
        policy_loss = (policy_losses * mask).sum() / tokens

        value, old = self._value(states), rollout.values[rows]
        clipped = torch.clamp(value, old - args.cliprange_value, old + args.cliprange_value)
        value_losses = torch.max((value - returns[rows]) ** 2, (clipped - returns[rows]) ** 2)
        value_loss = 0.5 * (value_losses * states_mask).sum() / states_count

        with torch.no_grad():
            clipped_share = ((ratio - 1).abs() > args.cliprange).float()
            statistics = {
                "loss/policy_avg": policy_loss.item(),
                "loss/value_avg": value_loss.item(),
                "policy/approxkl_avg": (0.5 * (log_ratio**2 * mask).sum() / tokens).item(),
                "policy/clipfrac_avg": ((clipped_share * mask).sum() / tokens).item(),
                "val/ratio": ((ratio * mask).sum() / tokens).item(),
            }
        return policy_loss + args.vf_coef * value_loss, statistics

    # around the steps

    def _value(self, states: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.model.value_model.score(states.float()).squeeze(-1)
        return values

    def _trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        prompts = pad_left([row["input_ids"] for row in rows], self.processing_class.pad_token_id)
        return {"input_ids": prompts, "index": torch.tensor([row["index"] for row in rows])}

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            self.pass_began, self.taken = random_states(), 0
            for batch in self.dataloader:
                self.taken += 1
                yield batch

    def _begin(self, saved: Checkpoint | None) -> Iterator[dict[str, torch.Tensor]]:
        """Sets the counters, from a checkpoint if there is one, and returns the batches that are still to come."""
        batches = self._batches()
        self.state.global_step = self.state.episode = 0
        if saved is not None:
            self.set_resume_state(saved.state, batches)
        self.started, self.episodes_before = time.monotonic(), self.state.episode
        self.state.max_steps = self.args.num_total_batches
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        return batches

    def resume_state(self) -> dict[str, Any]:
        """Everything between two updates that decides what follows; `set_resume_state` puts it back."""
        return {
            "weights": trainable(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "counters": {
                name: getattr(self.state, name) for name in ("global_step", "episode", "epoch", "log_history")
            },
            "kl_coef": self.args.kl_coef,
            "pass_began": self.pass_began,
            "taken": self.taken,
            "random": random_states(),
        }

    def set_resume_state(self, state: dict[str, Any], batches: Iterator[dict[str, torch.Tensor]]) -> None:
        set_trainable(self.model, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])
        for name, value in state["counters"].items():
            setattr(self.state, name, value)
        self.args.kl_coef = state["kl_coef"]
        set_random_states(state["pass_began"])  # the order of a pass over the prompts is drawn when it begins
        for _ in range(state["taken"]):
            next(batches)
        set_random_states(state["random"])

    def _objectives(
        self, rollout: Rollout, terms: dict[str, torch.Tensor], scores: torch.Tensor, penalty: torch.Tensor, kl: float
    ) -> dict[str, float]:
        paid = penalty.masked_fill(rollout.padding, 0).sum(1).mean().item()
        return {
            "objective/kl": kl,
            "objective/scores": scores.mean().item(),
            "objective/non_score_reward": paid,
            "objective/rlhf_reward": scores.mean().item() + paid,
            "policy/entropy_avg": (rollout.entropy.sum() / rollout.lengths.sum()).item(),
            "answers/length": rollout.lengths.float().mean().item(),
            "answers/ended": rollout.ended.float().mean().item(),
            "kl_coef": self.args.kl_coef,
            **{f"terms/{name}": values.float().mean().item() for name, values in terms.items()},
        }

    def _finish_update(self, update: int, metrics: dict[str, float]) -> None:
        self.state.global_step = update
        self.state.episode += self.args.batch_size
        self.state.epoch = self.state.episode / self.train_dataset_len
        speed = (self.state.episode - self.episodes_before) / (time.monotonic() - self.started)
        self.log({**metrics, "lr": self.lr_scheduler.get_last_lr()[0], "episode": self.state.episode, "eps": speed})
        self.lr_scheduler.step()
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        if self.settings.num_sample_generations and (update - 1) % self.sample_generations_freq == 0:
            self._show_samples(update)

    def _adapt_kl(self, kl: float) -> None:
        """Proportional control of the KL weight (arXiv 1909.08593, section 2.2)."""
        if self.settings.kl_target:
            error = min(max(kl / self.settings.kl_target - 1, -0.2), 0.2)
            self.args.kl_coef *= 1 + error * self.args.batch_size / self.settings.kl_horizon

    def _show_samples(self, update: int) -> None:
        """Greedy answers, which take nothing from the training's random numbers."""
        if not self.samples or self.on_samples is None:
            return
        pad = self.processing_class.pad_token_id
        queries = pad_left([ids for _, ids in self.samples], pad).to(self.accelerator.device)
        responses = generate(self.policy, queries, self.processing_class, self.args.response_length, 0.0)
        answers = [decode(self.processing_class, row) for row in responses]
        rows = [
            {"prompt": example.prompt[-1].content, "answer": answer}
            for (example, _), answer in zip(self.samples, answers, strict=True)
        ]
        self.on_samples(rows, update)


def _whiten(values: torch.Tensor, mask: torch.Tensor, keep_mean: bool = False) -> torch.Tensor:
    """Values `[B, T]` with mean 0 (unless kept) and variance 1 over `mask`, 0 elsewhere."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean) ** 2 * mask).sum() / (count - 1).clamp(min=1)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return ((whitened + mean) if keep_mean else whitened) * mask
