"""The loop of PPO, RLOO and GRPO on one shared base: TRL's `PPOTrainer` with its `train()` written as four named steps.

From TRL come the configuration, the optimizer and its schedule, the data loader, callbacks, logging and the algorithms. The
rest is ours, because TRL 1.12's loops ignore it, break on it, or take memory for it:

- reference and reward model are adapters of the policy's base, and the value function is a head on the policy's trunk (one
  forward and one backward serve both) or an adapter of its own; TRL takes up to four models
- the reward is a sum of named functions and the learned score, each logged apart, and values begin at its mean, not at 0
- gradients are clipped (`max_grad_norm`), and each mini-batch takes one step, however many micro-batches it has; the loss is
  a mean over a mini-batch's tokens, so the micro-batch size changes memory and nothing else
- KL adapts to a target, or ends the run at the last policy within a limit; a NaN or infinite reward, loss or gradient
  stops it before the weights are touched
- no `[batch, tokens, vocabulary]` tensor: log-probabilities, entropies and values of sampled tokens are taken while sampling
  (`sampling`), those of the reference and of the update some tokens at a time (`likelihood`)
- prompts of like length are answered together, a micro-batch is cut to its longest row, and the last layer's feed-forward
  network runs only on the states that are read (`forward.states_at`)

TRL's `train()` is one function of 300 lines. Overriding its parts could do half of this list, and a reader would have to know
both files at once. So this class replaces the loop and inherits the rest. What differs between the algorithms stands in
`ppo_trainer` and `group_trainer`: advantages, and what is learned from a micro-batch. `rollout` explains the shapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from trl.experimental.ppo import PPOConfig as PPOConfig
from trl.experimental.ppo import PPOTrainer

from rlrecipes.errors import UserError
from rlrecipes.model.forward import states_at
from rlrecipes.policy.kl import adapted_kl_coef
from rlrecipes.policy.measures import measures, of_all, over_steps, together, warn_of_endless
from rlrecipes.policy.rollout import Advantages, Drawn, MicroBatch, Rollout, broken_row, in_order, micro_batch
from rlrecipes.policy.sampler import NoValue, Sampler
from rlrecipes.policy.scoring import scored
from rlrecipes.policy.watch import Watch
from rlrecipes.profile import PolicySettings
from rlrecipes.recipe import Example, Reward
from rlrecipes.reward.head import Head, Scorer
from rlrecipes.reward.terms import set_term_states, term_states
from rlrecipes.run.checkpoint import Checkpoint, Checkpoints, random_states, set_random_states
from rlrecipes.run.gradients import own_parts, sum_gradients
from rlrecipes.run.out_of_memory import phase


class PolicyTrainer(PPOTrainer):
    """Trains a policy that shares one base with its reference and its reward model.

    Args:
        model: the base with adapters `policy`, `reference` and those of the `head`; PPO's also `value` where `settings.value`
            says so.
        prompts: examples and their prompt ids.
        reward, head: what to climb; `head` turns the reward adapters' hidden states into scores.
        settings: the profile's table of the algorithm; `args` holds the part of it that TRL knows.
        on_samples: called with greedy answers to `samples` as often as `num_sample_generations` says.
        scorer: the learned score of prompts with their answers, where there is no `head` to read it off hidden states.
        term_seconds: the most that one call of a reward term may take; 0: no limit.
        watch: what measures the policy every few updates, and keeps the best.
    """

    control: Any
    settings: Any

    def __init__(
        self,
        args: PPOConfig,
        model: PeftModel,
        tokenizer: Any,
        prompts: Sequence[tuple[Example, list[int]]],
        reward: Reward,
        head: Head | None,
        settings: PolicySettings,
        samples: Sequence[tuple[Example, list[int]]] = (),
        on_samples: Callable[[list[dict[str, Any]], int], None] | None = None,
        scorer: Scorer | None = None,
        callbacks: list[Any] | None = None,
        term_seconds: float = 0,
        watch: Watch | None = None,
    ) -> None:
        self.examples, self.prompts = [example for example, _ in prompts], [ids for _, ids in prompts]
        self.reward, self.head, self.settings = reward, head, settings
        self.samples, self.on_samples, self.scorer = samples, on_samples, scorer
        self.term_seconds, self.watch = term_seconds, watch
        self.stopped: str | None = None
        self.kept = 0  # the update of the policy that is left
        self.within: list[torch.Tensor] | None = None  # the weights that sampled the last batch within `kl_stop`
        for name, parameter in model.named_parameters():  # the optimizer takes what is trainable when it is made
            parameter.requires_grad = settings.learns(name)
        super().__init__(
            args=args,
            processing_class=tokenizer,
            model=model,
            ref_model=None,
            reward_model=nn.Identity(),  # scored by `score`, not by TRL
            value_model=self.value_function(model),
            train_dataset=Dataset.from_dict({"index": range(len(prompts))}),
            data_collator=lambda rows: {"index": torch.tensor([row["index"] for row in rows])},
            callbacks=callbacks,
        )
        if settings.answers_each > 1:
            self.dataloader = self.accelerator.prepare(self._loader(settings.batch // settings.answers_each))
        self.sampler = Sampler(
            model=self.policy,
            tokenizer=tokenizer,
            response_length=args.response_length,
            temperature=args.temperature,
            rollout_batch_size=min(args.local_rollout_forward_batch_size, args.local_batch_size),
            micro_batch_size=args.per_device_train_batch_size,
            scored=head.roles("reward") if head else (),
            answers_each=settings.answers_each,
            dense=settings.dense_rollout == "always",
            **self.read_values(),
        )

    def value_function(self, model: PeftModel) -> nn.Module:
        """What TRL's trainer holds as a value function; without parameters where there is none."""
        return NoValue(model)

    def read_values(self) -> dict[str, Any]:
        """How the sampler reads values of states; nothing where there is no value function."""
        return {}

    def begin(self, rollout: Rollout, scores: torch.Tensor) -> Rollout:
        """The first batch, from which something may begin."""
        return rollout

    def estimate_advantages(self, rollout: Rollout, scores: torch.Tensor) -> Advantages:
        """Advantages, the value function's targets and the KL penalty, from the scores `[B]`."""
        raise NotImplementedError

    def learn(self, rollout: Rollout, micro: MicroBatch, mini_batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds a micro-batch's gradient, and returns its share of the statistics of its mini-batch, rows `[n]`."""
        raise NotImplementedError

    def draw(self, batches: Iterator[dict[str, torch.Tensor]]) -> Drawn:
        """The scored answers to the next prompts, all those that are drawn for one update."""
        with phase(f"{self.settings.table} rollout"):
            rollout = self.roll_out(next(batches))
        return Drawn(rollout, *self.score(rollout))

    def taught_by(self, rollout: Rollout, scores: torch.Tensor, of_all: Advantages) -> tuple[Rollout, Advantages]:
        """The answers that are learned from, with their advantages; `of_all` are those of all that were drawn."""
        return rollout, of_all

    def measures(self, drawn: Drawn) -> dict[str, float]:
        """What is measured of a batch beside what all algorithms measure."""
        return {}

    def taught_nothing(self) -> list[str]:
        """A sentence where most of what was drawn could teach nothing, and why."""
        return []

    def warnings(self) -> list[str]:
        """What else the log shows to be amiss with the batches."""
        return []

    def look_out(self, update: int, measured: dict[str, float]) -> None:
        """Says what a batch's measures show to be amiss, once in a training; `state.log_history` has the batches before."""

    def _loader(self, prompts: int) -> DataLoader[Any]:
        """Batches of so many prompts; TRL's own have one for each answer."""
        return DataLoader(self.train_dataset, prompts, shuffle=True, collate_fn=self.data_collator, drop_last=True)

    @property
    def policy(self) -> PeftModel:
        """The wrapped base; its active adapter is `policy` outside of `adapter(…)` blocks."""
        return self.model.policy

    def train(self, checkpoints: Checkpoints | None = None) -> None:
        """Rollout, score, advantages, update: until `total_episodes` are used up or the KL is above `kl_stop`.

        With `checkpoints` it goes on from the newest, and saves when one is due. `stopped` then says whether and why it
        ended early. It takes no step on a batch above `kl_stop`, and goes back to the last policy whose batch was within it.
        With `watch` it also ends when nothing better comes, and keeps the best policy.
        """
        batches = self._begin(checkpoints.newest() if checkpoints else None)
        if self.state.global_step == 0:
            self._look(0)
        self.kept = self.state.global_step
        for update in range(self.state.global_step + 1, self.args.num_total_batches + 1):
            if self.watch and (why := self.watch.exhausted):
                self.stopped = why
                break
            rollout, terms, scores = drawn = self.draw(batches)
            if update == 1:
                rollout = self.begin(rollout, scores)
                warn_of_endless(rollout, self.args.response_length)
            of_all = self.estimate_advantages(rollout, scores)
            metrics = measures(
                rollout, terms, scores, of_all.penalty, self.args.kl_coef, self.head, self.settings.answers_each
            )
            metrics |= self.measures(drawn)
            self.look_out(update, metrics)
            self.state.episode += len(rollout.answers)
            kl = metrics["objective/kl"]
            if self.settings.kl_stop and kl > self.settings.kl_stop:
                self._go_back(update, kl)
                self._finish_update(update, metrics)
                self.kept = max(0, update - 2)
                break
            if self.settings.kl_stop:
                self.within = [parameter.detach().to("cpu", copy=True) for parameter in self._trainable()]
            with phase(f"{self.settings.table} update"):
                taught, (advantages, returns, _) = self.taught_by(rollout, scores, of_all)
                losses = self.update(taught, advantages, returns)
            self._finish_update(update, {**metrics, **losses, **self._look(update)})
            self.kept = update
            self.args.kl_coef = adapted_kl_coef(self.args.kl_coef, kl, self.settings, self.args.batch_size)
            if checkpoints and checkpoints.due():
                checkpoints.save(update, self.resume_state())
        if self.watch:
            self.kept = self.watch.restore(self._trainable(), self.kept)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)

    # 1. rollout

    def roll_out(self, batch: dict[str, torch.Tensor]) -> Rollout:
        """Samples answers to each prompt and takes all that the update needs from the adapters."""
        rows = [row for row in batch["index"].tolist() for _ in range(self.settings.answers_each)]
        return self.sampler.roll_out([self.examples[i] for i in rows], [self.prompts[i] for i in rows])

    # 2. score

    def score(self, rollout: Rollout) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Each term's unweighted values `[B]`, and the scores `[B]`, as `scoring.scored` makes them."""
        return scored(rollout, self.reward, self.head, self.scorer, self.settings, self.term_seconds)

    # 4. update, from the advantages that each algorithm estimates in its own way

    def update(self, rollout: Rollout, advantages: torch.Tensor, returns: torch.Tensor | None) -> dict[str, float]:
        """Passes over the batch, one optimizer step a mini-batch; returns their statistics.

        Raises:
            UserError: a loss or a gradient is NaN or infinite; that step is not taken.
        """
        self.model.train()
        steps: list[dict[str, float]] = []
        for _ in range(self.args.num_ppo_epochs):
            order = torch.from_numpy(np.random.permutation(len(rollout.answers)))
            for mini_batch in order.split(self.args.local_mini_batch_size):
                sums = self._accumulate(rollout, advantages, returns, mini_batch.to(rollout.ids.device))
                sum_gradients(self._trainable())
                norm = self.accelerator.clip_grad_norm_(self._trainable(), self.args.max_grad_norm)
                if not torch.isfinite(norm):
                    self.optimizer.zero_grad()
                    raise UserError(
                        f"a {self.settings.title} gradient is NaN or infinite; that step was not taken; "
                        f"lower {self.settings.table}.learning_rate"
                    )
                self.optimizer.step()
                self.optimizer.zero_grad()
                steps.append({**{key: float(value) for key, value in sums.items()}, "policy/grad_norm": float(norm)})
        return over_steps(steps)

    def _accumulate(
        self, rollout: Rollout, advantages: torch.Tensor, returns: torch.Tensor | None, mini_batch: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Adds up the gradients of one mini-batch's loss, a micro-batch of like rows at a time; returns its statistics."""
        alike = in_order(rollout, mini_batch, self.sampler.shares)
        sums: dict[str, torch.Tensor] = {}
        for rows in own_parts(alike, self.args.per_device_train_batch_size):
            micro = micro_batch(rollout, advantages, returns, rows)
            sums = together(sums, self.learn(rollout, micro, mini_batch))
        return of_all(sums)

    def logprobs(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities `[b, t]` of a micro-batch's tokens under the policy in training, and its states `[b, t, H]`."""
        hidden = states_at(self.policy, micro.ids, micro.places)
        return self.sampler.logprobs(hidden, micro.response, micro.mask), hidden

    def backward(self, rollout: Rollout, micro: MicroBatch, losses: torch.Tensor) -> None:
        """Adds the gradient of the sum of losses `[b, t]`, each of which is its share of the mini-batch's loss.

        Raises:
            UserError: one is NaN or infinite; the step will not be taken.
        """
        if (row := broken_row(losses)) is not None:
            self.optimizer.zero_grad()
            raise UserError(
                f"the {self.settings.title} loss is NaN or infinite {rollout.place(int(micro.rows[row]))}; that step "
                f"was not taken; lower {self.settings.table}.learning_rate"
            )
        # Accelerate divides by the number of micro-batches; the mean over the mini-batch has done that already.
        self.accelerator.backward(losses.sum() * self.accelerator.gradient_accumulation_steps)

    def _trainable(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            self.pass_start, self.pass_batches = random_states(), 0
            for batch in self.dataloader:
                self.pass_batches += 1
                yield batch

    def _begin(self, checkpoint: Checkpoint | None) -> Iterator[dict[str, torch.Tensor]]:
        """Sets the counters, from a checkpoint if there is one, and returns the batches that are still to come."""
        # All trainers of a process share this flag. A trainer that was interrupted within an accumulation leaves it false,
        # and then optimizers silently take no step.
        self.accelerator.sync_gradients = True
        batches = self._batches()
        self.state.global_step = self.state.episode = 0
        if checkpoint is not None:
            self.set_resume_state(checkpoint.state, batches)
        self.start_time, self.start_episode = time.monotonic(), self.state.episode
        self.state.max_steps = self.args.num_total_batches
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        return batches

    def resume_state(self) -> dict[str, Any]:
        """The whole state between two updates; `set_resume_state` restores it."""
        return {
            "weights": [parameter.data for parameter in self._trainable()],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "counters": {
                name: getattr(self.state, name) for name in ("global_step", "episode", "epoch", "log_history")
            },
            "kl_coef": self.args.kl_coef,
            "pass_began": self.pass_start,
            "taken": self.pass_batches,
            "within": self.within,
            "terms": term_states(self.reward),
            "watch": self.watch.state_dict() if self.watch else None,
            "random": random_states(),
        }

    def set_resume_state(self, state: dict[str, Any], batches: Iterator[dict[str, torch.Tensor]]) -> None:
        """Restores a state, and takes from `batches` those that it has used already."""
        for parameter, weights in zip(self._trainable(), state["weights"], strict=True):
            parameter.data.copy_(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["scheduler"])
        self.within = state.get("within")
        if self.watch:
            self.watch.load_state_dict(state["watch"])
        for name, value in state["counters"].items():
            setattr(self.state, name, value)
        self.args.kl_coef = state["kl_coef"]
        set_term_states(self.reward, state["terms"])
        set_random_states(state["pass_began"])  # the order of a pass over the prompts is drawn at its start
        for _ in range(state["taken"]):
            next(batches)
        set_random_states(state["random"])

    def _finish_update(self, update: int, metrics: dict[str, float]) -> None:
        self.state.global_step = update
        self.state.epoch = self.state.episode / self.settings.answers_each / self.train_dataset_len
        speed = (self.state.episode - self.start_episode) / (time.monotonic() - self.start_time)
        self.log({**metrics, "lr": self.lr_scheduler.get_last_lr()[0], "episode": self.state.episode, "eps": speed})
        self.lr_scheduler.step()
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        if self.settings.num_sample_generations and (update - 1) % self.sample_generations_freq == 0:
            self._show_samples(update)

    def _go_back(self, update: int, kl: float) -> None:
        """Puts back the weights of the last batch within `kl_stop`, if there was one, and says so in `stopped`."""
        for parameter, weights in zip(self._trainable(), self.within or [], strict=False):
            parameter.data.copy_(weights)
        kept = f"that of update {update - 1}" if self.within else "the one it began with"
        kept = "" if self.watch and self.watch.keeps else f"; the policy kept is {kept}, from before its step"
        limit = f"{self.settings.table}.kl_stop={self.settings.kl_stop:g}{kept}"
        self.stopped = f"the KL per answer was {kl:.1f} in the batch of update {update}, above {limit}"

    def _look(self, update: int) -> dict[str, float]:
        if not self.watch or not self.watch.due(update, self.args.num_total_batches):
            return {}
        with phase(f"{self.settings.table} rollout"):
            answers = [*self.sampler.greedy(self.watch.prompts), *self.sampler.at_temperature_1(self.watch.prompts)]
            return self.watch.measure(update, answers, self._trainable())

    def _show_samples(self, update: int) -> None:
        if self.samples and self.on_samples is not None:
            with phase(f"{self.settings.table} rollout"):
                answers = self.sampler.greedy([ids for _, ids in self.samples])
            pairs = zip(self.samples, answers, strict=True)
            self.on_samples([{"prompt": e.prompt[-1].content, "answer": answer} for (e, _), answer in pairs], update)
