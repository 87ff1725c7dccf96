"""The verdict on a run, never kinder than the intervals: a sentence, what it rests on, and how the answers changed.

    PPO is better than SFT: chrf +0.310 [0.280, 0.340], at temperature 1 +0.295 [0.262, 0.327], and the judge prefers
    PPO on 0.712 [0.665, 0.758] of 300 held-out prompts. Its answers are 45 % shorter (7.4 words, not 13.5).

"Better" needs every measure to be above no difference: two temperatures and, where there is one, the judge. Who asks for
all of several needs no correction for their number (intersection-union test; Berger 1982, Technometrics 24). The changes
in the answers are found by looking at many things at once, so their intervals are widened for it (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

from rlrecipes.report.languages import languages
from rlrecipes.report.numbers import Cell, estimate_cell
from rlrecipes.report.records import Pair, Records, ended_by_judge, is_algorithm, last_pair, not_run
from rlrecipes.text import interval, number

FEWEST = 10
"""With fewer held-out prompts, a bootstrap interval is not reliable."""
POWER = 0.8
"""The chance to show a gain of the size that was measured (Cohen 1988)."""

Estimate = Mapping[str, float]
Side = Literal["above", "below", "open"]


@dataclass(frozen=True)
class Verdict:
    """What can be said of a policy against the one that it started from."""

    sentence: str
    tone: Literal["better", "worse", "open"]
    shifts: tuple[str, ...] = ()
    """How its answers differ otherwise, a sentence each."""


@dataclass(frozen=True)
class Measure:
    """One comparison of the two policies, with what it would be without a difference."""

    text: str
    """With the value and its interval."""
    estimate: Estimate
    """The difference: 0 is none."""

    @property
    def side(self) -> Side:
        return side(self.estimate)


@dataclass(frozen=True)
class Shift:
    """A property of the answers whose change is part of the verdict."""

    name: str
    """Its key in the record of evaluation."""
    least: float
    """The smallest change worth a sentence; of `words`, as a share."""
    more: str
    less: str


SHIFTS = (
    Shift("repetition", 0.02, "repeat themselves more", "repeat themselves less"),
    Shift("ended", 0.02, "end by themselves more often", "are cut off more often"),
    Shift("copied", 0.02, "copy more of the prompt", "copy less of the prompt"),
    Shift("refusals", 0.02, "refuse more often", "refuse less often"),
)
LENGTH = Shift("words", 0.1, "longer", "shorter")


def verdict_of(records: Records) -> Verdict:
    """The verdict on the last policy of a run; which algorithms were not run stands first.

    It is `open` where nothing is shown, or no algorithm was run.
    """
    verdict, why = _verdict(records), not_run(records)
    if why is None:
        return verdict
    tone = verdict.tone if is_algorithm(last_pair(records).name) else "open"
    return Verdict(f"{why}. {verdict.sentence}", tone, verdict.shifts)


def _verdict(records: Records) -> Verdict:
    pair, evaluation = last_pair(records), records.get("evaluate", {})
    gain, title, other = pair.measures.get("gain"), pair.policy.title, pair.over.title
    if gain is None or not math.isfinite(gain["value"]):
        return Verdict(f"{title} has not been compared with {other}.", "open")
    prompts = evaluation["examples"]
    if prompts < FEWEST:
        few = f"{prompts} held-out prompts are too few to compare {title} with {other}; take {FEWEST} at least."
        return Verdict(few, "open")
    measures = _measures(pair, evaluation)
    sides = {measure.side for measure in measures}
    basis = f"{_listed(measure.text for measure in measures)}, on {prompts} held-out prompts"
    shifts = tuple(_shifts(evaluation, pair))
    if sides == {"above"}:
        return Verdict(f"{title} is better than {other}: {basis}.", "better", shifts)
    if sides == {"below"} or ("above" not in sides and measures[0].side == "below"):
        return Verdict(f"{title} is worse than {other}: {basis}.", "worse", shifts)
    if {"above", "below"} <= sides:
        return Verdict(f"The measures disagree on {title} and {other}: {basis}.", "open", shifts)
    needed = _needed(measures, prompts)
    return Verdict(f"{title} is not shown to be better than {other}: {basis}.{needed}", "open", shifts)


def side(estimate: Estimate) -> Side:
    """Where an interval lies, at the precision at which it is printed: a bound of 0.00003 is 0.000."""
    places = 3 if max(abs(estimate["low"]), abs(estimate["high"])) < 10 else 1
    if round(estimate["low"], places) > 0:
        return "above"
    return "below" if round(estimate["high"], places) < 0 else "open"


def prompts_needed(estimate: Estimate, prompts: int) -> int | None:
    """About how many prompts would show a difference of this size, with a chance of `POWER`; None for no gain.

    Two-sided at 5 %, by the normal approximation: (z₀.₉₇₅ + z₀.₈)² · variance / difference².
    """
    error = (estimate["high"] - estimate["low"]) / 2 / _z(1)
    if not estimate["value"] > 0 or not error > 0:
        return None
    return math.ceil(prompts * ((_z(1) + NormalDist().inv_cdf(POWER)) * error / estimate["value"]) ** 2)


def _measures(pair: Pair, evaluation: Mapping[str, Any]) -> list[Measure]:
    """What the verdict rests on, the headline first."""
    found = [
        Measure(f"{evaluation['headline']} {_text(pair.measures['gain'], signed=True)}", pair.measures["gain"]),
    ]
    if sampled := pair.measures.get("sampled_gain"):
        found.append(Measure(f"at temperature 1 {_text(sampled, signed=True)}", sampled))
    if wins := pair.measures.get("judge_win_rate"):
        ended = pair.name in ended_by_judge(evaluation.get("judge", {}))
        judge = f"the judge, which also ended {pair.policy.title}," if ended else "the judge"
        text = f"{judge} prefers {pair.policy.title} with a share of {_text(wins)}"
        found.append(Measure(text, {key: value - 0.5 for key, value in wins.items()}))
    return found


def _needed(measures: list[Measure], prompts: int) -> str:
    """How many prompts would show what is not shown yet; empty where a measure sees no gain at all."""
    needed = [prompts_needed(measure.estimate, prompts) for measure in measures if measure.side == "open"]
    if not needed or None in needed:
        return ""
    most = max(count for count in needed if count is not None)
    step = 10 ** max(0, len(str(most)) - 2)
    return f" Gains of this size need about {math.ceil(most / step) * step:,} prompts to be shown."


def _shifts(evaluation: Mapping[str, Any], pair: Pair) -> list[str]:
    """Sentences on how the answers differ, where the interval, widened for the number of things looked at, shows it."""
    style = evaluation.get("style", {})
    ours, theirs = style.get(pair.name, {}), style.get(str(pair.policy.over), {})
    spoken = [
        Shift(name, 0.05, f"are in {title} more often", f"are in {title} less often")
        for name, title in languages(ours).items()
    ]
    measured = pair.measures.keys() & {f"{name}_gain" for name in ours.keys() & theirs.keys()}
    looked_at = [shift for shift in (LENGTH, *SHIFTS, *spoken) if f"{shift.name}_gain" in measured]
    sentences = []
    for shift in looked_at:
        now, before = ours[shift.name]["value"], theirs[shift.name]["value"]
        change = (now / before - 1 if before else math.inf) if shift is LENGTH else now - before
        direction = side(widened(pair.measures[f"{shift.name}_gain"], len(looked_at)))
        if direction == "open" or abs(change) < shift.least:
            continue
        how = shift.more if direction == "above" else shift.less
        if shift is LENGTH:
            size = f"{abs(change):.0%} ".replace("%", " %") if math.isfinite(change) else ""
            sentences.append(f"Its answers are {size}{how} ({number(now, 1)} words, not {number(before, 1)}).")
        else:
            sentences.append(f"Its answers {how} ({number(now)}, not {number(before)}).")
    return sentences


def widened(estimate: Estimate, looked_at: int) -> Estimate:
    """A 95 % interval as wide as it must be where `looked_at` things are looked at (Bonferroni, normal approximation)."""
    factor = _z(looked_at) / _z(1)
    value = estimate["value"]
    return {
        "value": value,
        "low": value - (value - estimate["low"]) * factor,
        "high": value + (estimate["high"] - value) * factor,
    }


def _z(looked_at: int) -> float:
    """The normal quantile of a two-sided 95 % interval for `looked_at` things at once."""
    return NormalDist().inv_cdf(1 - 0.025 / looked_at)


def _text(estimate: Estimate, signed: bool = False) -> str:
    return " ".join(interval(estimate, signed))


def _listed(texts: Any) -> str:
    *first, last = texts
    return f"{', '.join(first)}, and {last}" if first else last


def quality(reward: Mapping[str, Any]) -> Cell:
    """The reward model's held-out accuracy or, where there are only ratings, its rank correlation with them."""
    if "accuracy" not in reward and "spearman" in reward:
        return Cell(f"ρ {estimate_cell(reward['spearman']).value}")
    ceiling = f"[of {reward['ceiling']:.3f}]" if "ceiling" in reward else ""
    return Cell(estimate_cell(reward.get("accuracy")).value, ceiling)
