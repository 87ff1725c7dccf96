"""What is measured: a job for an algorithm, whole, that either arm can do, and the sizes in which it is done.

    Work("trunk_heavy", Model(vocabulary=2048, hidden=256, layers=4), batch=32, epochs=4, …)

Nothing is downloaded: the models have random weights, the prompts random tokens, all from a seed.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Other = Literal["rloo", "grpo", "dpo"]
Algorithm = Literal["ppo", Other]

PAD, EOS = 0, 1
"""Token ids; all others are words."""


@dataclass(frozen=True)
class Model:
    """A decoder's shape, under the names of `transformers.LlamaConfig` where it is longer than this."""

    vocabulary: int
    hidden: int
    layers: int
    intermediate: int = 0
    """0: four times `hidden`."""
    heads: int = 0
    """0: one for 32 dimensions."""
    kv_heads: int = 0
    """0: as many as `heads`."""
    family: Literal["llama", "qwen3"] = "llama"
    rope_theta: float = 10000.0
    initializer_range: float = 0.02
    quantization: Literal["none", "nf4"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Work:
    """One run. Equal works give equal initial weights, prompts and settings in both arms."""

    name: str
    model: Model
    shortest: int
    """Prompt lengths are drawn evenly from `shortest` to `longest` tokens."""
    longest: int
    answer: int
    """Most tokens of an answer; random models hardly ever end one earlier."""
    batch: int
    micro_batch: int
    epochs: int
    updates: int
    rollout_batch: int = 0
    """Answers generated together; 0: the whole batch."""
    lora_rank: int = 16
    learning_rate: float = 1e-4
    schedule: str = "linear"
    max_grad_norm: float = 1.0
    """Of our arm; plain TRL never clips."""
    gradient_checkpointing: bool = False
    """Of our arm; plain TRL never turns it on."""
    value: Literal["trunk", "adapter"] = "trunk"
    """Where our arm's value head stands."""
    dense_rollout: Literal["always", "never"] = "never"
    """Whether our arm draws answers from a dense copy of the policy."""
    reward: Literal["model", "program"] = "model"
    """A random reward model, or how many of the answer's tokens are `liked` (something that can be learned)."""
    missing_eos_penalty: float = 1.0
    algorithm: Algorithm = "ppo"
    answers_each: int = 1
    """Answers to each prompt of a batch; RLOO, GRPO and DPO set them against each other."""
    seed: int = 0


def liked(token: int) -> bool:
    """The tokens that a programmed reward pays for: about a quarter of the vocabulary."""
    return token > EOS and token % 4 == 0


def prompts(work: Work) -> list[list[int]]:
    """Prompt ids: of PPO one batch more than a run uses, since TRL's mishandles the last batch of a pass over the data.

    Those of the others are the ones that a run uses: each arm shuffles in its own way, and both then read the same.
    """
    draw = random.Random(work.seed)
    count = work.batch * (work.updates + (work.algorithm == "ppo")) // work.answers_each
    lengths = [draw.randint(work.shortest, work.longest) for _ in range(count)]
    return [[draw.randrange(EOS + 1, work.model.vocabulary) for _ in range(length)] for length in lengths]


def comparisons(work: Work) -> list[dict[str, list[int]]]:
    """DPO's rows of token ids by TRL's names: two answers of `answer` tokens, with their stop token, to each prompt."""
    draw = random.Random(work.seed + 1)

    def drawn() -> list[int]:
        return [*(draw.randrange(EOS + 1, work.model.vocabulary) for _ in range(work.answer - 1)), EOS]

    return [{"prompt_ids": ids, "chosen_ids": drawn(), "rejected_ids": drawn()} for ids in prompts(work)]


def to_json(work: Work) -> dict[str, Any]:
    return dataclasses.asdict(work)


def from_json(values: Mapping[str, Any]) -> Work:
    return Work(**{**values, "model": Model(**values["model"])})


SHAPES = (
    Work(
        "trunk_heavy",
        Model(vocabulary=2048, hidden=256, layers=4),
        shortest=32,
        longest=32,
        answer=32,
        batch=32,
        micro_batch=8,
        epochs=4,
        updates=2,
    ),
    Work(
        "vocabulary_heavy",
        Model(vocabulary=65536, hidden=128, layers=2),
        shortest=32,
        longest=32,
        answer=32,
        batch=16,
        micro_batch=8,
        epochs=1,
        updates=3,
    ),
    Work(
        "varied_lengths",
        Model(vocabulary=2048, hidden=256, layers=2),
        shortest=8,
        longest=128,
        answer=32,
        batch=32,
        micro_batch=8,
        epochs=4,
        updates=2,
    ),
)
"""The three shapes of the comparison with plain TRL; one arm takes 10 to 30 s of a core."""

TOY = Work(
    "toy",
    Model(vocabulary=64, hidden=32, layers=1),
    shortest=6,
    longest=6,
    answer=6,
    batch=8,
    micro_batch=4,
    epochs=2,
    updates=2,
    lora_rank=4,
)
"""Takes a fraction of a second: what is run to warm the libraries up, and what the tests measure."""


def of_algorithm(work: Work, algorithm: Other) -> Work:
    """The same job for another algorithm: as many answers, of DPO two to a prompt and else four, and as many passes."""
    return dataclasses.replace(work, algorithm=algorithm, answers_each=2 if algorithm == "dpo" else 4)


def toy(work: Work) -> Work:
    """The toy that goes the same ways as `work`: its algorithm, on a base of its kind."""
    model = dataclasses.replace(TOY.model, quantization=work.model.quantization, dtype=work.model.dtype)
    return dataclasses.replace(TOY, model=model, algorithm=work.algorithm, answers_each=work.answers_each)


EXACT = Work(
    "exact",
    Model(vocabulary=256, hidden=64, layers=2),
    shortest=16,
    longest=16,
    answer=16,
    batch=16,
    micro_batch=16,
    epochs=4,
    updates=3,
    learning_rate=1e-3,
    max_grad_norm=1e9,
    value="adapter",
)
"""For equality: one micro-batch a mini-batch, clipping that never acts, prompts of one length, a value adapter."""

GAIN = Work(
    "gain",
    Model(vocabulary=64, hidden=64, layers=2, initializer_range=0.1),
    shortest=8,
    longest=8,
    answer=12,
    batch=32,
    micro_batch=32,
    epochs=4,
    updates=16,
    learning_rate=1e-2,
    schedule="constant",
    max_grad_norm=1e9,
    missing_eos_penalty=0.0,
    reward="program",
)
"""For the value head on the policy's trunk: something to learn, 512 episodes."""

GROWTH = Work(
    "growth",
    Model(vocabulary=4096, hidden=128, layers=2),
    shortest=16,
    longest=16,
    answer=16,
    batch=16,
    micro_batch=8,
    epochs=2,
    updates=2,
    lora_rank=8,
)
"""Where the growth of cost starts: batch, answer length and vocabulary are doubled from here, one at a time."""


@dataclass(frozen=True)
class Plan:
    """A comparison, whole."""

    shapes: tuple[Work, ...]
    exact: Work
    gain: Work
    growth: Work
    others: tuple[Work, ...]
    """The shapes on which RLOO, GRPO and DPO are compared as well."""
    pairs: int
    """Runs of each arm on each shape, in turns."""
    seeds: int
    """Of the comparison of gains."""
    rounds: int
    """Updates of each shape over which the overhead's median is taken."""
    doublings: int
    """Of each axis along which cost grows."""
    apart: bool = True
    """Each measurement in a process of its own; else all in this one, whose memory and time then say nothing."""


FULL = Plan(SHAPES, EXACT, GAIN, GROWTH, others=SHAPES[:2], pairs=5, seeds=5, rounds=3, doublings=3)
"""About half an hour on a slow core."""


def _small(work: Work, **changes: Any) -> Work:
    return dataclasses.replace(TOY, name=work.name, epochs=work.epochs, **changes)


QUICK = Plan(
    shapes=(_small(SHAPES[0]), _small(SHAPES[1]), _small(SHAPES[2], shortest=3, longest=9)),
    exact=dataclasses.replace(
        EXACT, model=Model(vocabulary=64, hidden=32, layers=1), batch=8, micro_batch=8, shortest=6, longest=6, answer=8
    ),
    gain=dataclasses.replace(GAIN, batch=8, micro_batch=8, updates=4, epochs=1),
    growth=TOY,
    others=(_small(SHAPES[0]), _small(SHAPES[1])),
    pairs=1,
    seeds=2,
    rounds=1,
    doublings=1,
    apart=False,
)
"""Every step once, at a toy's size, in seconds: to see that it works."""

CUDA_MODELS = {
    "llama-8b": Model(
        vocabulary=128256,
        hidden=4096,
        layers=32,
        intermediate=14336,
        heads=32,
        kv_heads=8,
        rope_theta=500000.0,
        quantization="nf4",
        dtype="bfloat16",
    ),
    "qwen3-8b": Model(
        vocabulary=151936,
        hidden=4096,
        layers=36,
        intermediate=12288,
        heads=32,
        kv_heads=8,
        family="qwen3",
        rope_theta=1000000.0,
        quantization="nf4",
        dtype="bfloat16",
    ),
    "llama-toy": Model(vocabulary=256, hidden=64, layers=2, heads=4, kv_heads=2, quantization="nf4"),
    "qwen3-toy": Model(vocabulary=256, hidden=64, layers=2, heads=4, kv_heads=2, family="qwen3", quantization="nf4"),
}
"""Shapes of Llama 3.1 8B and Qwen3 8B, after their published configurations, and toys of the same make."""


def large(name: str) -> Work:
    """Four roles of a model of `CUDA_MODELS` at batch 64 with 512 + 512 tokens; toys do the same at a toy's size."""
    model = CUDA_MODELS[name]
    if name.endswith("-toy"):
        return dataclasses.replace(TOY, name=name, model=model, gradient_checkpointing=True)
    return Work(
        name,
        model,
        shortest=512,
        longest=512,
        answer=512,
        batch=64,
        micro_batch=4,
        epochs=4,
        updates=2,
        rollout_batch=32,
        gradient_checkpointing=True,
    )
