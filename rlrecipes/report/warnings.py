"""What to look at first: sentences of warning about a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from rlrecipes.report.numbers import estimate_cell
from rlrecipes.report.records import Records, column, headline_value, last_pair


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
