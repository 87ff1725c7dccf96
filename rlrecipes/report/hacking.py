"""Signs that the policy found out how to please the reward rather than how to do the task.

"From update 12 on the answers repeat themselves: 41% of their word trigrams they have had before, 2% at first. Give …"

The thresholds are far above what healthy runs of the four recipes show, and below what rewards for length, for a word and for
repetition lead to; tests train on such rewards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rlrecipes.profile import GRPOSettings, PPOSettings, RLOOSettings
from rlrecipes.report.numbers import estimate_cell
from rlrecipes.report.records import Logs, Pair, Records, climbers, column, kept_update, named, trained_pairs
from rlrecipes.text import Symptom, number, quoted, see, words

FEWEST = 6
"""Updates below which nothing is said of a trend."""
PAID = 0.3
"""The correlation of reward and length from which on a drift of the length is laid at the reward's door."""
LONGER = 1.8
"""The ratio of lengths that is a drift. Of the built-in tasks, question answering grows the most by learning: 1.5, from half
an answer to a whole one. A reward for length came to 2.3 in 13 updates."""
MAGIC, USUAL = 0.75, 4
"""The share of answers with a magic word, at least, and how many times that of the references it is. Where kind texts are the
task, 78% say 'smiled' (2.8 times as many as the references) and 61% 'beautiful' (4.7 times); a reward for 'old' came to
100% (5.6 times)."""

DISAGREE = 1.25
"""How many times the disagreement of the reward models on SFT's answers is clearly more. Better answers are also newer ones:
translation with three members, chrF from 0.77 to 0.97, came to 1.14 times (beyond chance in pairs); the same with a learning
rate that broke the policy while the reward rose, chrF to 0.34, to 1.31 times."""

FELL = 0.25
"""A fall of the judge's score that is clearly one, in standard deviations of its scores of the demonstrations."""

APART: Symptom = "The reward goes up and the task goes down"
MEND = "Give the reward a term against it, {}, or stop earlier."
HOLDS = {
    **{kind.table: f"raise {kind.table}.{kind.kl_weight}" for kind in (PPOSettings, RLOOSettings, GRPOSettings)},
    "dpo": "raise dpo.beta",
    "distill": "lower distill.num_generations",
}
"""What holds the policy of each algorithm closer to SFT's."""


@dataclass(frozen=True)
class Drift:
    """How a column of an algorithm's log moved."""

    start: float
    """The mean of the first updates, a tenth and two at least."""
    end: float
    """Likewise of the last."""
    since: int
    """The update from which on it lay beyond half of the way."""


def hacking(records: Records, logs: Logs, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences of alarm, from the records, the logs and the evaluation's samples; none where nothing is wrong."""
    pairs = trained_pairs(records)
    return [alarm for pair in pairs for alarm in _of_policy(records, pair, logs.get(pair.name, ()), samples)]


def _of_policy(
    records: Records, pair: Pair, updates: Sequence[Mapping[str, float]], samples: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What is to be said of one policy; `updates` are the rows of its log, if an algorithm trained it."""

    def told(sentences: Iterable[tuple[Symptom, str]]) -> list[str]:
        return [see(symptom, named(records, pair.name, sentence)) for symptom, sentence in sentences]

    mend = MEND.format(_hold(pair))
    alarms = [
        *_against(records, pair),
        *_disagreement(records, pair),
        *told(_parted(records, pair)),
        *_word(samples, pair),
        *told(_length(updates, mend)),
        *told(_monotony(updates, mend)),
    ]
    kept = kept_update(records, pair.name)
    if alarms and kept is not None and updates and kept < updates[-1]["step"]:
        left = f"The policy that is left is that of update {kept}; what began later is not in it."
        alarms += told([(APART, left)])
    return alarms


def _hold(pair: Pair) -> str:
    """What holds a policy closer to SFT; of one that no algorithm trained, PPO's."""
    return HOLDS.get(pair.name, HOLDS["ppo"])


def drift(points: Sequence[tuple[int, float]]) -> Drift | None:
    """How a column moved, from its steps and values; None where there are too few."""
    if len(points) < FEWEST:
        return None
    ends = max(2, len(points) // 10)
    start, end = (fmean(value for _, value in part) for part in (points[:ends], points[-ends:]))
    half, sign = (start + end) / 2, 1 if end > start else -1
    before = [place for place, (_, value) in enumerate(points) if sign * (value - half) < 0]
    return Drift(start, end, points[min(before[-1] + 1 if before else 0, len(points) - 1)][0])


def _against(records: Records, pair: Pair) -> list[str]:
    """The reward went up on held-out prompts, and the headline or the judge did not follow."""
    measures = pair.measures
    if not measures or not measures["reward_gain"]["low"] > 0:
        return []
    title, headline = pair.policy.title, records["evaluate"]["headline"]
    reward, gain = (" ".join(estimate_cell(measures[name], signed=True)) for name in ("reward_gain", "gain"))
    sentences = []
    if measures["gain"]["high"] < 0:
        sentences.append(
            f"Reward hacking: the reward went up ({reward}) while {headline} went down ({gain}). "
            f"{title} found answers that the reward likes and that are worse."
        )
    elif measures["gain"]["low"] <= 0:
        sentences.append(
            f"The reward went up ({reward}) and {headline} did not follow ({gain}): look for reward hacking in the samples."
        )
    wins, climber = measures.get("judge_win_rate"), title if pair.name in HOLDS else climbers(records)
    if wins and wins["high"] < 0.5:
        sentences.append(
            f"The learned reward went up ({reward}), and a judge that {climber} never climbed prefers {pair.over.title}: "
            f"{title} wins with a share of {' '.join(estimate_cell(wins))}. {_hold(pair).capitalize()}, train for fewer "
            "updates, or mend the reward."
        )
    return [see(APART, sentence) for sentence in sentences]


def _disagreement(records: Records, pair: Pair) -> list[str]:
    """Several reward models disagree clearly more on the policy's held-out answers than on the other's."""
    found = records.get("evaluate", {}).get("metrics", {})
    ours, theirs = (found.get(name, {}).get("disagreement") for name in (pair.name, str(pair.policy.over)))
    more = pair.measures.get("disagreement_gain")
    if not (ours and theirs and more) or not more["low"] > 0 or ours["value"] < DISAGREE * theirs["value"]:
        return []
    a, b = (number(each["value"], 2) for each in (ours, theirs))
    sentence = (
        f"The reward models disagree more on {pair.policy.title}'s answers ({a} standard deviations of their scores) than on "
        f"{pair.over.title}'s ({b}; {' '.join(estimate_cell(more, signed=True))} in pairs), so they know less of what was "
        f"learned. {_hold(pair).capitalize()}{'' if pair.name == 'dpo' else ', or set reward.combine=lcb or min'}."
    )
    return [see(APART, sentence)]


def _parted(records: Records, pair: Pair) -> list[tuple[Symptom, str]]:
    """While a policy trained, the headline or the judge came down from its best on the slice and the reward went on up."""
    rows = records.get(pair.name, {}).get("watch", {}).get("rows", ())
    if len(rows) < 3:
        return []
    falls = {
        "headline": (0.05 * max(abs(row["slice/headline"]) for row in rows), "the headline on prompts set aside"),
        "judge": (FELL, "the judge's score of answers to prompts set aside"),
    }
    sentences: list[tuple[Symptom, str]] = []
    for name, (least, said) in falls.items():
        if any(f"slice/{name}" not in row for row in rows):
            continue
        best, last = max(rows, key=lambda row: (row[f"slice/{name}"], row["slice/reward"])), rows[-1]
        before, now = best[f"slice/{name}"], last[f"slice/{name}"]
        rise = last["slice/reward"] - best["slice/reward"]
        if before - now > least and rise > 0.1:
            sentence = (
                f"From update {best['update']:.0f} to {last['update']:.0f} the reward rose by {rise:.2f} while {said} fell "
                f"from {before:.3f} to {now:.3f}: {_hold(pair)}, or stop there "
            )
            keep, fewer = (f"({pair.name}.keep=best leaves that policy).", f"(fewer {pair.name}.total_episodes).")
            sentences.append((APART, sentence + (keep if name == "headline" else fewer)))
    return sentences


def _word(samples: Sequence[Mapping[str, Any]], pair: Pair) -> list[str]:
    """A word that stands in most of the policy's answers, and in few of the other's and of the references."""
    rows = [row for row in samples if {pair.name, str(pair.policy.over)} <= {*row["policies"]}]
    if not rows:
        return []
    ours, theirs = (
        [set(words(row["policies"][name]["answer"])) for row in rows] for name in (pair.name, pair.policy.over)
    )
    right = [set(words(row["references"][0])) for row in rows if row["references"]]

    def share(answers: Sequence[set[str]], word: str) -> float:
        return fmean(word in answer for answer in answers) if answers else 0.0

    shares = {word: share(ours, word) for word in set().union(*ours)}
    magic = {
        word: at
        for word, at in shares.items()
        if at >= MAGIC and at - share(theirs, word) >= 0.4 and at >= USUAL * share(right, word)
    }
    if not magic:
        return []
    word = max(magic, key=lambda word: (magic[word] - share(theirs, word), word))
    also = f", in {share(right, word):.0%} of the references" if right else ""
    sentence = (
        f"The word {quoted(word, 30)} stands in {magic[word]:.0%} of {pair.policy.title}'s answers, in "
        f"{share(theirs, word):.0%} of {pair.over.title}'s{also}: the reward seems to pay for it. Look at what the reward "
        "model reads, or take the term away."
    )
    return [see("One word is in every answer", sentence)]


def _length(updates: Sequence[Mapping[str, float]], mend: str) -> list[tuple[Symptom, str]]:
    """The answers' length drifts where the reward pays for it; `mend` says what to do."""
    seen = drift(column(updates, "answers/length"))
    paid = [
        value for _, value in column(updates, "answers/length_correlation") if value
    ]  # 0: of a constant, says nothing
    if seen is None or not paid or not seen.start > 0:
        return []
    ratio, price = seen.end / seen.start, fmean(paid)
    if not ((ratio >= LONGER and price >= PAID) or (ratio <= 1 / LONGER and price <= -PAID)):
        return []
    how = "longer" if ratio > 1 else "shorter"
    sentence = (
        f"From update {seen.since} on the answers are {how}: {number(seen.end, 1)} tokens, {number(seen.start, 1)} at first, "
        f"and the reward goes with the length (correlation {number(price, 2)}), so it seems to pay for it. {mend}"
    )
    return [("The length drifts", sentence)]


def _monotony(updates: Sequence[Mapping[str, float]], mend: str) -> list[tuple[Symptom, str]]:
    """Answers that repeat themselves or those to other prompts; `mend` says what to do."""
    signs: tuple[tuple[str, float, Symptom, str], ...] = (
        ("repetition", 0.08, "The answers repeat themselves", "of their word trigrams they have had before"),
        ("identical", 0.4, "Every prompt gets the same answer", "of the answers equal one to another prompt"),
    )
    said = {"repetition": "the answers repeat themselves", "identical": "different prompts get the same answers"}
    sentences: list[tuple[Symptom, str]] = []
    for name, most, symptom, unit in signs:
        seen = drift(column(updates, f"answers/{name}"))
        if seen is not None and seen.end - seen.start >= most:
            began = f"From update {seen.since} on {said[name]}"
            sentences.append((symptom, f"{began}: {seen.end:.0%} {unit}, {seen.start:.0%} at first. {mend}"))
    return sentences
