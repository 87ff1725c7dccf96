"""What the answers to one prompt have in common: measured of every batch, told while training, and kept in the record.

{"groups/best": 1.2, "groups/spread": 0.4, "groups/flat": 0.1, "groups/alike": 0.05, "pass/right@1": 0.3, "pass/right@4": 0.7}

It needs no model. A group is k answers to one prompt, which stand next to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from rlrecipes.policy.rollout import Drawn
from rlrecipes.policy.scores import is_binary, pass_at
from rlrecipes.profile import GroupSettings
from rlrecipes.recipe import Reward
from rlrecipes.text import Symptom, see

SAME = 1e-5
"""The largest difference of two scores, as a share of the larger or of 1, that is laid at rounding's door: the same answer is
read in batches of other shapes."""
MOSTLY = 0.8
"""The share of prompts without a difference from which on a whole training is said to have been wasted on them."""
SYMPTOM: Symptom = "The answers to a prompt do not differ"


def flat(scores: torch.Tensor, each: int) -> torch.Tensor:
    """Whether each prompt's answers, of scores `[B]`, all score the same; `[prompts]`."""
    groups = scores.view(-1, each)
    high, low = groups.max(1).values, groups.min(1).values
    return high - low <= SAME * high.abs().clamp(min=1)


def alike(answers: Sequence[str], each: int) -> torch.Tensor:
    """Whether each prompt's answers are all the same text; `[prompts]`."""
    return torch.tensor([kinds == 1 for kinds in _kinds(answers, each)])


def teaching(answers: Sequence[str], scores: torch.Tensor, each: int) -> torch.Tensor:
    """Whether each prompt's answers can teach something; `[prompts]`.

    Scores that are all the same give no advantage, but for the KL that RLOO takes from them. The advantages of one prompt's
    answers add up to 0, so answers that are all the same teach nothing either, whatever a reward with a state gives them.
    """
    return ~(flat(scores, each) | alike(answers, each).to(scores.device))


def _kinds(answers: Sequence[str], each: int) -> list[int]:
    """How many different answers each prompt has."""
    return [len({*answers[start : start + each]}) for start in range(0, len(answers), each)]


def group_measures(drawn: Drawn, reward: Reward, each: int) -> dict[str, float]:
    """Means over the prompts of a batch: the spread of the scores within one and its best score; the shares of prompts whose
    answers all score the same, all are the same text, or hold some text twice; and what passes."""
    groups, answers = drawn.scores.view(-1, each), drawn.rollout.answers
    return {
        "groups/spread": groups.std(1).mean().item(),
        "groups/best": groups.max(1).values.mean().item(),
        "groups/flat": flat(drawn.scores, each).float().mean().item(),
        "groups/alike": alike(answers, each).float().mean().item(),
        "groups/repeated": fmean(kinds < each for kinds in _kinds(answers, each)),
        **_passes(drawn.terms, reward, each),
    }


def _passes(terms: Mapping[str, torch.Tensor], reward: Reward, each: int) -> dict[str, float]:
    """pass@1 and pass@k, means over the prompts, by each of the reward's own terms that says what passing is: its weight is
    above 0, and it is 0 or 1 for every answer of the batch."""
    judging = {term.name: terms[term.name].view(-1, each).T.tolist() for term in reward.terms if term.weight > 0}
    return {
        f"pass/{name}@{k}": fmean(pass_at(k, right))
        for name, right in judging.items()
        if is_binary(right)
        for k in (1, each)
    }


# What is told.


def amiss(rows: Sequence[Mapping[str, float]], now: Mapping[str, float], settings: GroupSettings) -> str | None:
    """A sentence where no prompt of a batch can teach, or each has an answer twice, unless an earlier batch showed as much.

    `now` are the batch's measures, `rows` those of the batches before.
    """
    kind, told = _kind(now), {_kind(row) for row in rows}
    if kind is None or kind in told or (kind == "groups/repeated" and "groups/alike" in told):
        return None
    begun = f"update {len(rows) + 1}"
    said = {
        "groups/alike": f"all answers to each prompt of {begun} are the same, so they teach nothing; {_livelier(settings)}",
        "groups/flat": f"the reward gives all answers to each prompt of {begun} the same score, so they teach nothing; "
        "look at its terms, or give it finer grades",
        "groups/repeated": f"each prompt of {begun} got the same answer twice, which teaches no more than once; "
        f"{_livelier(settings)}, or lower {settings.table}.num_generations ({settings.num_generations})",
    }
    return see(SYMPTOM, said[kind])


def _kind(row: Mapping[str, float]) -> str | None:
    """What is amiss in a batch: the measure, of the gravest, that all of its prompts show."""
    return next((name for name in ("groups/alike", "groups/flat", "groups/repeated") if row.get(name) == 1), None)


def _livelier(settings: GroupSettings) -> str:
    return f"raise {settings.table}.temperature ({settings.temperature:g})"


def unspread(rows: Sequence[Mapping[str, float]], settings: GroupSettings) -> list[str]:
    """A sentence on a training most of whose prompts taught nothing, from its log's rows, and why; none where they did."""
    wasted = fmean(row["groups/flat"] for row in rows)
    if wasted < MOSTLY:
        return []
    seen = (
        f"over {len(rows)} updates {wasted:.0%} of the prompts had answers that all scored the same, and taught nothing"
    )
    if fmean(row["groups/alike"] for row in rows) >= wasted / 2:
        mend = f"most of these answers were the same: {_livelier(settings)}"
        mend += f" or {settings.table}.num_generations ({settings.num_generations})"
    else:
        mend = "the answers differed: look at the reward's terms, or give it finer grades"
    return [see(SYMPTOM, f"{seen}; {mend}")]


def unfilled(rows: Sequence[Mapping[str, float]], settings: GroupSettings) -> list[str]:
    """A sentence on batches that all draws of `dynamic_sampling` did not fill; none where all were."""
    short = [row["groups/missing"] for row in rows if row.get("groups/missing")]
    if not short:
        return []
    share = f"on average {fmean(short):.0%} of their prompts taught nothing"
    mend = f"{_livelier(settings)} or {settings.table}.num_generations ({settings.num_generations})"
    return [see(SYMPTOM, f"{len(short)} of {len(rows)} batches were not full after all draws: {share}; {mend}")]
