"""The cards that `plan` knows: their memory, and the two rates that bound what they compute.

cards_of("4090") -> {"rtx4090": Card(24.0, 165.2, 1008)}
cards_of("24")   -> those of the table whose memory is next to 24 GiB
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from rlrecipes.errors import UserError
from rlrecipes.recipe import unknown


class Card(NamedTuple):
    """One card."""

    gib: float
    """Memory as `nvidia-smi` shows it, with error correction where that is the default."""
    tflops: float | None
    """10^12 operations a second in dense products of bfloat16 that are added up in float32; None before Ampere, which has
    none."""
    gb: float
    """10^9 bytes a second that its memory reads or writes."""


CARDS = {
    "rtx3060": Card(12.0, 25.5, 360),
    "rtx4060ti": Card(16.0, 44.1, 288),
    "rtx4080": Card(16.0, 97.5, 717),
    "rtx3090": Card(24.0, 71.2, 936),
    "rtx4090": Card(24.0, 165.2, 1008),
    "rtx5090": Card(31.8, 209.5, 1792),
    "t4": Card(15.0, None, 320),
    "v100": Card(16.0, None, 900),
    "a10": Card(22.5, 125.0, 600),
    "l4": Card(22.5, 121.0, 300),
    "a6000": Card(48.0, 154.8, 768),
    "l40s": Card(45.0, 362.0, 864),
    "a100-40": Card(40.0, 312.0, 1555),
    "a100": Card(80.0, 312.0, 2039),
    "h100": Card(79.6, 989.0, 3350),
    "h200": Card(140.4, 989.0, 4800),
}
"""The rates are NVIDIA's. Those of GeForce are in its whitepapers on GA102, Ada and Blackwell: products that add in float32
have twice the rate of float32. The others are in data sheets, here without sparsity, and of SXM where there are two forms."""
WITHOUT_BFLOAT16 = tuple(name for name, card in CARDS.items() if card.tflops is None)
"""The cards of the generations before Ampere, Turing and Volta."""
_BESIDE = r"nvidia|geforce|tesla|quadro|gpu|pcie\d?|sxm\d?"
"""What stands beside a card's name: `NVIDIA A100-SXM4-40GB` is `a100-40`."""
NEXT = 0.07
"""A card whose memory is this share away from a number of GiB is one of that size: 22.5 is sold as 24."""


def gib(card: str) -> float:
    """A card's memory in GiB, from its name or a number.

    Raises:
        UserError: it is no name of `CARDS` and no number above 0.
    """
    if (name := known(card)) is not None:
        return CARDS[name].gib
    try:
        room = float(re.sub(r"\s*g(i?b)?$", "", card.strip().lower()))
    except ValueError:
        names = f"give its GiB, or one of {', '.join(CARDS)}"
        raise UserError(unknown("card", card, list(CARDS), names)) from None
    if not (math.isfinite(room) and room > 0):
        raise UserError(f"a card of {card} GiB is none; give a number above 0, or one of {', '.join(CARDS)}")
    return room


def cards_of(card: str) -> dict[str, Card]:
    """The card of a name, or those with bfloat16 whose memory is next to a number of GiB.

    Raises:
        UserError: as `gib`.
    """
    if (name := known(card)) is not None:
        return {name: CARDS[name]}
    room = gib(card)
    return {name: found for name, found in CARDS.items() if found.tflops and abs(found.gib / room - 1) <= NEXT}


def known(card: str) -> str | None:
    """The name in `CARDS` of a card as drivers and shops write it; None for any other, and for a number."""
    words = [word for word in re.split(r"[\s_-]+", card.lower()) if not re.fullmatch(_BESIDE, word)]
    name = "".join(words).removesuffix("gb")
    sizeless = "".join(word for word in words if not re.fullmatch(r"\d+gb", word))
    keys = {key.replace("-", ""): key for key in CARDS}
    spellings = (name, f"rtx{name}", name.removeprefix("rtx"), sizeless)
    return next((keys[spelling] for spelling in spellings if spelling in keys), None)


def without_bfloat16(card: str) -> UserError:
    """The refusal of a profile in bfloat16 on a card that does not compute in it."""
    return UserError(
        f"model.dtype=bfloat16 needs a card that computes in it, which {card} does not; "
        "set model.dtype=float32, or take a card of the Ampere generation or later"
    )
