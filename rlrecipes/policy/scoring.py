"""What a batch's answers score, before anything is learned from them: the reward's terms, their sum, and what is cut off it.

scored(rollout, reward, …) -> {"learned": [1.3, −0.2], "polite": [0.0, 1.0]}, [1.3, 0.0]
"""

from __future__ import annotations

import torch

from rlrecipes.errors import UserError, switch
from rlrecipes.policy.rollout import Rollout, broken_row
from rlrecipes.profile import PolicySettings
from rlrecipes.recipe import Reward
from rlrecipes.reward.head import Head, Scorer
from rlrecipes.reward.terms import term_values, weighted_sum


def scored(
    rollout: Rollout,
    reward: Reward,
    head: Head | None,
    scorer: Scorer | None,
    settings: PolicySettings,
    term_seconds: float = 0,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Each term's unweighted values `[B]`, and the scores `[B]`: their weighted sum, clipped, less the EOS penalty.

    Raises:
        UserError: a term raises, takes longer than `term_seconds` or gives no finite number, or the sum is none; nothing
            has been updated by then.
    """
    terms = {
        name: torch.tensor(values, device=rollout.ids.device)
        for name, values in term_values(reward, rollout.answers, rollout.examples, term_seconds).items()
    }
    if head is not None or scorer is not None:
        terms["learned"] = _learned(rollout, head, scorer)
        if (row := broken_row(terms["learned"][:, None])) is not None:
            raise UserError(
                f"the reward model gave NaN or infinity {rollout.place(row)}; make the reward stage again with "
                f"{switch('force')}"
            )
    scores = weighted_sum(reward, terms)
    if (row := broken_row(scores[:, None])) is not None:
        raise UserError(
            f"the weighted sum of the reward's terms is {scores[row].item()} {rollout.place(row)}; give them smaller weights"
        )
    if settings.reward_clip:
        scores = scores.clamp(-settings.reward_clip, settings.reward_clip)
    return terms, scores - settings.missing_eos_penalty * (~rollout.ended)


def _learned(rollout: Rollout, head: Head | None, scorer: Scorer | None) -> torch.Tensor:
    """The reward model's standardised scores `[B]`."""
    if head is not None:  # the rollout has read the states that it needs
        return head(rollout.last_states)
    assert scorer is not None
    pairs = [(e.prompt, answer) for e, answer in zip(rollout.examples, rollout.answers, strict=True)]
    return torch.tensor(scorer(pairs), device=rollout.ids.device)
