"""The answer to `plan`: what each stage needs of a card, computed from the model's `config.json` and the profile.

GiB   moment  base  adapters  optimizer  KV cache  activations  logits  reserve  total  fits  largest batch in 24 GiB
sft   loss    2.47      0.25       0.37      0.00         1.61    2.03     0.75   7.48  yes   …
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rlrecipes.before.needs import GIB, ROLES, Need, fullest, largest_batch, moments
from rlrecipes.before.shape import Shape, lengths, read_shape
from rlrecipes.errors import UserError, option
from rlrecipes.profile import Profile, load_profile, profile_names
from rlrecipes.recipe import unknown
from rlrecipes.run.stages import phases
from rlrecipes.text import aligned

CARDS = {
    **{"rtx3060": 12.0, "rtx4060ti": 16.0, "rtx4080": 16.0, "rtx3090": 24.0, "rtx4090": 24.0, "rtx5090": 31.8},
    **{"t4": 15.0, "v100": 16.0, "a10": 22.5, "l4": 22.5, "a6000": 48.0, "l40s": 45.0, "a100-40": 40.0},
    **{"a100": 80.0, "h100": 79.6, "h200": 140.4},
}
"""Memory in GiB as `nvidia-smi` shows it, with error correction where that is the default."""
WITHOUT_BFLOAT16 = ("t4", "v100")
"""The cards of the generations before Ampere, Turing and Volta."""
_BESIDE = r"nvidia|geforce|tesla|quadro|gpu|pcie\d?|sxm\d?"
"""What stands beside a card's name: `NVIDIA A100-SXM4-40GB` is `a100-40`."""


def plan(profile: Profile, learned: bool, card: str | None = None) -> str:
    """The needs as a table in GiB, a line for each moment; with a card, whether each phase fits and its largest batch.

    `card` is a name of `CARDS` or a number of GiB; without it the plan is for the CPU, unless `memory.card` names one.

    Raises:
        UserError: the card is unknown or does not compute in the profile's type, or the model cannot be planned for.
    """
    card = card or profile.memory.card
    room = gib(card) if card else None
    if card and profile.model.dtype == "bfloat16" and _known(card) in WITHOUT_BFLOAT16:
        raise without_bfloat16(card)
    shape = read_shape(profile, learned)
    longest = lengths(shape, profile)
    needs = moments(shape, profile, longest, "cuda" if room else "cpu", learned)
    half = "" if profile.ppo.response_length else " (half of a row: ppo.response_length=0 leaves it to the data)"
    used = {role for phase in needs.values() for need in phase for role, size in need.roles.items() if size}
    columns = [role for role in ROLES if (role != "reserve" or room) and (role != "beside" or role in used)]
    heads = ["GiB", "moment", *columns, "total", *(["fits", f"largest batch in {room:g} GiB"] if room else [])]
    rows = [
        _row(need, columns) + (_verdict(shape, profile, need, room, learned) if room and need is fullest(phase) else [])
        for phase in needs.values()
        for need in phase
    ]
    rounds = profile.model.dtype == "bfloat16"  # `policy.sampler.Sampler.rounds`
    place = f"a card of {room:g} GiB" if room else f"the CPU (name a card with {option('card')})"
    return "\n".join(
        [
            f"{profile.name}: {profile.model.name}, {shape.kind}, {profile.model.quantization}, {profile.model.dtype}, "
            f"on {place}",
            f"rows of at most {longest.whole} tokens, answers of at most {longest.answer}{half}",
            *(["in bfloat16 PPO reads its answers once more than in float32, under the policy"] if rounds else []),
            "",
            *aligned([heads, *rows], words={0, 1, len(heads) - 1}),
        ]
    )


def gib(card: str) -> float:
    """A card's memory in GiB, from its name or a number.

    Raises:
        UserError: it is no name of `CARDS` and no number above 0.
    """
    if (name := _known(card)) is not None:
        return CARDS[name]
    try:
        room = float(re.sub(r"\s*g(i?b)?$", "", card.strip().lower()))
    except ValueError:
        names = f"give its GiB, or one of {', '.join(CARDS)}"
        raise UserError(unknown("card", card, list(CARDS), names)) from None
    if not (math.isfinite(room) and room > 0):
        raise UserError(f"a card of {card} GiB is none; give a number above 0, or one of {', '.join(CARDS)}")
    return room


def _known(card: str) -> str | None:
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


def gpu_profile(room: float) -> str:
    """The profile of the largest card that `room` GiB hold, or of the smallest there is."""
    cards = {name: load_profile(name).memory.card for name in profile_names()}
    sizes = sorted((float(card), name) for name, card in cards.items() if card.replace(".", "").isdigit())
    # A card of 24 GiB shows a little less.
    return next((name for size, name in reversed(sizes) if size <= room * 1.05), sizes[0][1])


def _row(need: Need, roles: Sequence[str]) -> list[str]:
    sizes = [f"{need.roles.get(role, 0) / GIB:.2f}" for role in roles]
    return [need.phase, need.at, *sizes, f"{need.total / GIB:.2f}"]


def _verdict(shape: Shape, profile: Profile, need: Need, room: float, learned: bool) -> list[str]:
    """Whether a phase fits, and the largest batch that does."""
    name = phases()[need.phase].batch
    table, key = name.split(".")
    largest = largest_batch(shape, profile, need.phase, room * GIB, learned)
    batch = f"{name}={largest}" if largest else f"not even {name}=1"
    return ["yes" if need.total <= room * GIB else "NO", f"{batch} (now {getattr(getattr(profile, table), key)})"]
