"""Scores of answers, and policies compared by them in pairs. It needs the answers, and no model that gave them.

compare(ppo, sft) -> {"gain": {"value": 0.31, "low": 0.28, "high": 0.34}, "win_rate": {…}, "words_gain": {…}, …}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.metrics import distinct, estimate, mean_interval
from rlrecipes.policy.answers import Answer, Answers, best_of
from rlrecipes.policy.language import language_of
from rlrecipes.policy.style import style
from rlrecipes.recipe import Example, Metric
from rlrecipes.run.stages import Policy
from rlrecipes.text import quoted

Estimate = dict[str, float]
Score = Callable[[Sequence[Answer]], Sequence[float]]
"""Scores of answers to all prompts, one a prompt."""


@dataclass(frozen=True)
class Scored:
    """A policy's answers with their scores, one a prompt each."""

    greedy: Sequence[Answer]
    """Of a policy that takes the best of n, that one."""
    sampled: Sequence[Answer]
    """Likewise."""
    headline: Sequence[float]
    headline_sampled: Sequence[float]
    reward: Sequence[float]
    """This and all below are of the greedy answers."""
    judge: Sequence[float] | None
    """None where there is no judge."""
    style: Mapping[str, Sequence[float]]
    """NaN where an answer does not show it."""
    passed: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """By k the chance that one of k answers at temperature 1 is right; empty where it is not measured."""
    disagreement: Sequence[float] | None = None
    """The standard deviation of the reward models' scores; None where there is one."""


def score_all(
    job: Job,
    policies: Mapping[str, Policy],
    answers: Answers,
    examples: Sequence[Example],
    reward: Score,
    judge: Score | None,
    disagreement: Score | None = None,
) -> dict[str, Scored]:
    """The answers of `policies` to `examples` with their scores.

    The best of n is chosen by `reward` less PPO's penalty for an answer without EOS: by what PPO climbs, and no more.
    """
    headline, penalty = job.metrics[0].score, job.profile.ppo.missing_eos_penalty
    assert headline is not None, f"{job.recipe.name}: a headline must score answers one by one"

    def climbed(given: Sequence[Answer]) -> list[float]:
        return [value - penalty * (not answer.ended) for value, answer in zip(reward(given), given, strict=True)]

    def score(given: Sequence[Answer]) -> list[float]:
        return [headline(answer.text, example) for answer, example in zip(given, examples, strict=True)]

    climbs = {
        name: {kind: climbed(drawn) for kind, drawn in given.items() if kind.isdigit()}
        for name, given in answers.items()
    }
    measured = () if not (k := job.profile.evaluate.pass_at) else tuple(dict.fromkeys((1, k)))
    scored = {}
    for name, policy in policies.items():
        right = [score(given) for kind, given in answers.get(name, {}).items() if kind.isdigit()] if measured else []
        if policy.best_of:
            kinds, over = map(str, range(1, policy.best_of + 1)), str(policy.over)
            drawn, values = zip(*((answers[over][kind], climbs[over][kind]) for kind in kinds), strict=True)
            greedy = sampled = best_of(drawn, values)
        else:
            greedy, sampled = list(answers[name]["greedy"]), list(answers[name]["sampled"])
        styles = [style(answer, example) for answer, example in zip(greedy, examples, strict=True)]
        scored[name] = Scored(
            greedy,
            sampled,
            score(greedy),
            score(sampled),
            reward(greedy),
            judge(greedy) if judge else None,
            {measure: [each[measure] for each in styles] for measure in styles[0]},
            {k: pass_at(k, right) for k in measured} if is_binary(right) else {},
            disagreement(greedy) if disagreement else None,
        )
    return with_languages(scored)


def is_binary(scores: Sequence[Sequence[float]]) -> bool:
    """Whether there are scores `[n, prompts]`, and each is 0 or 1."""
    return bool(scores) and all(value in (0, 1) for row in scores for value in row)


def pass_at(k: int, right: Sequence[Sequence[float]]) -> list[float]:
    """For each prompt the chance that one of `k` answers is right, from n answers that are right (1) or not, `[n, prompts]`.

    Without bias for k up to n: 1 less the share of choices of k answers that hold no right one (Chen et al. 2021, arXiv
    2107.03374, section 2.1).
    """
    n = len(right)
    return [1 - math.comb(n - int(sum(column)), k) / math.comb(n, k) for column in zip(*right, strict=True)]


FEWEST = 10
"""Answers below which the share of a language says little."""


def with_languages(scored: Mapping[str, Scored]) -> dict[str, Scored]:
    """With whether each answer is in each language that a tenth of some policy's answers are in."""
    spoken = {name: [language_of(answer.text) for answer in each.greedy] for name, each in scored.items()}
    usual = {
        code
        for told in spoken.values()
        for code, count in Counter(told).items()
        if code and count >= max(FEWEST, 0.1 * sum(map(bool, told)))
    }
    return {
        name: replace(each, style={**each.style, **{f"language_{c}": _shares(c, spoken[name]) for c in sorted(usual)}})
        for name, each in scored.items()
    }


def _shares(code: str, told: Sequence[str | None]) -> list[float]:
    return [math.nan if one is None else float(one == code) for one in told]


def _whole(metric: Metric, answers: Sequence[str], examples: Sequence[Example]) -> Estimate:
    """A metric of all answers.

    Raises:
        UserError: as `estimate`, or it has no finite value.
    """
    found = estimate(metric, answers, examples)
    if not math.isfinite(found.value):
        raise UserError(
            f"the metric {quoted(metric.name, 30)} is {found.value} over {len(answers)} answers, no finite number; mend its "
            "`finish`"
        )
    return found.as_json()


def metrics(job: Job, scored: Scored, examples: Sequence[Example]) -> dict[str, Estimate]:
    """A policy's metrics, its reward, what the judge says of it, and how far several reward models disagree on it."""
    greedy, sampled = ([answer.text for answer in given] for given in (scored.greedy, scored.sampled))
    headline = job.metrics[0]
    return {
        **{metric.name: _whole(metric, greedy, examples) for metric in job.metrics},
        f"{headline.name}_sampled": _whole(headline, sampled, examples),
        **{f"pass@{k}": mean_interval(chances).as_json() for k, chances in scored.passed.items()},
        "reward": mean_interval(scored.reward).as_json(),
        **({"judge": mean_interval(scored.judge).as_json()} if scored.judge is not None else {}),
        **({"disagreement": mean_interval(scored.disagreement).as_json()} if scored.disagreement is not None else {}),
    }


def styles(scored: Scored, examples: Sequence[Example]) -> dict[str, Estimate]:
    """How a policy's greedy answers look; `distinct_2` is of all of them together."""
    shown = {name: [v for v in values if not math.isnan(v)] for name, values in scored.style.items()}
    means = {name: mean_interval(values).as_json() for name, values in shown.items() if values}
    return means | {"distinct_2": estimate(distinct(2), [answer.text for answer in scored.greedy], examples).as_json()}


def compare(better: Scored, worse: Scored) -> dict[str, Estimate]:
    """Paired differences over the same prompts; a win rate counts a tie as half a win."""

    def gain(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
        return mean_interval([a - b for a, b in zip(ours, theirs, strict=True)]).as_json()

    def wins(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
        return mean_interval([(a > b) + (a == b) / 2 for a, b in zip(ours, theirs, strict=True)]).as_json()

    found = {
        "gain": gain(better.headline, worse.headline),
        "win_rate": wins(better.headline, worse.headline),
        "sampled_gain": gain(better.headline_sampled, worse.headline_sampled),
        "reward_gain": gain(better.reward, worse.reward),
        "reward_win_rate": wins(better.reward, worse.reward),
    }
    if better.judge is not None and worse.judge is not None:
        found |= {"judge_gain": gain(better.judge, worse.judge), "judge_win_rate": wins(better.judge, worse.judge)}
    if better.disagreement is not None and worse.disagreement is not None:
        found["disagreement_gain"] = gain(better.disagreement, worse.disagreement)
    for k in better.passed.keys() & worse.passed.keys():
        found[f"pass@{k}_gain"] = gain(better.passed[k], worse.passed[k])
    for name, values in better.style.items():
        shown = [(a, b) for a, b in zip(values, worse.style[name], strict=True) if not math.isnan(a + b)]
        if len(shown) == len(values) or len(shown) >= FEWEST:
            found[f"{name}_gain"] = gain(*zip(*shown, strict=True))
    return found


def pairs(scored: Mapping[str, Scored], policies: Mapping[str, Policy]) -> dict[str, dict[str, Estimate]]:
    """`compare` for each policy and the one that it is compared with, where both are there: `{"ppo_over_sft": {…}}`."""
    over = {name: str(policies[name].over) for name in scored}
    return {
        f"{name}_over_{other}": compare(scored[name], scored[other]) for name, other in over.items() if other in scored
    }


def divergence(policy: Policy, scored: Scored) -> Estimate | None:
    """The KL divergence per answer from SFT, in nats, over a policy's sampled answers; None where it was not measured."""
    values = [answer.kl for answer in scored.sampled if answer.kl is not None]
    return mean_interval(values).as_json() if values and not policy.best_of else None


def divergence_bound(policy: Policy) -> float | None:
    """The most that the best of n can diverge from what it is taken of: log n − (n − 1) / n nats.

    Stiennon et al. 2020 (arXiv 2009.01325, appendix G.3); a bound by Beirami et al. 2024 (arXiv 2401.01879).
    """
    n = policy.best_of
    return round(math.log(n) - (n - 1) / n, 6) if n else None


def samples(scored: Mapping[str, Scored], examples: Sequence[Example]) -> list[dict[str, Any]]:
    """The rows of `samples.jsonl`: each prompt with every policy's greedy answer and its scores."""
    return [
        {
            "prompt": [message._asdict() for message in example.prompt],
            "references": list(example.answers),
            "policies": {name: _sample(each, i) for name, each in scored.items()},
        }
        for i, example in enumerate(examples)
    ]


def _sample(scored: Scored, i: int) -> dict[str, Any]:
    others = {"judge": scored.judge, "disagreement": scored.disagreement}
    told = {name: values[i] for name, values in others.items() if values is not None}
    return {"answer": scored.greedy[i].text, "headline": scored.headline[i], "reward": scored.reward[i], **told}
