"""Who judges the policies' answers beside the headline and the reward, and how much that judge is worth.

{"name": "a second reward model", "accuracy": {"value": 0.81, …}, "train": 250, "held_out": 250}
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from rlrecipes.job import Job
from rlrecipes.policy.answers import Answer
from rlrecipes.policy.scores import Score
from rlrecipes.profile import ALGORITHMS
from rlrecipes.recipe import Example
from rlrecipes.reward.head import Scorer
from rlrecipes.reward.judge import judged, missing, rows
from rlrecipes.reward.model import open_learned
from rlrecipes.run.console import say
from rlrecipes.text import interval


def open_judge(
    job: Job, model: PeftModel, tokenizer: Any, examples: Sequence[Example]
) -> tuple[Score | None, dict[str, Any]]:
    """The judge, opened beside the roles on `model`, and what `done.json` holds of it; None where there is none.

    A second reward model has to be better than guessing, beyond its interval: else it would only blur what others show.

    Raises:
        UserError: the judge's files are damaged.
    """
    score, record = _open(job, model, tokenizer, examples)
    if "missing" in record and not job.profile.evaluate.judge_url:
        say(f"  no judge: {record['missing']}")
    return score, record


def _open(
    job: Job, model: PeftModel, tokenizer: Any, examples: Sequence[Example]
) -> tuple[Score | None, dict[str, Any]]:
    setting = job.profile.evaluate.judge
    if setting not in ("auto", "none"):
        file = Path(os.path.expanduser(setting.rpartition(":")[0]))
        own = {"name": setting, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        return lambda given: judged(job, [answer.text for answer in given], examples), own
    if reason := missing(job):
        return None, {"missing": reason}
    scorer, record = open_second(job, model, tokenizer, job.profile.evaluate.batch_size)
    if scorer is None:
        return None, record
    if ended := [name for name in ALGORITHMS if (job.run.done(name) or {}).get("watch", {}).get("ended_by_judge")]:
        record["ended"] = ended

    def score(given: Sequence[Answer]) -> list[float]:
        return scorer([(example.prompt, answer.text) for example, answer in zip(examples, given, strict=True)])

    return score, record


def open_second(job: Job, model: PeftModel, tokenizer: Any, batch_size: int) -> tuple[Scorer | None, dict[str, Any]]:
    """The second reward model, opened beside the roles on `model`, and its worth; None where it is not shown to have any.

    Raises:
        UserError: the judge's files are damaged.
    """
    metrics = job.run.need("judge")["metrics"]
    measure, guessing = ("accuracy", 0.5) if "accuracy" in metrics else ("spearman", 0.0)
    _, train, held_out = rows(job)
    record: dict[str, Any] = {
        "name": "a second reward model",
        measure: metrics[measure],
        "train": train,
        "held_out": held_out,
    }
    if not metrics[measure]["low"] > guessing:
        found = " ".join(interval(metrics[measure]))
        return None, record | {"missing": f"the second reward model is not shown to beat guessing: {measure} {found}"}
    settings = job.profile.model
    return open_learned(job.run.stage("judge"), model, tokenizer, settings, batch_size, "judge").score, record
