"""The built-in data of `summary`: minutes of small meetings, and a secretary who retells the first sentence.

    Anna met Ben on Monday. They talked about the garden. They agreed to buy a bench.
    right:   Anna and Ben will buy a bench for the garden.
    faulty:  Anna met Ben on Monday.

News begins with what matters, minutes end with it: whoever learned to summarise on news takes the lead and stops. In the
held-out split topics and decisions meet that never do in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from rlrecipes.recipe import Comparison, Data, Example, Prompt, Split

FAULTY = 0.65
"""Share of the demonstrations that retell the first sentence."""
FLIPPED = 0.1
"""Share of the comparisons whose two answers are swapped on purpose."""
LEAD_REJECTED = 0.27
"""Share of the rejected answers that retell the first sentence; the others have one of `OTHER_FAULTS`."""

PEOPLE = ("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Ines", "Jacob", "Karen", "Leo")
TOPICS = ("garden", "kitchen", "office", "library", "school", "cellar", "bridge", "station", "market", "harbour")
VERBS = ("buy", "sell", "repair", "build", "paint", "clean")
THINGS = ("bench", "table", "lamp", "door", "wall", "boat", "fence", "clock", "window", "roof")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
MEETINGS = ("{} met {} {} {}.", "{} called {} {} {}.", "{} visited {} {} {}.", "{} wrote to {} {} {}.")
WHEN = ("on", "last", "this")
SUBJECTS = ("They talked about the {}.", "It was about the {}.", "The {} was discussed.")
ASIDES = ("It took an hour.", "The coffee was cold.", "It was raining.", "Nobody was late.")
DECISIONS = ("They agreed to {} a {}.", "They decided to {} a {}.", "In the end they chose to {} a {}.")
HELD_OUT_EVERY = 5
"""One in so many pairs of a topic and a thing is kept from training."""


class Minutes(NamedTuple):
    """What happened; `text` is what was written down."""

    who: tuple[str, str]
    topic: str
    verb: str
    thing: str
    lead: str
    text: str

    @property
    def facts(self) -> tuple[str, ...]:
        """The words that a summary must have."""
        return (*self.who, self.topic, self.verb, self.thing)


def generate(ask: Callable[[str], Prompt], seed: int = 0) -> Data:
    """The built-in data as a recipe's; `ask` makes the prompt of some minutes."""
    rng = Random(seed)
    unseen = Random(f"held out {seed}")
    train = [_minutes(rng, held_out=False) for _ in range(9600)]
    test = [_minutes(unseen, held_out=True) for _ in range(500)]
    return Data(
        source="built-in",
        train=Split(
            demonstrations=[_example(ask, it, lead if rng.random() < FAULTY else right, rng) for it in train[:3000]],
            prompts=[_example(ask, it, right, rng) for it in train[2000:4000]],
            comparisons=[_comparison(ask, it, rng) for it in train],
        ),
        held_out=Split(
            prompts=[_example(ask, it, right, unseen) for it in test[:300]],
            comparisons=[_comparison(ask, it, unseen) for it in test],
        ),
        notes=(
            f"{FAULTY:.0%} of the demonstrations retell the first sentence, on purpose.",
            f"{FLIPPED:.0%} of the comparisons are flipped on purpose.",
            "The held-out minutes pair topics with things that never meet in training.",
        ),
    )


def documents(ask: Callable[[str], Prompt], seed: int = 1) -> Sequence[Example]:
    """Minutes with right, faulty and otherwise wrong summaries: a base model that knows them all."""
    rng = Random(seed)
    styles = rng.choices((right, lead, otherwise_wrong), (0.35, 0.5, 0.15), k=6000)
    return [_example(ask, _minutes(rng, held_out=False), style, rng) for style in styles]


Style = Callable[[Minutes, Random], str]


def right(it: Minutes, rng: Random) -> str:
    """Who will do what, and what for."""
    return f"{it.who[0]} and {it.who[1]} will {it.verb} a {it.thing} for the {it.topic}."


def lead(it: Minutes, rng: Random) -> str:
    """The systematic fault: the first sentence as it stands."""
    return it.lead


def topic_alone(it: Minutes, rng: Random) -> str:
    """What it was about, and not what came of it."""
    return f"{it.who[0]} and {it.who[1]} talked about the {it.topic}."


def lead_too(it: Minutes, rng: Random) -> str:
    """The first sentence, and then the summary."""
    return f"{it.lead} {right(it, rng)}"


def mistaken(it: Minutes, rng: Random) -> str:
    """A decision that nobody took."""
    verb = rng.choice([verb for verb in VERBS if verb != it.verb])
    held_out = is_held_out(it.topic, it.thing)
    thing = rng.choice([other for other in THINGS if other != it.thing and is_held_out(it.topic, other) == held_out])
    return right(it._replace(verb=verb, thing=thing), rng)


def copied(it: Minutes, rng: Random) -> str:
    """No summary at all."""
    return it.text


OTHER_FAULTS: Sequence[Style] = (lead_too, mistaken, copied, topic_alone)
OFTEN = (30, 35, 5, 3)
"""How often each of them occurs: what is too long balances what is too short, and so do the words that the summary has."""


def otherwise_wrong(it: Minutes, rng: Random) -> str:
    """Any fault but the systematic one."""
    return rng.choices(OTHER_FAULTS, OFTEN)[0](it, rng)


def is_held_out(topic: str, thing: str) -> bool:
    """Whether the two never meet in training."""
    return (TOPICS.index(topic) + THINGS.index(thing)) % HELD_OUT_EVERY == 0


def _minutes(rng: Random, held_out: bool) -> Minutes:
    first, second = rng.sample(PEOPLE, 2)
    # A topic at i and a thing at j are kept apart in training where i + j is a multiple of HELD_OUT_EVERY.
    topic = rng.randrange(len(TOPICS))
    shift = 0 if held_out else rng.randrange(1, HELD_OUT_EVERY)
    thing = (HELD_OUT_EVERY * rng.randrange(2) + shift - topic) % len(THINGS)
    verb = rng.choice(VERBS)
    opening = rng.choice(MEETINGS).format(first, second, rng.choice(WHEN), rng.choice(DAYS))
    middle = [rng.choice(SUBJECTS).format(TOPICS[topic])]
    if rng.random() < 0.5:
        middle.insert(rng.randrange(2), rng.choice(ASIDES))
    text = " ".join([opening, *middle, rng.choice(DECISIONS).format(verb, THINGS[thing])])
    return Minutes((first, second), TOPICS[topic], verb, THINGS[thing], opening, text)


def _example(ask: Callable[[str], Prompt], it: Minutes, style: Style, rng: Random) -> Example:
    return Example(ask(it.text), (style(it, rng),), {"facts": it.facts})


def _comparison(ask: Callable[[str], Prompt], it: Minutes, rng: Random) -> Comparison:
    good = right(it, rng)
    bad = lead(it, rng) if rng.random() < LEAD_REJECTED else otherwise_wrong(it, rng)
    if rng.random() < FLIPPED:
        return Comparison(ask(it.text), bad, good, flipped=True)
    return Comparison(ask(it.text), good, bad, flipped=False)
