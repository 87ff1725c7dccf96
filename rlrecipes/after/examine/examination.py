"""The examination of a reward model: `runs/<run>/<recipe>/examine/` with `examine.json` and a page, and a short table.

{"run": "e0", "recipe": "translation", "accuracy": {"overall": {…}, "parts": {…}}, "calibration": {…}, …}
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from rlrecipes.after.examine.accuracy import accuracy_by_parts, calibration
from rlrecipes.after.examine.answers import changes, held_out_answers, kinds_of_answers
from rlrecipes.after.examine.reading import read_answers
from rlrecipes.after.examine.request import Request
from rlrecipes.after.examine.subject import Subject, open_subject
from rlrecipes.after.examine.truth import agreement_with_headline
from rlrecipes.errors import UserError, option
from rlrecipes.report.examination import EXAMINE, FILE, terminal_table
from rlrecipes.report.page import write_examination
from rlrecipes.reward.agreement import correlations
from rlrecipes.reward.baselines import baselines
from rlrecipes.run.circumstances import git_commit, versions
from rlrecipes.run.console import say
from rlrecipes.run.device import is_out_of_memory
from rlrecipes.run.folder import write_json
from rlrecipes.run.lock import locked
from rlrecipes.run.processes import each_after_first, from_first, is_first, together


def examine(request: Request, elsewhere: Path | None = None) -> Path:
    """Examines a reward model, writes what it finds and says the most of it; returns the folder: the run's, or `elsewhere`.
    Several processes share the texts that it scores.

    Raises:
        UserError: nothing can be written there, or `elsewhere` holds something else; the model cannot be loaded, memory runs
            out, or a score is NaN or infinite.
    """
    folder = each_after_first(lambda: _place(request, elsewhere))
    if not is_first():
        with together():
            _found(open_subject(request))
        return folder
    with locked(request.run.folder):
        began = time.perf_counter()
        try:
            with together():
                found = _found(open_subject(request))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"memory ran out over {request.source.name}; free the GPU from other processes, or examine it on the CPU "
                "(CUDA_VISIBLE_DEVICES=)"
            ) from None
        found["seconds"] = round(time.perf_counter() - began, 1)
        folder.mkdir(exist_ok=True)
        write_json(folder / FILE, found)
        write_examination(found, folder)
    say(terminal_table(found))
    for note in request.notes:
        say(f"note: {note}")
    return folder


def _place(request: Request, elsewhere: Path | None) -> Path:
    """The folder that the examination goes to, before it takes its minutes.

    Raises:
        UserError: nothing can be written there, or it holds something else.
    """
    if elsewhere is None:
        run = request.run.folder
        if run.exists() and not os.access(run, os.W_OK):
            raise UserError(f"nothing can be written into {run}; name a folder ({option('to')})")
        return run / EXAMINE
    place = Path(os.path.expanduser(elsewhere))
    if place.exists() and (place.is_file() or (any(place.iterdir()) and not (place / FILE).is_file())):
        raise UserError(f"{place} holds something else than an examination; name another folder")
    place.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(place if place.exists() else place.parent, os.W_OK):
        raise UserError(f"nothing can be written into {place}; name another folder")
    return place


def _found(subject: Subject) -> dict[str, Any]:
    request, pairs = subject.request, subject.pairs
    record = request.finished.records["reward"] if request.finished else {}
    examples = [example for split in request.tasks.values() for example in split.prompts]
    found: dict[str, Any] = {
        "run": request.run.name,
        "recipe": request.run.recipe,
        "model": request.source.name,
        "made": record.get("finished"),
        "data": request.data,
        "rows": {
            "comparisons": len(pairs),
            "ratings": len(subject.ratings),
            "too_long": len(request.comparisons) + len(request.ratings) - len(pairs) - len(subject.ratings),
        },
        "notes": list(request.notes),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    if pairs:
        found["accuracy"] = accuracy_by_parts(pairs, examples)
        cheap = baselines([pair.comparison for pair in pairs])
        found["baselines"] = {name: estimate.as_json() for name, estimate in cheap.items()}
        if record.get("objective") != "regression":  # whose scores are ratings, and promise no chances
            found["calibration"] = calibration([pair.chosen - pair.rejected for pair in pairs])
    if subject.ratings:
        rated, scores = zip(*subject.ratings, strict=True)
        found["correlation"] = correlations(rated, scores)
    answers = held_out_answers(subject)
    found["answers"] = kinds_of_answers(subject, answers)
    found["edits"] = changes(subject, answers)
    found["truth"] = agreement_with_headline(subject)
    found["reading"] = from_first(lambda: read_answers(subject, answers))
    return found
