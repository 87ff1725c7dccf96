"""Plain TRL 1.12 PPO, as TRL's own example script does it (`examples/scripts/ppo/ppo.py` of huggingface/trl).

A causal policy with `peft_config`, whose bare base is the reference; a reward and a value model of their own, both from the
reward model's weights, the value model trained in full. Tuned as far as its settings go: float32, no samples, no saving, no
reporting, data of more than one batch, a pad token of its own, a stop token.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PrinterCallback
from trl.experimental.ppo import PPOTrainer

from benchmarks import models
from benchmarks.work import Work, liked, prompts


def build(work: Work, tokenizer: Any, folder: Path) -> PPOTrainer:
    """The script up to `trainer.train()`."""
    policy = models.causal(work)
    value_model = models.scorer(work, policy)
    reward_model = models.scorer(work, policy) if work.reward == "model" else ProgrammedReward(work)
    return _trainer(work, tokenizer, folder, policy, reward_model, value_model, models.lora(work))


def build_with_value(work: Work, tokenizer: Any, folder: Path, bias: bool) -> PPOTrainer:
    """The same with a value model of the make of our arm's: a head on the policy's trunk, or an adapter with a head."""
    base = models.causal(work)
    reward_model = models.scorer(work, base)
    adapted = models.adapted_scorer(work, base).get_base_model() if work.value == "adapter" else None
    policy = get_peft_model(base, models.lora(work))
    value_model = TrunkValue(models.trunk(base), work.model.hidden) if adapted is None else adapted
    value_model.score.bias = nn.Parameter(torch.zeros(1)) if bias else None
    return _trainer(work, tokenizer, folder, policy, reward_model, value_model)


def _trainer(
    work: Work,
    tokenizer: Any,
    folder: Path,
    policy: Any,
    reward_model: nn.Module,
    value_model: Any,
    peft_config: LoraConfig | None = None,
) -> PPOTrainer:
    trainer = PPOTrainer(
        args=models.arguments(work, folder),
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in prompts(work)]),
        peft_config=peft_config,
    )
    models.fill(trainer.model.policy, "default", work.seed + 3, works=False)
    trainer.remove_callback(PrinterCallback)
    return trainer


class TrunkValue(nn.Module):
    """A value model that is a head on the policy's trunk, starting at 0, in the form that TRL expects."""

    base_model_prefix = "trunk"

    def __init__(self, trunk: nn.Module, hidden: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.score = nn.Linear(hidden, 1)
        nn.init.zeros_(self.score.weight)


class ProgrammedReward(nn.Module):
    """A function of token ids in the form of a reward model: TRL calls the backbone, then `score` on its last states."""

    base_model_prefix = "backbone"

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.backbone = _Count(work)
        self.score = nn.Identity()


class _Count(nn.Module):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self.context = work.longest
        self.liked = torch.tensor([liked(token) for token in range(work.model.vocabulary)])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **rest: Any) -> SimpleNamespace:
        """At every position of `[B, P + T]` how many of the answer's tokens are liked, `[B, P + T, 1]`."""
        counted = (self.liked[input_ids] & attention_mask.bool())[:, self.context :].sum(1).float()
        return SimpleNamespace(hidden_states=[counted[:, None, None].expand(*input_ids.shape, 1)])
