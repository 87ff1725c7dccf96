"""What to look at first: sentences of warning about a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from rlrecipes.report.numbers import estimate_cell
from rlrecipes.report.records import (
    Logs,
    Records,
    begun_at,
    column,
    finished_algorithms,
    headline_value,
    named,
    trained_pairs,
)
from rlrecipes.run.stages import POLICIES
from rlrecipes.text import Symptom, see


def warnings(records: Records, logs: Logs) -> list[str]:
    """Sentences on what to look at first: what stages warned of, an early stop, the KL, answers that do not end, a weak
    reward model, results below what is cheaper.
    """
    said = [
        f"{warning[:1].upper()}{warning[1:]}." for record in records.values() for warning in record.get("warnings", ())
    ]
    trained = [each for name in finished_algorithms(records) for each in _training(records, name, logs[name])]
    return said + [see(symptom, text) for symptom, text in (*trained, *_reward(records), *_results(records))]


def _training(
    records: Records, algorithm: str, updates: Sequence[Mapping[str, float]]
) -> Iterator[tuple[Symptom, str]]:
    """Symptoms of an algorithm's training, each with its sentence; `updates` are the rows of its log."""
    title = POLICIES[algorithm].title
    kl, ended = column(updates, "objective/kl"), column(updates, "answers/ended")
    if reason := records[algorithm].get("stopped"):
        symptom: Symptom = "The KL explodes" if f"{algorithm}.kl_stop" in reason else "The reward stays flat"
        yield symptom, f"{title} was stopped before its end: {reason}. What follows is about the policy that was kept."
    if negative := [step for step, value in kl if value < -0.1][3:]:
        count = f"The KL estimate was negative in {len(negative) + 3} updates"
        apart = f"{count}: sampled and scored probabilities do not agree."
        yield "The KL explodes", named(records, algorithm, apart)
    if kl and (worst := max(kl, key=lambda point: point[1]))[1] > 30:
        far = f"The KL reached {worst[1]:.1f} nats per answer in update {worst[0]}: far from where the policy began."
        yield "The KL explodes", named(records, algorithm, far)
    if ended and (share := fmean(value for _, value in ended[-max(1, len(ended) // 10) :])) < 0.8:
        cut = f"At the end of {title} only {share:.0%} of the answers ended by themselves; the rest were cut off."
        yield "The answers never end", cut


def _reward(records: Records) -> Iterator[tuple[Symptom, str]]:
    """Symptoms of the reward model, each with its sentence."""
    metrics = records.get("reward", {}).get("metrics", {})
    if (accuracy := metrics.get("accuracy")) and accuracy["low"] <= 0.5:
        guessing = f"The reward model is not shown to beat guessing: held-out accuracy {_text(accuracy)}."
        yield "The reward model is at chance", guessing
    if (spearman := metrics.get("spearman")) and not spearman["low"] > 0:
        apart = f"The reward model is not shown to follow the ratings: held-out rank correlation {_text(spearman)}."
        yield "The reward model is at chance", apart


def _results(records: Records) -> Iterator[tuple[Symptom, str]]:
    """Symptoms of an evaluation, each with its sentence: a policy is below the base, or below the best of a few answers."""
    base, four = (headline_value(records, policy) for policy in ("base", "best4"))
    for pair in trained_pairs(records):
        title, reached = pair.policy.title, headline_value(records, pair.name)
        if base and reached and reached["value"] < base["value"]:
            below = f"For all the training, {title} stays below the untrained base model"
            yield "The policy stays below the base", f"{below}: {_text(reached)} against {_text(base)}."
        if four and reached and reached["high"] < four["low"]:
            below = f"{title} stays below the best of 4 answers of {begun_at(records)} by the reward"
            yield "The policy stays below the best of 4", f"{below}: {_text(reached)} against {_text(four)}."


def _text(estimate: Mapping[str, float]) -> str:
    return " ".join(estimate_cell(estimate))
