"""How many rows each stage reads and how many tokens they have: counted in the data, or assumed where there are none.

workload(job) -> Workload(demonstrations=2744, compared=1800, …, prompt_tokens=(14, 15, …), answer_tokens=(7, 8, …))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rlrecipes.before.shape import Lengths
from rlrecipes.before.show import SAMPLED, open_reader
from rlrecipes.data.split import ASIDE, HELD_OUT, LEAST_ASIDE
from rlrecipes.errors import option
from rlrecipes.job import Job
from rlrecipes.model.tokens import encode, learned_rows
from rlrecipes.recipe import Comparison, Prompt, Rating
from rlrecipes.reward.judge import missing, rows

T = TypeVar("T")

ROWS = 10_000
"""Training rows of each kind that are assumed."""
SPREAD = 20
"""Lengths that are assumed, from short to the longest."""
CHARACTERS, FRAME = 4, 6
"""Of a token, and tokens that a chat template puts around a turn, where no tokenizer is there: English under a vocabulary of
32,000 and more."""


@dataclass(frozen=True)
class Workload:
    """Rows, and lengths in tokens of a sample of them."""

    demonstrations: int
    compared: int
    """Comparisons, or ratings where the reward model learns from these."""
    pairwise: bool
    """Whether it reads two texts a row."""
    held_out_compared: int
    judged: tuple[int, int]
    """Rows that train the judge and that measure it; none where there is no judge that is trained."""
    prompts: int
    held_out: int
    """Held-out prompts that evaluation may use."""
    asked: Sequence[int]
    """Tokens of PPO's prompts."""
    rows: Sequence[tuple[int, int]]
    """Tokens of prompt and answer of demonstrations."""
    texts: Sequence[int]
    """Tokens of one text of a comparison or rating, prompt included."""
    longest: int
    """The most tokens of an answer that is sampled."""
    source: str
    """Where this comes from, in a line."""

    @property
    def whole(self) -> list[int]:
        """Tokens of whole demonstrations."""
        return [prompt + answer for prompt, answer in self.rows]

    @property
    def answers(self) -> list[int]:
        """Tokens of answers that are sampled: as long as those of the demonstrations."""
        return [min(answer, self.longest) for _, answer in self.rows]

    @property
    def answered(self) -> list[int]:
        """Tokens of prompts with such answers."""
        return [prompt + min(answer, self.longest) for prompt, answer in self.rows]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def padded(values: Sequence[int], together: float, pool: float | None = None) -> float:
    """The expected length to which rows that are read `together` are padded: that of the longest of them.

    They are drawn at random, or are neighbours in a `pool` that is ordered by length. The longest of n draws lies at the
    share n / (n + 1) of all on average.
    """
    ordered, pool = sorted(values), max(pool or together, together)
    chunks = max(1, round(pool / together))
    shares = [min(pool, together * (place + 1)) / (pool + 1) for place in range(chunks)]
    return mean([ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in shares])


def aside(count: int, keep: str = "best") -> int:
    """Rows that are set aside of `count` (`data.split.set_aside`)."""
    room = min(ASIDE, count // 10)
    return room if keep == "best" and room >= LEAST_ASIDE else 0


def workload(job: Job, longest: Lengths) -> Workload:
    """The rows of a job, and the tokens of a sample of them; `longest` are the longest rows that the profile allows."""
    reader, reason = open_reader(job)
    data, profile, train = job.data, job.profile, job.data.train
    count: Callable[[Prompt, str], tuple[int, int]] = _guessed
    if reader:
        tokenizer = reader.tokenizer

        def count(prompt: Prompt, answer: str) -> tuple[int, int]:
            ids = encode(tokenizer, prompt, answer)
            return max(1, len(ids.prompt)), max(1, len(ids.answer))

    window = longest.whole
    learned = learned_rows(train.demonstrations, profile.sft.learn)
    every = [count(row.prompt, row.answers[0]) for row in _sample(learned)]
    fitting = [row for row in every if sum(row) <= window]
    answers = sorted(answer for _, answer in every) or [longest.answer]
    most = profile.ppo.response_length or answers[min(len(answers) - 1, int(0.99 * len(answers)))]
    pairwise = job.objective == "pairwise" if job.recipe.reward.learned else True
    pairs: Sequence[Comparison]
    ratings: Sequence[Rating]
    pairs, ratings = (train.comparisons, ()) if pairwise else ((), train.ratings)
    texts = [sum(count(row.prompt, text)) for row in _sample(pairs) for text in (row.chosen, row.rejected)]
    texts += [sum(count(row.prompt, row.answer)) for row in _sample(ratings)]
    held_out = data.held_out.comparisons if pairwise else data.held_out.ratings
    _, taught, measured = rows(job)
    return Workload(
        demonstrations=round(len(learned) * len(fitting) / max(1, len(every))),
        compared=len(pairs) + len(ratings),
        pairwise=pairwise,
        held_out_compared=len(held_out),
        judged=(0, 0) if missing(job) else (taught, measured),
        prompts=len(train.prompts),
        held_out=len(data.held_out.prompts),
        asked=[tokens for row in _sample(train.prompts) if (tokens := count(row.prompt, "")[0]) <= window - most]
        or [1],
        rows=fitting or [(longest.prompt, longest.answer)],
        texts=[tokens for tokens in texts if tokens <= window] or [window],
        longest=most,
        source=_source(job, len(learned), reason),
    )


def assumed(longest: Lengths, judge: bool) -> Workload:
    """As many rows of every length up to the longest that the profile allows."""
    lengths = [
        (max(1, longest.prompt * part // SPREAD), max(1, longest.answer * part // SPREAD))
        for part in range(1, SPREAD + 1)
    ]
    return Workload(
        demonstrations=ROWS,
        compared=ROWS,
        pairwise=True,
        held_out_compared=HELD_OUT,
        judged=(HELD_OUT // 2, HELD_OUT // 2) if judge else (0, 0),
        prompts=ROWS,
        held_out=HELD_OUT,
        asked=[prompt for prompt, _ in lengths],
        rows=lengths,
        texts=[prompt + answer for prompt, answer in lengths],
        longest=longest.answer,
        source=f"no data are read: {ROWS:,} training rows of each kind are assumed, of all lengths up to the longest; "
        f"{option('data')} counts yours",
    )


def _sample(rows: Sequence[T]) -> Sequence[T]:
    return rows[:: -(-len(rows) // SAMPLED) or 1]


def _guessed(prompt: Prompt, answer: str) -> tuple[int, int]:
    """Tokens by characters."""
    asked = sum(len(message.content) // CHARACTERS + FRAME for message in prompt) + FRAME // 2
    return asked, len(answer) // CHARACTERS + 1


def _source(job: Job, count: int, reason: str) -> str:
    told = f"of the data {job.data.source}: {count:,} demonstrations, {len(job.data.train.prompts):,} prompts"
    return f"{told}; tokens guessed by {CHARACTERS} characters each, since {reason}" if reason else told
