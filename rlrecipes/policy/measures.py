"""What is measured of each update, and what the measures say of a whole training. It needs no model.

{"objective/kl": 1.9, "objective/scores": 0.4, "answers/ended": 0.98, "policy/clipfrac_avg": 0.03, …}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from statistics import fmean

import torch

from rlrecipes.policy.rollout import Rollout
from rlrecipes.profile import PolicySettings
from rlrecipes.reward.head import Ensemble, Head
from rlrecipes.run.console import say
from rlrecipes.run.processes import gather, world
from rlrecipes.text import ngrams, repeated, see, words


def measures(
    rollout: Rollout,
    terms: Mapping[str, torch.Tensor],
    scores: torch.Tensor,
    penalty: torch.Tensor,
    kl_coef: float,
    head: Head | None = None,
    each: int = 1,
) -> dict[str, float]:
    """Means over a batch of answers, from each term's values `[B]`, the scores `[B]` and the KL penalty `[B, T]`.

    A `head` of several reward models adds how far they disagree. Each prompt has so many answers, next to each other.
    """
    non_score = penalty.masked_fill(rollout.padding, 0).sum(1).mean().item()
    return {
        "objective/kl": (rollout.logprobs - rollout.reference_logprobs).sum(1).mean().item(),
        "objective/scores": scores.mean().item(),
        "objective/scores_std": scores.std(correction=0).item(),
        "objective/terms_std": max((values.float().std(correction=0).item() for values in terms.values()), default=0.0),
        "objective/non_score_reward": non_score,
        "objective/rlhf_reward": scores.mean().item() + non_score,
        "policy/entropy_avg": (rollout.entropy.sum() / rollout.lengths.sum()).item(),
        **_rounding(rollout),
        "answers/length": rollout.lengths.float().mean().item(),
        "answers/ended": rollout.ended.float().mean().item(),
        "kl_coef": kl_coef,
        **diversity(rollout.answers, each),
        "answers/length_correlation": _correlation(scores, rollout.lengths.float()),
        **{f"terms/{name}": values.float().mean().item() for name, values in terms.items()},
        **(
            {"objective/disagreement": head.disagreement(rollout.last_states).mean().item()}
            if isinstance(head, Ensemble)
            else {}
        ),
    }


def _rounding(rollout: Rollout) -> dict[str, float]:
    """How far sampling's log-probabilities are from the update's own, in nats a token; nothing in float32."""
    if rollout.rounding is None:
        return {}
    return {
        "sampling/rounding_avg": (rollout.rounding.sum() / rollout.lengths.sum()).item(),
        "sampling/rounding_max": rollout.rounding.max().item(),
    }


@torch.no_grad()
def ratio_statistics(
    log_ratio: torch.Tensor, clipped: torch.Tensor, mask: torch.Tensor, tokens: torch.Tensor
) -> dict[str, torch.Tensor]:
    """A micro-batch's share of the statistics of a mini-batch with so many `tokens`, from the logarithms of each token's
    ratio, 0 outside `mask`, and whether it was clipped; `[b, t]` each."""
    return {
        "policy/approxkl_avg": 0.5 * (log_ratio**2).sum() / tokens,
        "policy/clipfrac_avg": clipped.sum() / tokens,
        "val/ratio": (log_ratio.exp() * mask).sum() / tokens,
        "policy/log_ratio_max": log_ratio.abs().max(),
    }


def together(sums: Mapping[str, torch.Tensor], more: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The statistics of some micro-batches with those of one more: their sum, or the larger of what ends in `_max`."""
    joined = {**more}
    for key, value in sums.items():
        joined[key] = torch.maximum(value, more[key]) if key.endswith("_max") else value + more[key]
    return joined


def of_all(sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The statistics of all processes' micro-batches, from those of this one's; a process without any has none."""
    if world() == 1:
        return sums
    parts = [part for part in gather({key: value.cpu() for key, value in sums.items()}) if part]
    found: dict[str, torch.Tensor] = reduce(together, parts)
    return found


FIRST = ("policy/clipfrac_avg", "policy/log_ratio_max", "val/ratio")


def over_steps(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means of the optimizer steps' statistics, the largest of what ends in `_max`, and those of `FIRST` before any step.

    Before the first step the policy is still the one that sampled: a ratio other than 1 there is rounding.
    """
    found = {
        key: max(row[key] for row in steps) if key.endswith("_max") else fmean(row[key] for row in steps)
        for key in steps[0]
    }
    return found | {f"first/{key.partition('/')[2]}": steps[0][key] for key in FIRST}


def diversity(answers: Sequence[str], each: int = 1) -> dict[str, float]:
    """How answers repeat themselves and one another, each from 0 to 1; a prompt has `each` of them, next to each other.

    `repetition` is the mean share of an answer's word trigrams that it has had before, `identical` the share of answers that
    one to another prompt equals, `distinct_2` that of different word pairs among all (Li et al. 2016), of one answer to each
    prompt, and the mean over such batches.
    """
    said = [words(answer) for answer in answers]
    prompts = Counter(answer for start in range(0, len(answers), each) for answer in {*answers[start : start + each]})
    return {
        "answers/repetition": fmean(repeated(given) for given in said),
        "answers/identical": sum(prompts[answer] > 1 for answer in answers) / len(answers),
        "answers/distinct_2": fmean(_distinct_pairs(said[draw::each]) for draw in range(each)),
    }


def _distinct_pairs(said: Sequence[Sequence[str]]) -> float:
    pairs = [pair for given in said for pair in ngrams(given, 2)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def _correlation(values: torch.Tensor, others: torch.Tensor) -> float:
    """Pearson's correlation of two `[B]`; 0 where one is constant, which says as little."""
    if len(values) < 2 or min(values.std().item(), others.std().item()) == 0:
        return 0.0
    return torch.corrcoef(torch.stack([values.float(), others]))[0, 1].item()


def warn_of_endless(rollout: Rollout, response_length: int) -> None:
    """Warns of answers that do not end: no algorithm learns an ending that it never samples."""
    ended = rollout.ended.float().mean().item()
    if ended < 0.5:
        cut = f"  only {ended:.0%} of the first answers end within {response_length} tokens"
        say(
            see(
                "The answers never end",
                f"{cut}: begin at a policy that ends them, such as SFT that was trained longer, or raise ppo.response_length",
            )
        )


def faults(rows: Sequence[Mapping[str, float]], settings: PolicySettings) -> list[str]:
    """A sentence on a training that ran to its end and broke the policy, from its log's rows; none where all is well.

    Measured on the embedded base, 10 updates of 64 answers of 10 tokens. At the learning rates 5e-4, 5e-3, 0.03 and 10 the
    largest approximate KL of an update was 0.01, 0.37, 10 and 35 nats a token, the last KL 0.04, 0.8, 2.5 and 3.2, and
    1.00, 0.97, 0.00 and 0.02 of the last answers ended. The first two policies answer, the others give noise.
    """
    first, last = rows[0], rows[-1]
    step = max(rows, key=lambda row: row.get("policy/approxkl_avg", 0.0)).get("policy/approxkl_avg", 0.0)
    kl = last["objective/kl"] / last["answers/length"]
    signs = [
        (step > 1, f"one update moved it by {step:.2g} nats a token"),
        (kl > 2, f"at the end it is {kl:.1f} nats a token from where it began"),
        (
            first["answers/ended"] - last["answers/ended"] > 0.5,
            f"{first['answers/ended']:.0%} of the answers ended at first and {last['answers/ended']:.0%} do now",
        ),
        (
            first["objective/scores"] - last["objective/scores"] > 1,
            f"the reward fell from {first['objective/scores']:.2f} to {last['objective/scores']:.2f}",
        ),
    ]
    if not (seen := [sign for told, sign in signs if told]):
        return []
    broke = (
        f"{settings.title} broke the policy: {', '.join(seen)}; lower {settings.table}.learning_rate, or set "
        f"{settings.table}.kl_stop"
    )
    return [see("The KL explodes", broke)]


FLAT = 1e-6
"""The largest standard deviation of any term over a batch below which the reward says nothing of its answers. What is taken
from an answer that does not end is no term: it teaches to end, and nothing else."""
FEWEST = 5
"""Updates below which a policy is not said to rest."""
REST = 0.01
"""Mean KL in nats per answer of a policy at rest. Translation on the embedded base has 0.6 over 16 updates, and 0.00002 at a
learning rate of 1e-7."""
HELD = 0.1
"""Likewise of one that the penalty holds, a nat of which costs more than the scores spread: 0.04 at a `kl_coef` of 100."""


def at_rest(rows: Sequence[Mapping[str, float]], settings: PolicySettings) -> list[str]:
    """A sentence on a policy that had nothing to climb, or that hardly left the SFT policy, and why."""
    if max(row["objective/terms_std"] for row in rows) < FLAT:
        flat = f"the reward gave all answers of an update the same score, in all {len(rows)} updates"
        return [see("The reward stays flat", f"{flat}; look at its terms and at the reward model")]
    if len(rows) < FEWEST:
        return []
    spread, cost = fmean(row["objective/scores_std"] for row in rows), max(row["kl_coef"] for row in rows)
    if (mean := fmean(abs(row["objective/kl"]) for row in rows)) > (HELD if cost > spread else REST):
        return []
    rest = f"over {len(rows)} updates the policy stayed where it began (mean KL {mean:.1g} nats an answer)"
    values = f"the scores spread by {spread:.2g} and a nat of KL costs {cost:g}"
    rate = max(row["lr"] for row in rows)
    lower, more = f"lower {settings.table}.{settings.kl_weight}", f"raise {settings.table}.learning_rate ({rate:g})"
    mend = lower if cost > spread else more
    return [see("The policy did not move", f"{rest}: {values}, so {mend}")]
