"""The examination of a reward model, from its `examine.json`: a part of the report, and a page of its own.

The reward model prefers the chosen answer on 0.882 [0.856, 0.910] of 500 held-out comparisons; one cheap feature alone
("lacks 'has'") reaches 0.693 [0.650, 0.731].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlrecipes.errors import UserError
from rlrecipes.report.figures import reliability, scores_of
from rlrecipes.report.verdict import Verdict
from rlrecipes.run.folder import Run, make
from rlrecipes.text import interval, number

EXAMINE, FILE = "examine", "examine.json"
NOTICED = 0.25
"""A change of a score that is worth a sentence, in standard deviations."""
CHEAP = 5
"""Cheap features that are shown."""

PARTS = ("accuracy", "correlation", "truth", "calibration", "answers", "edits", "reading")
"""What an examination may lack, by its rows and its run."""

Found = Mapping[str, Any]
"""What `examine.json` holds."""


def read_examination(run: Run, reward: Mapping[str, Any]) -> Found | None:
    """The examination of a run's reward model; None without one, or where it is of an earlier model than `reward` records.

    Raises:
        UserError: its file is damaged.
    """
    path = run.folder / EXAMINE / FILE
    if not path.exists():
        return None
    try:
        found: Found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged; delete it, or make it again with `{make(EXAMINE, run)}`") from None
    return found if found.get("made") == reward.get("finished") else None


def examination(found: Found) -> dict[str, Any]:
    """The template's values for an examination."""
    chances, kinds = found.get("calibration"), found.get("answers", {})
    return {
        **dict.fromkeys(PARTS),
        **found,
        "verdict": examination_verdict(found),
        "findings": findings(found),
        "cheap": dict([*found.get("baselines", {}).items()][:CHEAP]),
        "reliability": reliability(chances["bins"]) if chances else "",
        "drawing": scores_of({name: kind["scores"] for name, kind in kinds.items()}) if kinds else "",
        "strongest": _strongest(found.get("reading", {}).get("rows", ())),
    }


def examination_verdict(found: Found) -> Verdict:
    """How often the model is right, beside the best of the cheap features; better only where the intervals are apart."""
    if "accuracy" not in found:
        estimate = found["correlation"]["spearman"]
        count = found["correlation"]["held_out_ratings"]
        text = f"The reward model’s scores have the rank correlation {_text(estimate)} with {count} held-out ratings."
        return Verdict(text, "better" if estimate["low"] > 0 else "open")
    overall = found["accuracy"]["overall"]
    sentence = (
        f"The reward model prefers the chosen answer on {_text(overall)} of {overall['count']} held-out comparisons"
    )
    if not found["baselines"]:
        return Verdict(f"{sentence}.", "better" if overall["low"] > 0.5 else "open")
    name, cheap = next(iter(found["baselines"].items()))
    beaten = overall["low"] > cheap["high"]
    return Verdict(
        f"{sentence}; one cheap feature alone (“{name}”) reaches {_text(cheap)}.", "better" if beaten else "open"
    )


def findings(found: Found) -> list[str]:
    """What a policy could use against the model, or what the model does not see, a sentence each."""
    sentences = []
    for edit in found.get("edits", ()):
        change = edit["change"]
        size = f"{_text(change, signed=True)} standard deviations, {edit['count']} answers"
        if edit["harmful"] and change["high"] > -NOTICED:
            sentences.append(f"It hardly sees {_quoted(edit)}: {size}.")
        elif not edit["harmful"] and change["low"] > NOTICED:
            sentences.append(f"It raises the score for {_quoted(edit)}, which should not matter: {size}.")
        elif not edit["harmful"] and change["high"] < -NOTICED:
            sentences.append(f"It lowers the score for {_quoted(edit)}, which should not matter: {size}.")
    for name, kind in found.get("answers", {}).items():
        if name != "worse answers" and kind.get("wins", {}).get("high", 0) > 0.25:
            sentences.append(f"Against the prompt’s own answer, {name} wins {_text(kind['wins'])} of the time.")
    return sentences


def _quoted(edit: Mapping[str, Any]) -> str:
    return f"“{edit['edit']}”" if "“" not in edit["edit"] else edit["edit"]


def _text(estimate: Mapping[str, float], signed: bool = False) -> str:
    return " ".join(interval(estimate, signed))


def _strongest(rows: Sequence[Mapping[str, Any]]) -> float:
    """The largest part of any piece that is shown, for the scale of the colours."""
    answers = [answer for row in rows for answer in row["answers"].values()]
    return max((abs(part) for answer in answers for _, part in answer["pieces"]), default=0.0) or 1.0


def terminal_table(found: Found) -> str:
    """The most of an examination for a terminal, at most 100 columns wide."""
    rows: list[tuple[str, Mapping[str, float], int]] = []
    if accuracy := found.get("accuracy"):
        rows.append(("held-out accuracy", accuracy["overall"], accuracy["overall"]["count"]))
        for title, parts in accuracy["parts"].items():
            rows += [(f"  {title}: {name}", part, part["count"]) for name, part in parts.items()]
        count = accuracy["overall"]["count"]
        rows += [(f"  “{name}” alone", part, count) for name, part in [*found["baselines"].items()][:1]]
    if correlation := found.get("correlation"):
        rows.append(("rank correlation with ratings", correlation["spearman"], correlation["held_out_ratings"]))
    if truth := found.get("truth"):
        rows.append((f"rank correlation with {truth['headline']}", truth["all"], truth["all"]["count"]))
    lines = [f"{name:<52}  {_text(estimate):<24}  {count:>6}" for name, estimate, count in rows]
    if chances := found.get("calibration"):
        lines.append(f"calibration error {number(chances['ece'])}, Brier score {_text(chances['brier'])}")
    return "\n".join([*lines, *findings(found)])
