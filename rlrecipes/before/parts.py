"""The sizes that the needs of a phase are sums of: weights, adapters, activations and cached keys, in bytes.

{"base": 2.7e9, "adapters": 1.3e8, "reserve": 8.1e8}
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rlrecipes.before.groups import Rows
from rlrecipes.before.shape import Block, Input, Lengths, Network, Shape
from rlrecipes.profile import PolicySettings, Profile

GIB = 1 << 30

RESERVE = {"cpu": 0, "cuda": int(0.75 * GIB)}
"""CUDA context, cuBLAS workspaces and rounding of the allocator: a usual size, which we have not measured."""

SMALL = 4096
"""bitsandbytes' 8-bit optimizers keep 32-bit moments of tensors with fewer numbers than this."""

NF4 = 0.5 + 1 / 64 + 4 / 64 / 256
"""Bytes a weight: 4 bits; per 64 weights a scale of 8 bits, per 256 scales one of 32 (QLoRA, arXiv 2305.14314, section 3)."""


@dataclass(frozen=True)
class Parts:
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
    def scorer(self) -> Parts:
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
