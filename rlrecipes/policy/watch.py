"""Watches a policy while it trains: every few updates it answers a slice of prompts that it does not train on.

    {"slice/headline": 0.71, "slice/reward": 1.2, "slice/judge": 0.9}

Each prompt is answered greedily and at temperature 1, as the verdict asks for both: the greedy answers of a small model may
all be one sentence, and then measure that one alone. The slice comes from the training prompts, so that the held-out ones
stay what nobody chose by. The best policy is kept, and the start counts: a policy that only got worse stays the SFT policy.
The judge may end the training and does not choose, since it could not judge a policy any more that it chose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import nn

from rlrecipes.profile import PolicySettings
from rlrecipes.recipe import Example, Reward
from rlrecipes.reward.head import Scorer
from rlrecipes.reward.terms import rewards
from rlrecipes.run.console import say
from rlrecipes.run.processes import from_first
from rlrecipes.text import see


@dataclass
class Watch:
    """The slice, how it is scored, and the best policy so far; part of the checkpoints."""

    slice: Sequence[tuple[Example, list[int]]]
    """Examples and their prompt ids."""
    headline: Callable[[str, Example], float]
    reward: Reward
    scorer: Scorer | None
    """The learned part of the reward; None where it has none."""
    settings: PolicySettings
    term_seconds: float = 0
    judge: Scorer | None = None
    """A second reward model, which nothing climbs; None where there is none."""
    rows: list[dict[str, float]] = field(default_factory=list)
    """What was measured, with its `update`; the first row, of update 0, is the SFT policy."""
    best: int = 0
    """The update of the best policy."""
    weights: list[torch.Tensor] = field(default_factory=list)
    """Its trainable weights."""

    @property
    def prompts(self) -> list[list[int]]:
        """The ids of the slice's prompts."""
        return [ids for _, ids in self.slice]

    def due(self, update: int, last: int) -> bool:
        """Whether to measure the policy after an update."""
        return update % self.settings.eval_every == 0 or update == last

    def measure(self, update: int, answers: Sequence[str], parameters: Sequence[nn.Parameter]) -> dict[str, float]:
        """Scores answers to the whole slice, once or several times over; keeps the weights if they are the best so far."""
        examples = [example for example, _ in self.slice] * (len(answers) // len(self.slice))
        pairs = [(example.prompt, answer) for example, answer in zip(examples, answers, strict=True)]
        measured = {
            "slice/headline": from_first(lambda: fmean(map(self.headline, answers, examples))),
            "slice/reward": fmean(rewards(self.reward, self.scorer, answers, examples, self.term_seconds)),
            **({"slice/judge": fmean(self.judge(pairs))} if self.judge else {}),
        }
        self.rows.append({"update": update, **measured})
        if len(self.rows) == 1 or self._rank(self.rows[-1]) > self._rank(self.row(self.best)):
            self.best = update
            self.weights = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
        return measured

    def row(self, update: int) -> dict[str, float]:
        """What was measured after an update."""
        return next(row for row in self.rows if row["update"] == update)

    @property
    def exhausted(self) -> str | None:
        """Why to stop; None: go on."""
        return self.unimproved or self.parted

    @property
    def unimproved(self) -> str | None:
        """The sentence that the best policy lies `patience` measurements back; None where it does not."""
        behind = [row for row in self.rows if row["update"] > self.best]
        if not 0 < self.settings.patience <= len(behind):
            return None
        now = int(behind[-1]["update"])
        return (
            f"nothing better after update {self.best} ({self._said(self.best)}); after update {now} "
            f"{self._said(now)} ({self.settings.table}.patience={self.settings.patience})"
        )

    @property
    def parted(self) -> str | None:
        """The sentence that over `patience` measurements the judge's score fell and the reward rose; None where not."""
        rows, most = [row for row in self.rows if "slice/judge" in row], self.settings.patience
        if not rows or not most:
            return None
        best = max(rows, key=lambda row: (row["slice/judge"], row["update"]))  # so that all after it lie below
        behind = [row for row in rows if row["update"] > best["update"]][-most:]
        if len(behind) < most or not all(row["slice/reward"] > best["slice/reward"] for row in behind):
            return None
        one, now = (f"{row['slice/judge']:.2f} after update {row['update']:.0f}" for row in (best, behind[-1]))
        rise = behind[-1]["slice/reward"] - best["slice/reward"]
        settings = f"({self.settings.table}.judge, {self.settings.table}.patience={most})"
        return f"the judge's score fell from {one} to {now} while the reward rose by {rise:.2f} {settings}"

    def _said(self, update: int) -> str:
        row = self.row(update)
        values = f"headline {row['slice/headline']:.3f} and reward {row['slice/reward']:.2f}"
        return f"{values} on {len(self.slice)} prompts set aside"

    @property
    def keeps(self) -> bool:
        """Whether the best policy is left rather than the last."""
        return self.settings.keep == "best"

    def restore(self, parameters: Sequence[nn.Parameter], last: int) -> int:
        """Puts the best weights back, where the best is kept; returns the update of the policy that is left."""
        if not self.keeps:
            return last
        for parameter, weights in zip(parameters, self.weights, strict=True):
            parameter.data.copy_(weights)
        say(f"  kept the policy after update {self.best} of {last}: {self._said(self.best)}")
        return self.best

    def record(self, stopped: str | None) -> dict[str, Any]:
        """What `done.json` holds of it, where training ended early for the reason `stopped`."""
        by_judge = stopped is not None and stopped == self.parted
        return {"prompts": len(self.slice), "best": self.best, "rows": self.rows, "ended_by_judge": by_judge}

    def warnings(self) -> list[str]:
        """A sentence where no policy on the way was better than the one it began with."""
        if self.best or len(self.rows) < 2:
            return []
        now, table = int(self.rows[-1]["update"]), self.settings.table
        left = "so that is what is left" if self.keeps else "and the last policy is left all the same"
        looks = f"{self._said(0)}; after update {now} {self._said(now)}"
        mend = f"change {table}.learning_rate or {table}.{self.settings.kl_weight}"
        sentence = (
            f"{self.settings.title} found nothing better than the policy it began with ({looks}), {left}; see what the "
            f"reward model is worth, or {mend}"
        )
        return [see("The reward stays flat", sentence)]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "best": self.best, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows, self.best, self.weights = list(state["rows"]), state["best"], list(state["weights"])

    @staticmethod
    def _rank(row: Mapping[str, float]) -> tuple[float, float]:
        return row["slice/headline"], row["slice/reward"]
