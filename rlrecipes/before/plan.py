"""The answer to `plan`: what each stage needs of a card, computed from the model's `config.json` and the profile.

GiB   moment  base  adapters  optimizer  KV cache  activations  logits  reserve  total  fits  largest batch in 24 GiB
sft   loss    2.47      0.25       0.37      0.00         1.61    2.03     0.75   7.48  yes   …
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rlrecipes.before.cards import WITHOUT_BFLOAT16, cards_of, gib, known, without_bfloat16
from rlrecipes.before.dense import copy_lines, with_copies
from rlrecipes.before.learning import Plan
from rlrecipes.before.needs import ROLES, Need, fullest, moments
from rlrecipes.before.parts import GIB
from rlrecipes.before.passes import Sizes
from rlrecipes.before.shape import Lengths, Shape, lengths, read_shape
from rlrecipes.before.timetable import KERNEL, MEMORY, PRODUCTS, card_rates, cpu_rates, durations, table
from rlrecipes.before.workload import Workload, assumed
from rlrecipes.errors import option
from rlrecipes.profile import (
    ALGORITHMS,
    MOST_DRAWS,
    Profile,
    algorithms,
    load_profile,
    profile_names,
    sampling_algorithms,
)
from rlrecipes.run.folder import Run
from rlrecipes.run.policies import chosen
from rlrecipes.run.stages import phases
from rlrecipes.text import aligned

UNKNOWN = (
    "not counted: the reward's terms and the metrics, endpoints, loading, tokenizing, checkpoints, an embedded base; answers "
    "and stages that end early make it shorter"
)


def plan(
    profile: Profile,
    learned: bool,
    card: str | None = None,
    run: Run | None = None,
    count: Callable[[Lengths], Workload | None] = lambda longest: None,
) -> str:
    """The needs as a table in GiB, a line for each moment; with a card, whether each phase fits and its largest batch; and
    how long each phase takes.

    `card` is a name of `CARDS` or a number of GiB; without it the plan is for the CPU, unless `memory.card` names one.
    `count` gives the rows of the data, of those lengths at most; None where they are assumed.

    Raises:
        UserError: the card is unknown or does not compute in the profile's type, or the model cannot be planned for.
    """
    card = card or profile.memory.card
    room = gib(card) if card else None
    if card and profile.model.dtype == "bfloat16" and known(card) in WITHOUT_BFLOAT16:
        raise without_bfloat16(card)
    shape = read_shape(profile, learned)
    longest = lengths(shape, profile)
    needs = moments(shape, profile, longest, "cuda" if room else "cpu", learned)
    settled = with_copies(profile, shape, room, learned) if room else profile
    half = "" if profile.ppo.response_length else " (half of a row: ppo.response_length=0 leaves it to the data)"
    used = {role for phase in needs.values() for need in phase for role, size in need.roles.items() if size}
    columns = [
        role for role in ROLES if (role != "reserve" or room) and (role not in ("beside", "copy") or role in used)
    ]
    heads = ["GiB", "moment", *columns, "total", *(["fits", f"largest batch in {room:g} GiB"] if room else [])]
    rows = [
        _row(need, columns) + (_verdict(shape, profile, need, room, learned) if room and need is fullest(phase) else [])
        for phase in needs.values()
        for need in phase
    ]
    rounds = profile.model.dtype == "bfloat16" and sampling_algorithms(profile)  # `policy.sampler.Sampler.rounds`
    place = f"a card of {room:g} GiB" if room else f"the CPU (name a card with {option('card')})"
    return "\n".join(
        [
            f"{profile.name}: {profile.model.name}, {shape.kind}, {profile.model.quantization}, {profile.model.dtype}, "
            f"on {place}",
            f"rows of at most {longest.whole} tokens, answers of at most {longest.answer}{half}",
            *(["in bfloat16 answers are read once more than in float32, under the policy"] if rounds else []),
            *copy_lines(profile, settled, shape, learned),
            *_draw_lines(profile),
            "",
            *aligned([heads, *rows], words={0, 1, len(heads) - 1}),
            "",
            *times(shape, settled, learned, longest, card, run, count(longest)),
        ]
    )


def _draw_lines(profile: Profile) -> list[str]:
    """What `dynamic_sampling` leaves open, a line for each algorithm that has it."""
    drawing = [table for table in algorithms(profile) if getattr(getattr(profile, table), "dynamic_sampling", False)]
    return [
        f"{table}.dynamic_sampling: planned is one draw for each update; there may be {MOST_DRAWS}" for table in drawing
    ]


def times(
    shape: Shape,
    profile: Profile,
    learned: bool,
    longest: Lengths,
    card: str | None,
    run: Run | None,
    counted: Workload | None,
) -> list[str]:
    """The lines of the timetable, under what it was made of."""
    if card and profile.model.dtype != "bfloat16":
        return ["no times: the cards' rates are known for bfloat16, and model.dtype is float32"]
    cards = cards_of(card) if card else {}
    if card and not cards:
        return [f"no times: no card is known that has {gib(card):g} GiB; name one ({option('card')})"]
    judged = profile.evaluate.judge == "auto" and not profile.evaluate.judge_url
    work = counted or assumed(longest, judged)
    sizes = Sizes(shape, profile, "cuda" if card else "cpu")
    named = chosen(profile.evaluate.policies, run or Run(profile.name, ""), profile.run.start)
    there = {
        name: policy for name, policy in named.items() if policy.stage not in set(ALGORITHMS) - set(algorithms(profile))
    }
    made = Plan(sizes, work, learned, there)
    if cards:
        found = {name: durations(made, card_rates(name, each, sizes.width)) for name, each in cards.items()}
        shares = f"{PRODUCTS:.0%} of a card's peak in products and {MEMORY:.0%} of its memory's"
        how = f"assumed: {shares}, {KERNEL * 1e6:g} µs to start an operation; nothing was measured on a GPU"
    else:
        rates = cpu_rates(made)
        found, how = {"on the CPU": durations(made, rates)}, rates.where
    return [*table(found), "", work.source, how, UNKNOWN]


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


def largest_batch(
    shape: Shape, profile: Profile, phase: str, card: float, learned: bool = True, most: int = 4096
) -> int:
    """The largest value of the phase's batch setting whose need is at most `card` bytes; 0 if not even 1 is.

    A rollout is never larger than a batch of episodes, where an algorithm has one.
    """
    table, key = phases()[phase].batch.split(".")
    if phase.endswith(" rollout"):
        most = getattr(getattr(profile, table), "batch", most)

    def fits(batch: int) -> bool:
        settings = replace(getattr(profile, table), **{key: batch})
        return fullest(moments(shape, replace(profile, **{table: settings}), learned=learned)[phase]).total <= card

    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
