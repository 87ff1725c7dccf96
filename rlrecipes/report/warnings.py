"""What to look at first: sentences of warning about a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from rlrecipes.report.numbers import estimate_cell
from rlrecipes.report.records import Records, column, headline_value, last_pair
from rlrecipes.text import Symptom, see


def warnings(records: Records, updates: Sequence[Mapping[str, float]]) -> list[str]:
    """Sentences on what to look at first: what stages warned of, an early stop, the KL, answers that do not end, a weak
    reward model, results below what is cheaper.

    `updates` are the rows of PPO's log.
    """
    said = [
        f"{warning[:1].upper()}{warning[1:]}." for record in records.values() for warning in record.get("warnings", ())
    ]
    return said + [see(symptom, sentence) for symptom, sentence in (*_training(records, updates), *_results(records))]


def _training(records: Records, updates: Sequence[Mapping[str, float]]) -> Iterator[tuple[Symptom, str]]:
    """Symptoms of PPO's training and of the reward model, each with its sentence."""
    kl, ended = column(updates, "objective/kl"), column(updates, "answers/ended")
    if reason := records.get("ppo", {}).get("stopped"):
        symptom: Symptom = "The KL explodes" if "ppo.kl_stop" in reason else "The reward stays flat"
        yield symptom, f"PPO was stopped before its end: {reason}. What follows is about the policy that was kept."
    if negative := [step for step, value in kl if value < -0.1][3:]:
        count = f"The KL estimate was negative in {len(negative) + 3} updates"
        yield "The KL explodes", f"{count}: sampled and scored probabilities do not agree."
    if kl and (worst := max(kl, key=lambda point: point[1]))[1] > 30:
        far = f"The KL reached {worst[1]:.1f} nats per answer in update {worst[0]}: far from the SFT policy."
        yield "The KL explodes", far
    if ended and (share := fmean(value for _, value in ended[-max(1, len(ended) // 10) :])) < 0.8:
        cut = f"At the end of PPO only {share:.0%} of the answers ended by themselves; the rest were cut off."
        yield "The answers never end", cut
    metrics = records.get("reward", {}).get("metrics", {})
    if (accuracy := metrics.get("accuracy")) and accuracy["low"] <= 0.5:
        guessing = f"The reward model is not shown to beat guessing: held-out accuracy {_text(accuracy)}."
        yield "The reward model is at chance", guessing
    if (spearman := metrics.get("spearman")) and not spearman["low"] > 0:
        apart = f"The reward model is not shown to follow the ratings: held-out rank correlation {_text(spearman)}."
        yield "The reward model is at chance", apart


def _results(records: Records) -> Iterator[tuple[Symptom, str]]:
    """Symptoms of an evaluation, each with its sentence: the policy is below the base, or below the best of a few answers."""
    pair = last_pair(records)
    base, four, last = (headline_value(records, policy) for policy in ("base", "best4", pair.name))
    if base and last and last["value"] < base["value"]:
        below = f"For all the training, {pair.policy.title} stays below the untrained base model"
        yield "PPO stays below the base", f"{below}: {_text(last)} against {_text(base)}."
    if four and last and last["high"] < four["low"]:
        below = f"{pair.policy.title} stays below the best of 4 answers of SFT by the reward"
        yield "PPO stays below the best of 4", f"{below}: {_text(last)} against {_text(four)}."


def _text(estimate: Mapping[str, float]) -> str:
    return " ".join(estimate_cell(estimate))
