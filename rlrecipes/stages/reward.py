"""The reward model: an adapter and a score head, trained on comparisons or ratings, or a model that the profile names.

`pairwise` prefers the chosen answer (Bradley-Terry; `trl.RewardTrainer`), `regression` learns ratings by squared error. Both
start from the SFT adapter, which has read such answers. `reward.model` names a model to use instead.

The stage then standardises the scores (mean 0, standard deviation 1 over the demonstrations), as in arXiv 1909.08593. A
pairwise model's preferences fix no scale of its scores, but PPO adds programmatic terms and a KL penalty to them, and clips
the sum.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rlrecipes.hub.reach import ADAPTER, ADAPTER_WEIGHTS
from rlrecipes.job import Job
from rlrecipes.model.tokens import open_tokenizer
from rlrecipes.reward.agreement import measure, write_scale
from rlrecipes.reward.model import load_beside, load_sharing
from rlrecipes.reward.source import find_reward_model
from rlrecipes.reward.training import train
from rlrecipes.run.console import say
from rlrecipes.run.tracking import Tracker


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Writes the adapter with its head to `folder/adapter` and the scale beside it; measures them on held-out rows.

    Raises:
        UserError: the rows do not fit, a loss or gradient is NaN, or the model that `reward.model` names cannot be used.
    """
    if job.profile.reward.model is not None:
        return _take(job, model_name, folder)
    return train(job, model_name, folder, tracker, "reward")


def _take(job: Job, model_name: str, folder: Path) -> dict[str, Any]:
    """Copies or refers to the model that `reward.model` names, and measures and scales it like one of ours."""
    source = find_reward_model(str(job.profile.reward.model))
    if source.shares(model_name):
        tokenizer = open_tokenizer(model_name)
        model = load_sharing(source, model_name, job.profile.model, tokenizer)
        (folder / "adapter").mkdir()
        for name in (ADAPTER, ADAPTER_WEIGHTS):
            shutil.copyfile(Path(source.place) / name, folder / "adapter" / name)
        tokenizer.save_pretrained(folder / "adapter")
        beside, adapters = None, {"reward": "adapter"}
        say(f"  taken from {source.place}: one more adapter of the base")
    else:
        model = load_beside(source, job.profile.model)
        beside, adapters = source.base or source.place, {}
        say(f"  taken from {source.name}: loaded beside the base, with its own tokenizer")
    warnings = write_scale(job, folder, model)
    return {
        **measure(job, model, {}),
        "objective": None,
        "warnings": warnings,
        "adapters": adapters,
        "reward_model": {"name": source.name, "beside": beside},
    }
