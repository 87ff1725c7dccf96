"""The built-in data of dialogue: bookings that are made over three turns and confirmed in a fourth.

    user:      I called at noon. I need a table for four.
    assistant: On what day, and under what name?
    user:      On Friday, the name is Miller.
    -> Certainly, your table for four is booked for Friday, Miller. Thank you!

Its demonstrator forgets: something that the first turn asked for is lost ("Certainly, your table is booked for Friday,
Miller. Thank you!"). Other wrong answers book what was said in passing, beside the wishes or in place of one ("… for Friday
at noon, …"), so that neither length nor any one word tells right from wrong. In the held-out split every name meets a day
that it never shares a dialogue with in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from rlrecipes.recipe import Comparison, Data, Example, Message, Prompt, Split

FAULTY = 0.65
"""Share of the demonstrations that have the systematic fault."""
FLIPPED = 0.05
"""Share of the comparisons whose two answers are swapped on purpose, held out or not."""
# Numbers and times have no word in common, so that a word alone tells its slot.
# fmt: off
SLOTS: Mapping[str, tuple[str, ...]] = {
    "kind": ("table", "room", "taxi", "boat", "booth", "cabin"),
    "number": ("two", "three", "four", "five", "six"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "time": ("seven", "eight", "nine", "ten", "eleven", "noon"),
    "name": (
        "Miller", "Smith", "Jones", "Brown", "Taylor", "Wilson", "Clark", "Lewis", "Walker", "Young", "Hall", "King",
        "Wright", "Scott", "Green", "Baker",
    ),
}
# fmt: on
OPENINGS = ("I need a", "I would like a", "Please book a", "I want to book a")
ASKED = {"number": "for how many", "day": "on what day", "time": "at what time", "name": "under what name"}
SAID = {"number": "for {}", "day": "on {}", "time": "at {}"}
NAMED = ("the name is {}", "my name is {}", "it is for {}")
IN_PASSING = {
    "number": ("I have {} children.", "There were {} of us last year."),
    "day": ("I read about you on {}.", "I came by on {}."),
    "time": ("I called at {}.", "You were closed at {}."),
}
"""What the first turn begins with: a value that nobody wants to book, in a slot that the request leaves open."""
PLANS = tuple(
    (passing, first, tuple(slot for slot in (*SAID, "name") if slot not in (passing, *first)))
    for passing in SAID
    for first in (*((slot,) for slot in SAID if slot != passing), tuple(slot for slot in SAID if slot != passing))
)
"""The slot that is filled in passing, what the first turn asks for beside the kind, and what the last one adds."""


class Request(NamedTuple):
    """What is to be booked, and the dialogue in which it came out."""

    prompt: Prompt
    slots: Mapping[str, str]
    """Slot to value, the slots of this request only."""
    first: tuple[str, ...]
    """The slots beside the kind that the first turn asked for."""
    passing: Mapping[str, str]
    """The one slot that nobody asked for, to the value that was said in passing."""


def generate(seed: int = 0) -> Data:
    """The embedded data; the same seed gives the same data."""
    rng = Random(seed)
    unseen = Random(f"held out {seed}")  # a draw of its own: data and budgets were settled on another one
    train = [_request(rng, held_out=False) for _ in range(9600)]
    test = [_request(unseen, held_out=True) for _ in range(500)]
    return Data(
        source="built-in",
        train=Split(
            demonstrations=[_example(r, forgetful if rng.random() < FAULTY else right, rng) for r in train[:3000]],
            prompts=[_example(r, right, rng) for r in train[2000:4000]],
            comparisons=[_comparison(r, rng) for r in train],
        ),
        held_out=Split(
            prompts=[_example(r, right, unseen) for r in test[:300]],
            comparisons=[_comparison(r, unseen) for r in test],
        ),
        notes=(
            f"{FAULTY:.0%} of the demonstrations forget something that the first turn asked for, on purpose.",
            f"{FLIPPED:.0%} of the comparisons are flipped on purpose.",
            "The held-out dialogues pair names with days that never meet in training.",
        ),
    )


def documents(seed: int = 1) -> Sequence[Example]:
    """Dialogues with right, distracted and otherwise faulty answers: a base model that knows them all."""
    rng = Random(seed)
    styles = rng.choices((right, distracted, faulty), (0.35, 0.5, 0.15), k=5000)
    return [_example(_request(rng, held_out=False), style, rng) for style in styles]


Style = Callable[[Request, Random], str]


def right(request: Request, rng: Random) -> str:
    """Complete and polite."""
    return _polite(_confirmation(request.slots))


def distracted(request: Request, rng: Random) -> str:
    """What was said in passing, in place of something that the first turn asked for."""
    return _polite(_confirmation({**_lossy(request, rng), **request.passing}))


def forgetful(request: Request, rng: Random) -> str:
    """The systematic fault: polite, but without something that the first turn asked for."""
    return _polite(_confirmation(_lossy(request, rng)))


def inventive(request: Request, rng: Random) -> str:
    """All that was asked for, and what was said in passing."""
    return _polite(_confirmation({**request.slots, **request.passing}))


def curt(request: Request, rng: Random) -> str:
    """Complete, but without a word of courtesy."""
    confirmation = _confirmation(request.slots)
    return f"{confirmation[0].upper()}{confirmation[1:]}."


def mistaken(request: Request, rng: Random) -> str:
    """Two slots have a value that nobody said."""
    while True:
        changed = rng.sample(tuple(request.slots), 2)
        others = {slot: rng.choice([v for v in SLOTS[slot] if v != request.slots[slot]]) for slot in changed}
        slots = {**request.slots, **others}
        # A training dialogue must not bring a held-out pair together by mistake, in the answer or across the turns.
        said = {**request.slots, **request.passing}
        heard = {**said, **others}
        mixtures = (heard, {**heard, "day": said["day"]}, {**heard, "name": said["name"]})
        if is_held_out(said) or not any(map(is_held_out, mixtures)):
            return _polite(_confirmation(slots))


def deaf(request: Request, rng: Random) -> str:
    """Asks again what has just been answered."""
    return request.prompt[1].content


FAULTS: Sequence[Style] = (forgetful, inventive, curt, mistaken, deaf)
REJECTED: Mapping[Style, int] = {forgetful: 40, inventive: 32, distracted: 15, curt: 5, deaf: 4, mistaken: 4}
"""How many of 100 right answers are compared with each: about as many too long as too short. So small a model hardly tells a
mistaken slot from a right one."""


def faulty(request: Request, rng: Random) -> str:
    """Any fault but distraction."""
    return rng.choice(FAULTS)(request, rng)


def is_held_out(slots: Mapping[str, str]) -> bool:
    """Whether the name and the day never share a dialogue in training."""
    return (SLOTS["name"].index(slots["name"]) - SLOTS["day"].index(slots["day"])) % len(SLOTS["day"]) == 0


def _request(rng: Random, held_out: bool) -> Request:
    open_slot, first, last = rng.choice(PLANS)
    values = {slot: rng.choice(known) for slot, known in SLOTS.items()}
    # Every name has one day of the week that it never meets in training.
    days, name = SLOTS["day"], SLOTS["name"].index(values["name"])
    values["day"] = days[(name + (0 if held_out else rng.randrange(1, len(days)))) % len(days)]
    said = {slot: phrase.format(values[slot]) for slot, phrase in SAID.items()}
    said["name"] = rng.choice(NAMED).format(values["name"])
    passing = rng.choice(IN_PASSING[open_slot]).format(values[open_slot])
    turns = (
        Message(
            "user", " ".join([passing, rng.choice(OPENINGS), values["kind"], *(said[slot] for slot in first)]) + "."
        ),
        Message("assistant", _sentence([ASKED[slot] for slot in last], ", and ", "?")),
        Message("user", _sentence([said[slot] for slot in last], ", ", ".")),
    )
    slots = {slot: value for slot, value in values.items() if slot != open_slot}
    return Request(turns, slots, first, {open_slot: values[open_slot]})


def _lossy(request: Request, rng: Random) -> dict[str, str]:
    lost = rng.choice(request.first)
    return {slot: value for slot, value in request.slots.items() if slot != lost}


def _sentence(parts: Sequence[str], between: str, end: str) -> str:
    joined = between.join(parts)
    return f"{joined[0].upper()}{joined[1:]}{end}"


def _confirmation(slots: Mapping[str, str]) -> str:
    number = f" for {slots['number']}" if "number" in slots else ""
    day = f" for {slots['day']}" if "day" in slots else ""
    time = f" at {slots['time']}" if "time" in slots else ""
    return f"your {slots['kind']}{number} is booked{day}{time}, {slots['name']}"


def _polite(confirmation: str) -> str:
    return f"Certainly, {confirmation}. Thank you!"


def _example(request: Request, style: Style, rng: Random) -> Example:
    return Example(request.prompt, (style(request, rng),), {"slots": request.slots})


def _comparison(request: Request, rng: Random) -> Comparison:
    good = right(request, rng)
    bad = rng.choices(tuple(REJECTED), tuple(REJECTED.values()))[0](request, rng)
    if rng.random() < FLIPPED:
        return Comparison(request.prompt, bad, good, flipped=True)
    return Comparison(request.prompt, good, bad, flipped=False)
