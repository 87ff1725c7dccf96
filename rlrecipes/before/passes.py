"""What one pass through a model computes and moves, counted from its shape.

    Sizes(shape, profile, "cuda").read("reading answers", times=8, rows=16, tokens=512.0)
    -> Pass("reading answers", times=8, tokens=8192, flops=1.2e14, weights=6.9e9, moved=8.1e10, unpacked=6.9e9, kernels=2100)

A product of a token with n weights is 2n operations. Gradients flow through the frozen base to the adapters: that is one more
product for each of the base's, and two for each of the adapters'. What else an operation reads and writes was counted on
Llama; `tests/before/test_passes.py` counts products and kernels again on the real code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rlrecipes.before.needs import SFT_AT_ONCE
from rlrecipes.before.parts import NF4
from rlrecipes.before.shape import Block, Network, Shape
from rlrecipes.profile import Profile

UNPACKED_ABOVE = {"cpu": 0, "cuda": 64}
"""Tokens read together above which bitsandbytes makes 4-bit weights whole before it multiplies. On a GPU the bound lies
between 16 and 512, by card and layer (bitsandbytes 0.50.2, `backends/cuda/ops.py`)."""

BACK = 2.5
"""Bytes and kernels of a backward pass, as a multiple of those of a forward pass, products left out; attention's products
too, whose backward pass has five where the forward pass has two."""

LINEAR = 3
"""Kernels of a linear layer with an adapter; one without has 1."""
BLOCK, NORMED, ENDS = 27, 12, 23
"""Other kernels of a block, those more where queries and keys are normalised, and those of a pass around its blocks:
embeddings, positions, mask, the last norm."""
PACKED = {"cpu": 8, "cuda": 2}
"""More kernels of a 4-bit layer, each time that its weights are used. On a CPU, bitsandbytes unpacks scales of scales, then
weights, and its Python takes as long as so many kernels."""
DRAW = 45
"""Kernels of a token step outside the model: softmax, draw, log-probability, entropy, what has ended."""
STEP = 12
"""Kernels of an optimizer step for each tensor of an adapter: its norm, its scaling, its moments."""


@dataclass(frozen=True)
class Pass:
    """Some work, and how often it is done."""

    what: str
    times: float
    tokens: float
    """Read together: how fast products are depends on it."""
    flops: float
    """Additions and multiplications of matrix products."""
    weights: float
    """Bytes of the frozen weights that are read."""
    moved: float
    """Bytes that all other operations read and write."""
    unpacked: float
    """4-bit weights that are made whole."""
    kernels: float
    """Operations, views left out: on a GPU each is a kernel."""


@dataclass(frozen=True)
class Sizes:
    """A model, the profile that it is run under, and where: `cpu` or `cuda`."""

    shape: Shape
    profile: Profile
    device: str

    @property
    def width(self) -> int:
        """Bytes of a number."""
        return {"float32": 4, "bfloat16": 2}[self.profile.model.dtype]

    @property
    def packed(self) -> bool:
        return self.profile.model.quantization == "nf4"

    def read(
        self,
        what: str,
        times: float,
        rows: float,
        tokens: float,
        *,
        past: float = 0,
        states: float | None = None,
        logits: float = 0,
        padded: bool = False,
        adapted: bool = True,
    ) -> Pass:
        """A pass of `rows` of `tokens` each, behind `past` tokens of the cache, without gradients.

        Of `states` of the tokens alone, all rows together, the last network's output is needed; `logits` are the states whose
        logits are made. `padded` says that attention has a mask.
        """
        number = rows * tokens
        share = min(1.0, (number if states is None else states) / number)
        blocks = [self._block(block, number, tokens + past, padded, adapted) for block in self.shape.blocks]
        last = self._networks(self.shape.blocks[-1], number * (1 - share), adapted)
        flops = sum(flops for flops, _ in blocks) - last[0] + 2 * logits * self.shape.vocabulary * self.shape.hidden
        moved = sum(moved for _, moved in blocks) - last[1] + self._ends(number) + self._scores(logits, 3)
        moved += self._cache(rows, tokens, past, padded)
        unpacked = self.shape.linear if self.packed and number > UNPACKED_ABOVE[self.device] else 0
        kernels = sum(self._kernels(block, adapted) for block in self.shape.blocks) + ENDS
        return Pass(what, times, number, flops, self._weights(logits > 0), moved, unpacked, kernels)

    def train(
        self,
        what: str,
        times: float,
        rows: float,
        tokens: float,
        *,
        states: float | None = None,
        logits: float = 0,
        again: bool = False,
        padded: bool = False,
        checkpointed: bool = False,
        dropout: float = 0.0,
    ) -> Pass:
        """A forward and a backward pass, as `read`; with `again` the logits are made once more on the way back.

        With checkpoints every block is run once more, and the last network runs on all states (`forward.needed_states_only`).
        """
        number, states = rows * tokens, None if checkpointed else states
        forward = self.read(what, times, rows, tokens, states=states, logits=logits, padded=padded)
        output = 2 * logits * self.shape.vocabulary * self.shape.hidden
        attention = sum(4 * number * tokens * block.queries for block in self.shape.blocks)
        adapters = self._adapters(number, 1.0 if states is None else states / number)
        first = 0 if checkpointed else self._first(number)
        # Through the base as many products as before, through attention 2.5 times and through adapters twice as many.
        back = forward.flops - output + (BACK - 1) * attention + adapters - first + output * (2 if again else 1)
        repeated = forward.flops - output if checkpointed else 0
        others = forward.moved - self._scores(logits, 3)
        drops = self._dropped(number) if dropout else 0
        turns = 1 + BACK + checkpointed
        return replace(
            forward,
            flops=forward.flops + back + repeated,
            weights=(2 + checkpointed) * forward.weights,
            moved=turns * others + self._scores(logits, 12 if again else 6) + drops,
            unpacked=(2 + checkpointed) * (self.shape.linear if self.packed else 0),
            kernels=turns * (forward.kernels - ENDS) + ENDS,
        )

    @property
    def copied(self) -> Sizes:
        """Those of the policy as plain matrices in the base's precision."""
        model = replace(self.profile.model, quantization="none")
        return replace(self, profile=replace(self.profile, model=model))

    def copy(self, what: str, times: float) -> Pass:
        """The policy's layers are made plain matrices: unpacked, taken to float32, added to, and written."""
        linear, layers = float(self.shape.linear), self._adapted()
        return Pass(
            what,
            times,
            tokens=self.shape.hidden,
            flops=2 * self.profile.lora.r * linear,
            weights=linear * (NF4 if self.packed else self.width),
            moved=(4 * 4 + 2 * self.width) * linear,
            unpacked=linear if self.packed else 0,
            kernels=(4 + PACKED[self.device] * self.packed) * layers,
        )

    def draw(
        self,
        what: str,
        times: float,
        rows: float,
        past: float,
        padded: bool,
        adapted: bool = True,
    ) -> Pass:
        """A token step of a generation: one token of each row behind `past` tokens, its logits, and the draw."""
        step = self.read(what, times, rows, 1, past=past, padded=padded, adapted=adapted)
        output = 2 * rows * self.shape.vocabulary * self.shape.hidden
        return replace(
            step,
            flops=step.flops + output,
            weights=step.weights + self._output_weights(),
            moved=step.moved + self._scores(rows, 9),
            kernels=step.kernels + DRAW,
        )

    def logprobs(self, what: str, times: float, states: float) -> Pass:
        """Log-probabilities of tokens after `states` that are there already."""
        output = 2 * states * self.shape.vocabulary * self.shape.hidden
        return Pass(what, times, states, output, self._output_weights(), self._scores(states, 6), 0, 20)

    def step(self, what: str, times: float, settings: Any) -> Pass:
        """An optimizer step: gradients are scaled, and AdamW reads and writes weights, gradients and two moments."""
        numbers, tensors = self.shape.adapter, 2 * self._adapted()
        turns = 8 if settings.optim == "sgd" else 20
        return Pass(what, times, 1, 0, 0, 4.0 * turns * numbers, 0, STEP * tensors)

    # One block, a number of tokens: products, and bytes of other operations.

    def _block(self, block: Block, number: float, keys: float, padded: bool, adapted: bool) -> tuple[float, float]:
        shape, width = self.shape, self.width
        inner = block.queries + block.cached
        flops = 2 * number * (shape.hidden * inner + block.queries * shape.hidden)
        flops += 4 * number * keys * block.queries
        # Two norms (7 states each, in float32) and two sums (3); positions turn queries and keys (10); what attention reads
        # and writes, and its weights once each way.
        moved = (14 * 4 + 6 * width) * shape.hidden + width * (10 * (block.queries + block.cached / 2))
        moved += width * (4 * block.queries + block.cached) + (8 if block.normed else 0) * 4 * block.queries
        moved += 2 * 4 * shape.heads * keys * (3 if shape.eager else 1)
        if adapted:
            moved += width * self._touched(block)
            flops += 2 * number * self.profile.lora.r * self._beside(block)
        networks = self._networks(block, number, adapted)
        return flops + networks[0], number * moved + networks[1]

    def _networks(self, block: Block, number: float, adapted: bool) -> tuple[float, float]:
        """Those of the feed-forward networks alone."""
        hidden, width, rank = self.shape.hidden, self.width, self.profile.lora.r
        flops = moved = 0.0
        for network in block.networks:
            products, experts = 3 if network.gated else 2, max(1, network.experts)
            flops += 2 * number * experts * products * hidden * network.middle
            moved += number * experts * width * 5 * network.middle
            layers = _layers(network)
            if adapted and layers:
                flops += 2 * number * rank * layers * (hidden + network.middle)
                moved += number * width * (3 * layers * (hidden + network.middle) / 2)
            if adapted and network.stack:  # made anew in every pass
                flops += 2 * rank * network.stack
                moved += 3 * width * network.stack
        return flops, moved

    def _touched(self, block: Block) -> float:
        """Numbers of a token that attention's adapters read, and add to."""
        layers = sum(state.adapted for state in block.inputs)
        if not layers:
            return 3 * block.queries * block.out.adapted
        return layers * self.shape.hidden + 2 * (block.queries + block.cached) + 3 * block.queries * block.out.adapted

    def _beside(self, block: Block) -> float:
        """Widths that attention's adapters go from and to."""
        layers = sum(state.adapted for state in block.inputs)
        inner = layers * self.shape.hidden + block.queries + block.cached if layers else 0
        return inner + block.out.adapted * (block.queries + self.shape.hidden)

    def _adapters(self, number: float, share: float) -> float:
        """Products of a forward pass through the adapters alone."""
        rank, blocks = self.profile.lora.r, self.shape.blocks
        total = 0.0
        for block in blocks:
            tokens = number * (share if block is blocks[-1] else 1)
            total += 2 * number * rank * self._beside(block)
            total += sum(2 * tokens * rank * _layers(n) * (self.shape.hidden + n.middle) for n in block.networks)
        return total

    def _first(self, number: float) -> float:
        """Products that would give the gradient of the embeddings, which nothing asks for."""
        block = self.shape.blocks[0]
        layers = sum(state.adapted for state in block.inputs)
        return 2 * number * self.shape.hidden * (block.queries + block.cached + layers * self.profile.lora.r)

    def _dropped(self, number: float) -> float:
        """Bytes of dropout before each adapter: random numbers, mask, product, and the product again on the way back."""
        states = (state for block in self.shape.blocks for state in (*block.inputs, block.out))
        inner = (state for block in self.shape.blocks for network in block.networks for state in network.inputs)
        return 8 * self.width * number * sum(state.adapted * state.width for state in (*states, *inner))

    # What is no block.

    def _ends(self, number: float) -> float:
        return number * self.shape.hidden * (7 * 4 + 2 * self.width)

    def _scores(self, logits: float, turns: float) -> float:
        """Bytes of as many passes over logits in float32."""
        return 4.0 * turns * logits * self.shape.vocabulary

    def _cache(self, rows: float, tokens: float, past: float, padded: bool) -> float:
        """Keys and values that are read from the cache; under a mask they are first repeated for every query head."""
        if not past:
            return 0.0
        total = 0.0
        for block in self.shape.blocks:
            repeated = 4 * block.queries if padded and 2 * block.queries > block.cached else 0
            total += block.cached + repeated
        return self.width * rows * (past + tokens) * total

    def _weights(self, output: bool) -> float:
        """Bytes of the weights that a pass reads: linear layers, and the experts of a mixture, which `other` holds."""
        linear = self.shape.linear * (NF4 if self.packed else self.width)
        return linear + self._experts() * self.width + (self._output_weights() if output else 0)

    def _experts(self) -> float:
        """Weights of a mixture's experts, norms included: many tokens reach all of them."""
        if not any(network.experts for block in self.shape.blocks for network in block.networks):
            return 0.0
        return float(self.shape.other - self.shape.head - self.shape.vocabulary * self.shape.hidden)

    def _output_weights(self) -> float:
        return float(self.width * self.shape.vocabulary * self.shape.hidden)

    # Kernels.

    def _kernels(self, block: Block, adapted: bool) -> float:
        layers = 4 + sum(3 if network.gated else 2 for network in block.networks)
        others = BLOCK + (NORMED if block.normed else 0) + (PACKED[self.device] * layers if self.packed else 0)
        return others + layers + ((LINEAR - 1) * _block_layers(block) if adapted else 0)

    def _adapted(self) -> int:
        """Layers with an adapter."""
        return sum(_block_layers(block) for block in self.shape.blocks)


def _layers(network: Network) -> int:
    return sum(state.adapted for state in network.inputs)


def _block_layers(block: Block) -> int:
    attention = sum(state.adapted for state in (*block.inputs, block.out))
    return attention + sum(_layers(network) for network in block.networks)


def rounded_up(states: float, most: float) -> float:
    """The states whose logits SFT makes: whole chunks of `SFT_AT_ONCE`, or all of its `most` tokens where they are fewer."""
    return min(float(-(-states // SFT_AT_ONCE) * SFT_AT_ONCE), most)
