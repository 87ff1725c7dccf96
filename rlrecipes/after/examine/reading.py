"""Which words of an answer raise or lower its score: integrated gradients on the embeddings (Sundararajan et al. 2017).

    [("The", 0.1), (" child", 0.4), (" the", -0.9), (" book", 0.2), (" reads", -0.3), (".", 0.1)]

The path leads from an answer of padding to the answer, behind the same prompt; Captum walks it. So the parts of an answer add
up to how much it scores above one that says nothing at its length, but for a gap, which is told and bounds what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from statistics import fmean
from typing import Any, NamedTuple

import regex
import torch
from captum.attr import IntegratedGradients

from rlrecipes.after.examine.answers import Answered, Answers
from rlrecipes.after.examine.subject import Subject
from rlrecipes.errors import first_line
from rlrecipes.metrics import mean_interval
from rlrecipes.model.forward import device
from rlrecipes.recipe import Prompt
from rlrecipes.reward.model import RewardModel, Row
from rlrecipes.run.device import is_devices
from rlrecipes.text import LETTER, is_spaced, words

STEPS = (32, 256)
"""Points of the path, by Gauss and Legendre; the second number where the first leaves too large a gap."""
TOGETHER = 512
"""Tokens of all points whose activations are held at once; one point at least."""
LARGEST_GAP = 0.1
"""The most that the pieces of an answer may miss, as a share of what they amount to, whatever their signs."""
SHOWN = 4
"""Prompts whose answers are shown in colour."""
READ = 32
"""Most prompts whose answers' words are averaged; fewer where they have more than `READ_TOKENS` together."""
READ_TOKENS = 4096
MET = 3
"""A word that fewer answers have is not ranked."""
RANKED = 12
"""Words at either end of the ranking."""


class Piece(NamedTuple):
    """A token's text, or that of several which share a character."""

    text: str
    part: float
    """Of the score, in standard deviations of the scores."""
    special: bool = False
    """Whether it is no text, as EOS."""


@dataclass(frozen=True)
class Reading:
    """An answer in pieces."""

    pieces: list[Piece]
    score: float
    """By how much it is above that of padding, in standard deviations of the scores."""
    gap: float
    """The share that the pieces miss."""

    @property
    def whole(self) -> bool:
        return self.gap <= LARGEST_GAP

    def as_json(self) -> dict[str, Any]:
        """As `examine.json` has it; the pieces of a reading that is not whole are left out."""
        pieces = [[piece.text, round(piece.part, 4)] for piece in self.pieces] if self.whole else []
        return {"pieces": pieces, "score": round(self.score, 4), "gap": round(self.gap, 6)}


def read_answers(subject: Subject, answers: Answers) -> dict[str, Any]:
    """The better and the worse answers of a few prompts in pieces, and the words that count most over more answers."""
    rows = _read_together(subject, answers)
    try:
        readings = {
            row: read(subject.model, *row, answers.deviation) for row in dict.fromkeys(chain.from_iterable(rows))
        }
    except Exception as error:  # each family fails in a way of its own
        if is_devices(error):
            raise
        return {"refused": f"this model cannot be read by gradients: {type(error).__name__}, {first_line(error)}"}
    whole = [reading for reading in readings.values() if reading.whole]
    return {
        "rows": [
            {
                "prompt": row[0][0][-1].content,
                "answers": {name: readings[a].as_json() for name, a in zip(("better", "worse"), row, strict=False)},
            }
            for row in rows[:SHOWN]
        ],
        "words": words_of(whole),
        "read": len(readings),
        "refused_gaps": len(readings) - len(whole),
        "largest_gap": max(reading.gap for reading in readings.values()),
    }


def _read_together(subject: Subject, answers: Answers) -> list[tuple[Answered, ...]]:
    """The first prompts with their better and their worse answers, up to `READ` and `READ_TOKENS`, but `SHOWN` at least."""
    rows: list[tuple[Answered, ...]] = [(row,) for row in answers.rows[:READ]]
    if answers.worse:
        rows = [*zip(answers.rows[:READ], answers.worse[:READ], strict=True)]
    tokens = accumulate(sum(len(subject.model.encode(*answered)["input_ids"]) for answered in row) for row in rows)
    return rows[: max(SHOWN, sum(total <= READ_TOKENS for total in tokens))]


def read(model: RewardModel, prompt: Prompt, answer: str, deviation: float) -> Reading:
    """An answer in pieces; behind its text comes what ends it, such as EOS."""
    row = model.cut(model.encode(prompt, answer))
    start = _answer_start(model, prompt, row)
    for steps in STEPS:
        parts, above = attributions(model, row, start, steps)
        gap = abs(sum(parts) - above) / (sum(map(abs, parts)) or 1.0)
        if gap <= LARGEST_GAP:
            break
    pieces = pieces_of(model.tokenizer, row["input_ids"][start:], [part / deviation for part in parts])
    return Reading(pieces, above / deviation, gap)


def _answer_start(model: RewardModel, prompt: Prompt, row: Row) -> int:
    """The place of an answer's first token: up to it the row is that of an empty answer."""
    empty = model.cut(model.encode(prompt, ""))["input_ids"]
    ids = row["input_ids"]
    return next((i for i, (a, b) in enumerate(zip(ids, empty, strict=False)) if a != b), min(len(ids), len(empty)))


def attributions(model: RewardModel, row: Row, start: int, steps: int) -> tuple[list[float], float]:
    """Each token's part of a row's score from place `start` on, and the score above that of padding from there on.

    Gradients go through the frozen base, 4-bit layers too, to the embeddings.
    """
    classifier, ids = model.model.eval(), torch.tensor([row["input_ids"]], device=device())
    blank = ids.clone()
    blank[:, start:] = model.tokenizer.eos_token_id if model.pad is None else model.pad
    with torch.no_grad():
        embedded, empty = (classifier.get_input_embeddings()(tokens).float() for tokens in (ids, blank))
    others = {name: torch.tensor([row[name]], device=device()) for name in row if name != "input_ids"}

    def score(embeddings: torch.Tensor) -> torch.Tensor:
        count = len(embeddings)
        inputs = {name: values.expand(count, -1) for name, values in others.items()}
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        scores: torch.Tensor = classifier(inputs_embeds=embeddings, attention_mask=mask, **inputs).logits.squeeze(-1)
        return scores.float()

    together = max(1, TOGETHER // ids.shape[1])
    parts = IntegratedGradients(score).attribute(embedded, empty, n_steps=steps, internal_batch_size=together)
    with torch.no_grad():
        above = float(score(embedded) - score(empty))
    return parts.sum(-1)[0, start:].tolist(), above


def pieces_of(tokenizer: Any, ids: Sequence[int], parts: Sequence[float]) -> list[Piece]:
    """The texts of tokens with their parts; tokens that hold a part of a character each are one piece."""
    pieces: list[Piece] = []
    before, sum_of_parts = "", 0.0
    for end, part in enumerate(parts, 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        sum_of_parts += part
        if not text.endswith("\N{REPLACEMENT CHARACTER}") or end == len(ids):
            pieces.append(Piece(text[len(before) :], sum_of_parts, ids[end - 1] in tokenizer.all_special_ids))
            before, sum_of_parts = text, 0.0
    return pieces


def words_of(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """The words with the highest and the lowest mean part, each with its interval and the answers that have it."""
    found: dict[str, list[float]] = {}
    for reading in readings:
        for word, part in _words(reading.pieces).items():
            found.setdefault(word, []).append(part)
    met = sorted(
        ((word, parts) for word, parts in found.items() if len(parts) >= MET), key=lambda entry: -fmean(entry[1])
    )
    ranked = met if len(met) <= 2 * RANKED else met[:RANKED] + met[-RANKED:]
    return [{"word": word, "part": mean_interval(parts).as_json(), "count": len(parts)} for word, parts in ranked]


_STARTS_INSIDE, _ENDS_INSIDE = regex.compile(LETTER), regex.compile(rf"{LETTER}\Z")
"""Where a piece goes on with a word, and where it leaves one unfinished: marks belong to it as letters do."""


def _words(pieces: Sequence[Piece]) -> dict[str, float]:
    """Each word of an answer with the sum of its pieces' parts, over all its places; special tokens are words."""
    spaced = is_spaced("".join(piece.text for piece in pieces if not piece.special))
    groups: list[Piece] = []
    for piece in pieces:
        if spaced and groups and _STARTS_INSIDE.match(piece.text) and _ENDS_INSIDE.search(groups[-1].text):
            groups[-1] = Piece(groups[-1].text + piece.text, groups[-1].part + piece.part)
        else:
            groups.append(piece)
    found: dict[str, float] = {}
    for piece in groups:
        word = piece.text.strip() if piece.special else " ".join(words(piece.text)) or piece.text.strip()
        if word:
            found[word] = found.get(word, 0.0) + piece.part
    return found
