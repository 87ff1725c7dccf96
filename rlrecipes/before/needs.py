"""The memory of each phase of a stage at the moments that may be its fullest, role by role.

    Need("sft", at="loss", roles={"base": 2.7e9, "adapters": 1.3e8, …, "logits": 7.8e8})

It is arithmetic over the tensors that this project's stages hold. We saw which are alive at each operation on Llama, Qwen3
and Mixtral models, and assume that other decoders run alike with their own widths. Sizes are in bytes unless a docstring
says otherwise; `docs/memory.md` compares them with measured peaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rlrecipes.before.groups import Rows, in_rows
from rlrecipes.before.shape import Block, Input, Lengths, Network, Shape, lengths
from rlrecipes.profile import SFT, PolicySettings, Profile, algorithms, sampling_algorithms

GIB = 1 << 30

ROLES = ("base", "beside", "copy", "adapters", "optimizer", "KV cache", "activations", "logits", "reserve")
"""What the memory is for. `beside` is a reward model that is no adapter of the base; `copy` is the policy as plain matrices
while it writes; `optimizer` holds gradients too; `reserve` is for all that is no tensor."""

RESERVE = {"cpu": 0, "cuda": int(0.75 * GIB)}
"""CUDA context, cuBLAS workspaces and rounding of the allocator: a usual size, which we have not measured."""

AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Logits that `likelihood` holds at a time."""

READ_AT_ONCE = {"cpu": 1 << 40, "cuda": 1 << 14}
"""Tokens of prompts that `sampling` reads at a time."""

SFT_AT_ONCE = 256
"""Tokens whose logits `trl.SFTTrainer` (`chunked_nll`) holds at a time."""

SMALL = 4096
"""bitsandbytes' 8-bit optimizers keep 32-bit moments of tensors with fewer numbers than this."""

NF4 = 0.5 + 1 / 64 + 4 / 64 / 256
"""Bytes a weight: 4 bits; per 64 weights a scale of 8 bits, per 256 scales one of 32 (QLoRA, arXiv 2305.14314, section 3)."""


@dataclass(frozen=True)
class Need:
    """What one phase of a stage holds at one moment."""

    phase: str
    """A phase of the table of stages."""
    at: str
    """The moment."""
    roles: Mapping[str, float]
    """Bytes by the names of `ROLES`."""

    @property
    def total(self) -> float:
        return sum(self.roles.values())


def moments(
    shape: Shape, profile: Profile, longest: Lengths | None = None, device: str = "cuda", learned: bool = True
) -> dict[str, list[Need]]:
    """The moments of each phase that may be its fullest, in order. Without a learned reward there is no phase
    `reward`, and without a judge that is trained none of it.

    Raises:
        UserError: the rows have no room for a prompt and an answer.
    """
    sizes = _Sizes(shape, profile, longest or lengths(shape, profile), device, learned)
    by_phase: dict[str, Callable[[_Sizes], Iterator[Need]]] = {
        "sft": _sft,
        "reward": _reward,
        "judge": _judge,
        **{
            f"{table} {part}": partial(needs, getattr(profile, table))
            for table in sampling_algorithms(profile)
            for part, needs in (("rollout", _rollout), ("update", _update))
        },
        "dpo": _dpo,
        "answers": _answers,
        "evaluate": _evaluate,
    }
    there = {
        "sft": profile.run.start == SFT,
        "reward": learned,
        "judge": sizes.judged,
        "dpo": "dpo" in algorithms(profile),
    }
    return {phase: list(needs(sizes)) for phase, needs in by_phase.items() if there.get(phase, True)}


def fullest(needs: list[Need]) -> Need:
    return max(needs, key=lambda need: need.total)


# The parts that needs are made of.


@dataclass(frozen=True)
class _Sizes:
    """Sizes of the parts that a need is the sum of."""

    shape: Shape
    profile: Profile
    longest: Lengths
    device: str
    learned: bool

    @property
    def width(self) -> int:
        """Bytes of a number in the base's precision; adapters are always in float32."""
        return {"float32": 4, "bfloat16": 2}[self.profile.model.dtype]

    @property
    def judged(self) -> bool:
        """Whether the judge is a second reward model."""
        return self.profile.evaluate.judge == "auto" and not self.profile.evaluate.judge_url

    def watched(self, settings: PolicySettings) -> bool:
        """Whether it looks at an algorithm too."""
        return self.judged and settings.judge and settings.eval_every > 0

    @property
    def scorer(self) -> _Sizes:
        """The sizes of what scores: the reward model beside the base, in the same precision, or the base itself."""
        return replace(self, shape=self.shape.beside or self.shape)

    def base(self, head: bool = True) -> float:
        """The frozen weights; a reward model has no language-model head."""
        linear = NF4 if self.profile.model.quantization == "nf4" else self.width
        return self.shape.linear * linear + self.width * (self.shape.other - (0 if head else self.shape.head))

    def optimizer(self, settings: Any, adapters: int) -> dict[str, float]:
        """Gradients of the trained adapters, 4 bytes a number, and the optimizer's moments."""
        moments = 8.0  # bytes a number: AdamW has two in float32
        if "8bit" in settings.optim and self.profile.lora.r * self.shape.hidden >= SMALL:
            moments = 2 * (1 + 4 / 256)  # a byte, and per 256 of them a scale in float32
        elif settings.optim == "sgd":
            moments = 0.0
        elif settings.optim == "adafactor":
            moments = 4 / self.profile.lora.r  # a mean for each row and column of a matrix of r columns
        return {"optimizer": adapters * self.shape.adapter * (4 + moments)}

    # One token in one block, in bytes.

    def attention(self, block: Block, per_sequence: float, padded: bool, dropout: bool) -> float:
        """What a block's norms and attention keep for the backward pass."""
        shape, width, keys = self.shape, self.width, block.cached / 2
        size = 2 * 4.0 * shape.hidden  # the norms' inputs, in float32
        size += (4 if block.normed else 0) * (block.queries + keys)
        keys = block.queries if padded else keys  # repeated for every query head where there is a mask
        size += width * (2 * block.queries + 2 * keys) + 4 * shape.heads
        size += width * per_sequence if padded else 0  # the mask as numbers, anew in every layer
        if shape.eager:  # attention's weights, and what their softmax keeps
            size += (width + 4) * shape.heads * per_sequence
        if not dropout and block.out.adapted:
            size -= width * block.out.width  # what LoRA reads there is attention's output itself
        return size + sum(self.input(state, dropout) for state in (*block.inputs, block.out))

    def mlp(self, block: Block, dropout: bool) -> float:
        """What a block's feed-forward networks keep for the backward pass."""
        return sum(self.network(network, dropout) for network in block.networks)

    def network(self, network: Network, dropout: bool) -> float:
        """What one network keeps: the middle as each product makes it, and what LoRA reads."""
        middle = self.width * network.middle * (3 if network.gated else 2)
        if network.experts:  # each expert keeps its output too, for the gradient of its weight in the sum
            middle = network.experts * (middle + self.width * self.shape.hidden)
            if network.stack:  # and what each half reads, for the gradient of its adapter
                middle += network.experts * self.width * (network.middle + self.shape.hidden)
        return middle + sum(self.input(state, dropout) for state in network.inputs)

    def input(self, state: Input, dropout: bool) -> float:
        """What LoRA keeps: the state that it reads, and its narrow middle. Frozen linear layers keep nothing."""
        count, width = state.adapted, self.width
        copies = count if dropout else min(1, count)  # one for all where nothing is dropped
        masks = count * (width if self.device == "cpu" else 1) if dropout else 0
        return float((width * copies + masks) * state.width + width * self.profile.lora.r * count)

    def backward(self, network: Network) -> float:
        """What the fullest moment of a block adds to its activations, where this is its widest network.

        The middle's gradient by both paths and their sum are there, while one saved tensor is gone. Experts have two such
        gradients too, or three of their outputs, weighed in float32, if those are wider.
        """
        if network.experts:
            return float(network.experts * max(2 * self.width * network.middle, 3 * 4 * self.shape.hidden))
        return 2.0 * self.width * network.middle

    def forward(self, network: Network) -> float:
        """What is alive at the fullest moment of a block without gradients, where this is its widest network.

        The middle is there three times: gate, other product, and the product of both. There are four states. Experts hold
        both products in one piece, the gate, the product of all, and their input; or at the end four of their outputs,
        two of them weighed in float32, if those are wider.
        """
        middle, hidden = network.middle, self.shape.hidden
        if network.experts:
            whole = (4 if network.gated else 2) * middle + hidden
            outputs = (2 * 4 + 2 * self.width) * hidden
            return float(network.experts * max(self.width * whole, outputs) + self.width * 4 * hidden)
        return float(self.width * (3 * middle + 4 * hidden))

    # Passes, in bytes.

    @property
    def dequantized(self) -> float:
        """The largest linear layer in the base's precision: bitsandbytes makes that copy for a product."""
        return float(self.width * self.shape.largest) if self.profile.model.quantization == "nf4" else 0.0

    def stack(self, block: Block) -> float:
        """A block's experts with the adapter added to them; a pass makes them anew."""
        return float(self.width * sum(network.stack for network in block.networks))

    def trained(
        self, rows: Rows, checkpointed: bool, dropout: float = 0.0, read_share: float = 1.0
    ) -> tuple[float, float]:
        """Activations of a forward pass with gradients, and what the backward pass through a block adds to them.

        The last MLP runs only on the states that are read (`forward.states_at`), `read_share` of all tokens.
        """
        shape, number, tokens, padded = self.shape, rows.number, rows.tokens, rows.masked
        blocks = [
            number * (self.attention(block, tokens, padded, dropout > 0) + self.mlp(block, dropout > 0))
            + self.stack(block)
            for block in shape.blocks
        ]
        backs = [number * max(map(self.backward, block.networks), default=0.0) for block in shape.blocks]
        ends = number * shape.hidden * (4 + self.width)  # the last norm's input, and its output
        ends += number * tokens if padded else 0  # the mask
        if checkpointed:
            inputs = len(blocks) * number * shape.hidden * self.width
            return inputs + ends, max(block + back for block, back in zip(blocks, backs, strict=True))
        last = blocks[-1] - (1 - read_share) * number * self.mlp(shape.blocks[-1], dropout > 0)
        # The fullest moment is in the last MLP, or in one before it, when the last block's activations are gone.
        return sum(blocks[:-1]) + last + ends, max(read_share * backs[-1], max(backs[:-1], default=0) - last)

    def cache(self, rows: int, tokens: int) -> float:
        """Keys and values of all blocks."""
        return float(sum(block.cached for block in self.shape.blocks) * self.width * rows * tokens)

    def passed(self, number: float) -> float:
        """Activations of a pass of `number` tokens without gradients."""
        blocks = (
            number * max(map(self.forward, block.networks), default=0.0) + self.stack(block)
            for block in self.shape.blocks
        )
        return max(blocks) + self.dequantized

    def scoring(self, rows: int) -> float:
        """Activations of a pass of whole rows through what scores."""
        return self.scorer.passed(rows * self.longest.whole)

    # What a phase holds at all its moments.

    def static(self, adapters: int, head: bool = True) -> dict[str, float]:
        """The base with `adapters` adapters, 4 bytes a number."""
        return {
            "base": self.base(head),
            "adapters": 4.0 * adapters * self.shape.adapter,
            "reserve": RESERVE[self.device],
        }

    def rewarded(self, adapters: int) -> dict[str, float]:
        """The base with `adapters` adapters, and the learned reward: an adapter for each member, or a model beside."""
        if self.shape.beside is None:
            return self.static(adapters + self.learned * self.profile.reward.seeds)
        return self.static(adapters) | {"beside": self.scorer.base(head=False)}


# The moments of each phase.


def _sft(sizes: _Sizes) -> Iterator[Need]:
    settings, shape = sizes.profile.sft, sizes.shape
    rows, tokens = settings.per_device_train_batch_size, sizes.longest.whole
    fixed = sizes.static(1) | sizes.optimizer(settings, 1)
    activations, back = sizes.trained(
        Rows(rows, tokens, sizes.longest.padded), settings.gradient_checkpointing, sizes.profile.lora.lora_dropout
    )
    answers = 2 * rows * tokens * shape.hidden * sizes.width  # the answers' states, put first
    logits = 4 * 4 * min(SFT_AT_ONCE, rows * tokens) * shape.vocabulary
    if sizes.width != 4:
        logits += 4 * shape.vocabulary * shape.hidden  # TRL takes the whole output layer in float32
    yield Need("sft", "loss", fixed | {"activations": activations + answers, "logits": logits})
    yield Need("sft", "backward", fixed | {"activations": activations + back})


def _reward(sizes: _Sizes) -> Iterator[Need]:
    settings = sizes.profile.reward
    rows, tokens = 2 * settings.per_device_train_batch_size, sizes.longest.whole
    scoring = {"activations": sizes.scoring(rows)}
    if sizes.shape.beside is not None:
        fixed = {"beside": sizes.scorer.base(head=False), "reserve": RESERVE[sizes.device]}
        yield Need("reward", "scoring", fixed | scoring)
        return
    fixed = sizes.static(1, head=False)
    if settings.model is None:
        fixed |= sizes.optimizer(settings, 1)
        activations, back = sizes.trained(
            Rows(rows, tokens, sizes.longest.padded), settings.gradient_checkpointing, sizes.profile.lora.lora_dropout
        )
        yield Need("reward", "backward", fixed | {"activations": activations + back})
    yield Need("reward", "scoring", fixed | scoring)


def _judge(sizes: _Sizes) -> Iterator[Need]:
    reward = replace(sizes.profile.reward, model=None)
    own = replace(sizes, shape=replace(sizes.shape, beside=None), profile=replace(sizes.profile, reward=reward))
    yield from (replace(need, phase="judge") for need in _reward(own))


def _generation(sizes: _Sizes, phase: str, fixed: Mapping[str, float], rows: int, each: int = 1) -> Iterator[Need]:
    """`sampling.sample` of `rows` answers, so many for `each` prompt: while it reads prompts, and draws the last token."""
    longest = sizes.longest
    room = sizes.cache(rows, longest.whole)
    # On a CPU, memory is resident only once something is written to it.
    resident = sizes.cache(rows, longest.prompt) if sizes.device == "cpu" else room
    together = min(-(-rows // each), max(1, READ_AT_ONCE[sizes.device] // longest.prompt))
    reading = sizes.passed(together * longest.prompt)
    if longest.padded:
        reading += together * longest.prompt**2 * (1 + sizes.width)
    yield Need(phase, "reading prompts", {**fixed, "KV cache": resident, "activations": reading})
    # Logits and probabilities in float32, and the logits in the base's type where that is another.
    drawing = rows * sizes.shape.vocabulary * (2 * 4 + (2 if sizes.width == 2 else 0))
    yield Need(
        phase, "drawing tokens", {**fixed, "KV cache": room, "activations": sizes.passed(rows), "logits": drawing}
    )


def _trained(settings: PolicySettings) -> int:
    """Adapters that are trained: the policy, and a value function that has one of its own."""
    return 1 + (getattr(settings, "value", "") == "adapter")


def _rollout(settings: PolicySettings, sizes: _Sizes) -> Iterator[Need]:
    phase, shape, longest = f"{settings.table} rollout", sizes.shape, sizes.longest
    rows = min(settings.local_rollout_forward_batch_size, settings.batch)
    micro = min(settings.per_device_train_batch_size, rows)
    trained = _trained(settings)
    fixed = sizes.rewarded(1 + trained + sizes.watched(settings)) | sizes.optimizer(settings, trained)
    copy = {"copy": float(sizes.width * shape.linear)} if settings.dense_rollout == "always" else {}
    yield from _generation(sizes, phase, fixed | copy, rows, settings.answers_each)
    states = rows * longest.answer * shape.hidden * sizes.width
    reading = states + sizes.passed(in_rows(shape, settings, micro, longest.prompt, longest.answer).number)
    yield Need(phase, "reading answers", fixed | {"activations": reading})
    logits = 2 * 4 * min(AT_ONCE[sizes.device], rows * longest.answer * shape.vocabulary)
    yield Need(phase, "log-probabilities", fixed | {"activations": 2 * states, "logits": logits})
    if sizes.watched(settings):
        scored = sizes.passed(settings.per_device_train_batch_size * longest.whole)
        yield Need(phase, "judge", fixed | {"activations": scored})


def _update(settings: PolicySettings, sizes: _Sizes) -> Iterator[Need]:
    phase, trained = f"{settings.table} update", _trained(settings)
    fixed = sizes.rewarded(1 + trained + sizes.watched(settings)) | sizes.optimizer(settings, trained)
    # One more copy of the logits where the temperature divides them.
    copies = 4 * (settings.temperature != 1)
    micro, answer = settings.per_device_train_batch_size, sizes.longest.answer
    each = None if settings.mini_batches == 1 else 1  # those of a part of a batch may all be to different prompts
    rows = in_rows(sizes.shape, settings, micro, sizes.longest.prompt - 1, answer, each)
    yield from _step(sizes, phase, fixed, settings, rows, micro * answer, copies)
    if sizes.shape.beside is not None:
        yield Need(phase, "scoring", fixed | {"activations": sizes.scoring(micro)})


def _step(
    sizes: _Sizes, phase: str, fixed: Mapping[str, float], settings: Any, rows: Rows, read: int, copies: int = 0
) -> Iterator[Need]:
    """A forward and backward on rows, by the log-probabilities of `read` tokens of all."""
    shape, checkpointed, share = sizes.shape, settings.gradient_checkpointing, min(1.0, read / rows.number)
    activations, back = sizes.trained(rows, checkpointed, read_share=share)
    states = read * shape.hidden * sizes.width
    at_once = min(AT_ONCE[sizes.device], read * shape.vocabulary)
    # The logits and their gradient in float32, and the gradient also in the base's type where that is another.
    logits = at_once * (8 + sizes.width % 4 + copies)
    yield Need(phase, "log-probabilities", {**fixed, "activations": activations + 3 * states, "logits": logits})
    yield Need(phase, "backward", {**fixed, "activations": activations + back})


def _dpo(sizes: _Sizes) -> Iterator[Need]:
    """A comparison has two rows. Its answers may be as long as a row, whatever those that are sampled may be.

    The reference is read before, without gradients or moments, which takes less.
    """
    settings = sizes.profile.dpo
    fixed = sizes.static(1) | sizes.optimizer(settings, 1)
    rows = Rows(2 * settings.per_device_train_batch_size, sizes.longest.whole - 1)
    yield from _step(sizes, "dpo", fixed, settings, rows, int(rows.number))


def _answers(sizes: _Sizes) -> Iterator[Need]:
    yield from _generation(sizes, "answers", sizes.static(2), sizes.profile.evaluate.batch_size)


def _evaluate(sizes: _Sizes) -> Iterator[Need]:
    fixed = sizes.rewarded(1 + sizes.judged)
    yield Need("evaluate", "scoring", fixed | {"activations": sizes.scoring(sizes.profile.evaluate.batch_size)})
