"""PPO: trains the SFT policy on the recipe's reward under a KL penalty (`rlrecipes.policy.ppo_trainer`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlrecipes.before.dense import settled
from rlrecipes.job import Job
from rlrecipes.policy.training import train
from rlrecipes.run.tracking import Tracker


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Trains the policy into `folder/adapter` and returns the stage's record.

    Raises:
        UserError: the prompts do not fit the window or do not fill a batch.
    """
    return train(job, model_name, folder, tracker, settled(job, "ppo"))
