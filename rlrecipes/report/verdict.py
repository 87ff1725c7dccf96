"""One sentence on the result, never kinder than the interval, and warnings about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rlrecipes.report.numbers import Cell, estimate_cell
from rlrecipes.report.records import Records, column, headline_value, last_pair

FEWEST = 10
"""With fewer held-out prompts, a bootstrap interval is not reliable."""


def verdict_of(records: Records) -> tuple[str, str]:
    """One sentence, and its tone: `better`, `worse` or `open`."""
    evaluation, pair = records.get("evaluate", {}), last_pair(records)
    gain, title, other = pair.measures.get("gain"), pair.policy.title, pair.over.title
    if gain is None or not math.isfinite(gain["value"]):
        return f"{title} has not been compared with {other}.", "open"
    if evaluation["examples"] < FEWEST:
        return (
            f"{evaluation['examples']} held-out prompts are too few to compare {title} with {other}; take {FEWEST} at least.",
            "open",
        )
    size, interval = estimate_cell({key: abs(gain[key]) if key == "value" else gain[key] for key in gain})
    basis = f"{evaluation['headline']} {interval} on {evaluation['examples']} held-out prompts"
    if gain["low"] > 0:
        return f"{title} beats {other} by +{size} {basis}.", "better"
    if gain["high"] < 0:
        return f"{title} is worse than {other} by −{size} {basis}.", "worse"
    size = estimate_cell(gain, signed=True).value
    return (
        f"No difference between {title} and {other} could be shown: {size} {basis}; the interval contains 0.",
        "open",
    )


def warnings(records: Records, updates: Sequence[Mapping[str, float]]) -> list[str]:
    """Sentences on what to look at first: what stages warned of, an early stop, the KL, answers that do not end, a weak
    reward model.

    `updates` are the rows of PPO's log.
    """
    sentences = [
        f"{warning[:1].upper()}{warning[1:]}." for record in records.values() for warning in record.get("warnings", ())
    ]
    kl, ended = column(updates, "objective/kl"), column(updates, "answers/ended")
    if reason := records.get("ppo", {}).get("stopped"):
        sentences.append(f"PPO was stopped before its end: {reason}. What follows is about the policy that was kept.")
    if negative := [step for step, value in kl if value < -0.1][3:]:
        sentences.append(
            f"The KL estimate was negative in {len(negative) + 3} updates: sampled and scored probabilities do not agree."
        )
    if kl and (worst := max(kl, key=lambda point: point[1]))[1] > 30:
        sentences.append(
            f"The KL reached {worst[1]:.1f} nats per answer in update {worst[0]}: far from the SFT policy."
        )
    if ended and (share := fmean(value for _, value in ended[-max(1, len(ended) // 10) :])) < 0.8:
        sentences.append(
            f"At the end of PPO only {share:.0%} of the answers ended by themselves; the rest were cut off."
        )
    accuracy = records.get("reward", {}).get("metrics", {}).get("accuracy")
    if accuracy and accuracy["low"] <= 0.5:
        interval = " ".join(estimate_cell(accuracy))
        sentences.append(f"The reward model is not shown to beat guessing: held-out accuracy {interval}.")
    spearman = records.get("reward", {}).get("metrics", {}).get("spearman")
    if spearman and not spearman["low"] > 0:
        interval = " ".join(estimate_cell(spearman))
        sentences.append(f"The reward model is not shown to follow the ratings: held-out rank correlation {interval}.")
    pair = last_pair(records)
    base, last = (headline_value(records, policy) for policy in ("base", pair.name))
    if base and last and last["value"] < base["value"]:
        values = f"{' '.join(estimate_cell(last))} against {' '.join(estimate_cell(base))}"
        sentences.append(f"For all the training, {pair.policy.title} stays below the untrained base model: {values}.")
    return sentences


def hacking(records: Records) -> list[str]:
    """A warning where the reward went up and the headline did not: it went down, or was not shown to follow."""
    pair = last_pair(records).measures
    if not pair or not pair["reward_gain"]["low"] > 0 or not pair["gain"]["low"] <= 0:
        return []
    headline = records["evaluate"]["headline"]
    reward, gain = (" ".join(estimate_cell(pair[name], signed=True)) for name in ("reward_gain", "gain"))
    if pair["gain"]["high"] < 0:
        return [
            f"Reward hacking: the reward went up ({reward}) while {headline} went down ({gain}). "
            f"{last_pair(records).policy.title} found answers that the reward likes and that are worse."
        ]
    return [
        f"The reward went up ({reward}) and {headline} did not follow ({gain}): look for reward hacking in the samples."
    ]


def quality(reward: Mapping[str, Any]) -> Cell:
    """The reward model's held-out accuracy or, where there are only ratings, its rank correlation with them."""
    if "accuracy" not in reward and "spearman" in reward:
        return Cell(f"ρ {estimate_cell(reward['spearman']).value}")
    ceiling = f"[of {reward['ceiling']:.3f}]" if "ceiling" in reward else ""
    return Cell(estimate_cell(reward.get("accuracy")).value, ceiling)
