"""The report: one page on the results of the stages before it (`rlrecipes.report`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlrecipes.job import Job
from rlrecipes.report.page import write_report
from rlrecipes.run.tracking import Tracker


def run(job: Job, model_name: str, folder: Path, tracker: Tracker) -> dict[str, Any]:
    """Writes `folder/index.html`; returns what `done.json` records beside the common part."""
    write_report(job.run, job.data.notes, folder)
    return {"metrics": {}, "page": "index.html", "notes": list(job.data.notes)}
