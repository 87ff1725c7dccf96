"""How fast a machine computes: a CPU's rates by a short measurement, a card's by its data sheet and assumed efficiencies.

measured(Sizes(…), {64, 1024}) -> Rates("this CPU, 1 thread", products={64: 9.0e10, 1024: 8.5e10}, moved={…: 4e10}, …)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from rlrecipes.before.passes import LINEAR, Pass, Sizes

LEAST, MOST = 16, 4096
"""Tokens together at which a CPU is measured; fewer and more are taken to be as fast as these."""
SHORT, PACKED = 2e9, 1 << 22
"""Operations of the longest product, and 4-bit weights, that are measured: a CPU takes hundredths of a second for each."""
REPEATS, SUMS, LAYERS = 7, 8, 50
"""Measurements of each rate, and what one of them does: sums of states, and layers that are next to nothing."""
UNCACHED = 1 << 24
"""Numbers that no cache holds: 64 MB."""


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second."""

    where: str
    products: Mapping[int, float]
    """Operations of matrix products, by tokens together."""
    moved: Mapping[int, float]
    """Bytes that other operations read and write, likewise."""
    weights: float
    """Bytes of weights that products read."""
    unpacked: float
    """4-bit weights made whole."""
    kernel: float
    """Seconds that an operation takes at least."""
    queued: bool
    """Whether operations wait in a queue while the one before runs, so that only the longer of both times counts."""


def seconds(each: Pass, rates: Rates) -> float:
    """How long a pass takes, all times that it is done.

    Its products take as long as their arithmetic or as reading their weights, whichever is longer; all else comes on top.
    """
    products = max(each.flops / at(rates.products, each.tokens), each.weights / rates.weights)
    others = each.moved / at(rates.moved, each.tokens) + each.unpacked / rates.unpacked
    started = each.kernels * rates.kernel
    work = products + others
    return each.times * (max(work, started) if rates.queued else work + started)


def at(rates: Mapping[int, float], tokens: float) -> float:
    """The rate for the number of tokens that lies next, as a ratio."""
    return rates[min(rates, key=lambda known: abs(math.log(known) - math.log(max(1, tokens))))]


def rounded(tokens: float, weights: int = 1) -> int:
    """The power of four next to a number of tokens, within what is measured of a layer of so many weights."""
    most = min(MOST, 1 << 2 * int(math.log(max(1, SHORT / (2 * weights)), 4)))
    return max(LEAST, min(most, 1 << 2 * round(math.log(max(1, tokens), 4))))


# A CPU.


def measured(sizes: Sizes, tokens: Collection[float]) -> Rates:
    """The rates of this machine's CPU with as many threads as torch has, at the model's width; takes about a second."""
    import torch
    from torch.nn import functional

    hidden = sizes.shape.hidden
    middle = max([network.middle for block in sizes.shape.blocks[:1] for network in block.networks], default=hidden)
    dtype = getattr(torch, sizes.profile.model.dtype)
    numbers = sorted({rounded(each, hidden * middle) for each in tokens} | {LEAST})
    with torch.no_grad():
        weight, states = torch.randn(middle, hidden, dtype=dtype), torch.randn(max(numbers), hidden, dtype=dtype)
        sums = [torch.randn(max(numbers), hidden, dtype=dtype) for _ in range(SUMS)]
        whole = torch.randn(UNCACHED)
        works: dict[str, Callable[[], object]] = {
            "weights": whole.sum,
            "kernel": _small_layer(),
        }
        for number in numbers:
            works[f"products {number}"] = partial(functional.linear, states[:number], weight)
            works[f"moved {number}"] = partial(_summed, [each[:number] for each in sums])
        unpacked = 0
        if sizes.packed:
            from bitsandbytes import functional as quantized

            few = weight[: max(1, PACKED // hidden)].float()
            packed, state = quantized.quantize_4bit(few, quant_type="nf4", compress_statistics=True)
            works["unpacked"] = lambda: quantized.dequantize_4bit(packed, state)
            unpacked = few.numel()
        took = times(works)
    row, threads = states[:1].nbytes, torch.get_num_threads()
    return Rates(
        where=f"this CPU's rates with {threads} {'thread' if threads == 1 else 'threads'}, measured just now",
        products={number: 2 * number * hidden * middle / took[f"products {number}"] for number in numbers},
        moved={number: 3 * (SUMS - 1) * row * number / took[f"moved {number}"] for number in numbers},
        weights=whole.nbytes / took["weights"],
        unpacked=unpacked / took["unpacked"] if sizes.packed else math.inf,
        kernel=took["kernel"] / (LAYERS * LINEAR),
        queued=False,
    )


def _summed(states: Sequence[Any]) -> None:
    total = states[0]
    for state in states[1:]:
        total = total + state


def _small_layer() -> Callable[[], object]:
    """Runs a linear layer with an adapter, so small that only what Python, PyTorch and PEFT do around its products counts.

    They are the commonest operations of all.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from rlrecipes.model.adapters import add_in_place

    bare: Any = torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False))
    model = get_peft_model(bare, LoraConfig(r=4, target_modules=["0"]))
    add_in_place(model, "default")
    layer, state = model.base_model.model[0], torch.randn(1, 16)
    return lambda: [layer(state) for _ in range(LAYERS)]


def times(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of each of some works. They take turns, so that what else the machine does meets all of them alike;
    the time of other processes does not count."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(REPEATS + 1):
        for name, run in works.items():
            start = time.thread_time()
            run()
            if turn:  # the first time, libraries are loaded and memory is got
                taken[name].append(time.thread_time() - start)
    return {name: max(1e-9, median(found)) for name, found in taken.items()}
