"""The judge of evaluation: a second reward model, from half of the held-out preferences (`rlrecipes.reward.judge`).

It has another adapter, another head and another order of rows than the first; the settings are the reward model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlrecipes.job import Job
from rlrecipes.reward.judge import judge_job
from rlrecipes.reward.training import train
from rlrecipes.run.tracking import Tracker


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Writes the adapter with its head to `folder/adapter` and the scale beside it; measures them on the other half.

    Raises:
        UserError: the rows do not fit, or a loss or gradient is NaN.
    """
    return train(judge_job(job), model_name, folder, tracker, "judge")
