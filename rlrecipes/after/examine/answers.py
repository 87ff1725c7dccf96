"""The scores of answers of several kinds to the same held-out prompts, and what edits of an answer do to its score.

    {"silence": {"mean": {…}, "wins": {…}, "scores": [-3.1, …]}, …}     "wins" against the prompt's own answer

Built-in comparisons that are known to be swapped count the right way round here: it is the better answer that is edited.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlrecipes.after.examine.edits import EDITS, Edit, repeated, shuffled
from rlrecipes.after.examine.subject import Subject
from rlrecipes.data.split import sample_by_hash
from rlrecipes.metrics import mean_interval
from rlrecipes.recipe import Prompt
from rlrecipes.reward.agreement import scale_of
from rlrecipes.reward.baselines import win

ROWS = 200
"""Prompts whose answers are scored; the mean of 200 is known to 7 % of a deviation."""

Answered = tuple[Prompt, str]


@dataclass(frozen=True)
class Answers:
    """Up to `ROWS` held-out prompts with an answer each: the better one of a comparison, or one that was rated."""

    rows: Sequence[Answered]
    worse: Sequence[Answered]
    """The other answers of the comparisons; empty where there are ratings alone."""
    deviation: float
    """Of the model's own scores of all these answers."""


def held_out_answers(subject: Subject) -> Answers:
    """The answers that are edited and compared with others."""
    pairs = sample_by_hash(ROWS, [pair.comparison for pair in subject.pairs])
    better = [(pair.prompt, pair.rejected if pair.flipped else pair.chosen) for pair in pairs]
    worse = [(pair.prompt, pair.chosen if pair.flipped else pair.rejected) for pair in pairs]
    if not pairs:
        better = [(row.prompt, row.answer) for row in sample_by_hash(ROWS, [row for row, _ in subject.ratings])]
    return Answers(better, worse, scale_of(subject.raw([*better, *worse]))["std"])


def kinds_of_answers(subject: Subject, answers: Answers) -> dict[str, Any]:
    """The scores of answers of several kinds, in standard deviations as PPO has them; kinds without any are left out."""
    raw = subject.raw(answers.rows)
    mean, std = subject.scale or (statistics.fmean(raw), answers.deviation)
    own = [(score - mean) / std for score in raw]

    def kind(answered: Sequence[Answered], against: Sequence[float] = ()) -> dict[str, Any]:
        scores = [(score - mean) / std for score in subject.raw(answered)]
        paired = {"wins": mean_interval(list(map(win, scores, against))).as_json()} if against else {}
        found = {"mean": mean_interval(scores).as_json(), **paired, "count": len(scores)}
        return found | {"scores": [round(score, 3) for score in scores]}

    def other(texts: Sequence[str]) -> dict[str, Any]:
        return kind([(prompt, text) for (prompt, _), text in zip(answers.rows, texts, strict=True)], own)

    examples = [row for split in subject.request.tasks.values() for row in split.prompts if row.answers]
    texts = [text for _, text in answers.rows]
    kinds = {
        "better answers": kind(answers.rows),
        "worse answers": kind(answers.worse, own if answers.worse else ()),
        "references": kind([(row.prompt, row.answers[0]) for row in sample_by_hash(ROWS, examples)]),
        "another prompt’s answer": other(others(answers.rows)),
        "words shuffled": other([shuffled(text) for text in texts]),
        "repeated words": other([repeated(text) for text in texts]),
        "silence": other([""] * len(texts)),
    }
    return {name: found for name, found in kinds.items() if found["count"]}


def others(rows: Sequence[Answered]) -> list[str]:
    """For each row the next row's answer that is not its own."""
    texts = [text for _, text in rows]
    turned = [texts[place + 1 :] + texts[:place] for place in range(len(texts))]
    return [next((other for other in turn if other != own), "") for own, turn in zip(texts, turned, strict=True)]


def changes(subject: Subject, answers: Answers, edits: Sequence[Edit] = EDITS) -> list[dict[str, Any]]:
    """What each edit does to the scores of the better answers: the mean change, in standard deviations of all scores.

    `falls` is the share of answers whose score falls. An answer that an edit leaves as it is does not count.
    """
    before, neighbours = subject.raw(answers.rows), others(answers.rows)
    found = []
    for edit in edits:
        edited = [edit.change(text, other) for (_, text), other in zip(answers.rows, neighbours, strict=True)]
        places = [place for place, (_, text) in enumerate(answers.rows) if edited[place] not in ("", text)]
        if not places:
            continue
        after = subject.raw([(answers.rows[place][0], edited[place]) for place in places])
        differences = [(new - before[place]) / answers.deviation for new, place in zip(after, places, strict=True)]
        found.append(
            {
                "edit": edit.name,
                "harmful": edit.harmful,
                "example": [answers.rows[places[0]][1], edited[places[0]]],
                "change": mean_interval(differences).as_json(),
                "falls": mean_interval([float(difference < 0) for difference in differences]).as_json(),
                "count": len(places),
            }
        )
    return found
