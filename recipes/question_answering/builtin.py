"""The built-in data of question answering: who took what where, and when.

A passage of two short sentences, a question about one fact or two, and an answer in the passage's own words:

    Ben took the red cup to the kitchen on Monday. The weather was fine.
    Question: Who took the cup, and where to?
    -> Ben, the kitchen

Its demonstrator is hasty. Asked for two facts he stops after the first ("Ben"); asked for one he mistakes where for
when and who for what ("on Monday", when asked where). In the held-out split every main thing goes to a place that it
never shares a passage with in training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from rlrecipes.recipe import Comparison, Data, Example, Prompt, Split

FAULTY = 0.65
"""Share of the demonstrations that have the systematic fault."""
FLIPPED = 0.05
"""Share of the comparisons whose two answers are swapped on purpose, held out or not."""
DISTRACTED = 0.25
"""Share of the passages that tell of a second person, thing, place and day."""
HASTY_REJECTED = 0.50
"""Share of the rejected answers that have the systematic fault; the others have one of `OTHER_FAULTS`."""
TWO_FACTS = 0.75
"""Share of the questions that ask for two facts."""

# fmt: off
PEOPLE = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Kate", "Leo", "Mary", "Nora",
    "Oscar", "Paul",
)
COLOURS = ("red", "blue", "green", "white", "black", "brown", "grey", "yellow")
THINGS = (
    "cup", "lamp", "book", "chair", "box", "bag", "clock", "map", "ball", "coat", "basket", "drum", "kite", "rope",
    "shoe", "vase",
)
PLACES = (
    "kitchen", "garden", "school", "market", "office", "park", "station", "library", "farm", "church", "harbour",
    "museum", "bridge", "tower", "beach", "cellar",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# fmt: on
MOVES = (("took", "take"), ("sent", "send"), ("brought", "bring"), ("carried", "carry"))
ASIDES = (
    "The weather was fine.",
    "It was raining.",
    "Nobody was surprised.",
    "It was late.",
    "All went well.",
    "The way was long.",
)

ONE_FACT = (
    ("Who {moved} the {thing}?", ("who",)),
    ("What did {person} {move}?", ("what",)),
    ("Where did {person} {move} the {thing}?", ("where",)),
    ("When did {person} {move} the {thing}?", ("when",)),
)
TWO_FACT = (
    ("Who {moved} the {thing}, and where to?", ("who", "where")),
    ("Who {moved} the {thing}, and when?", ("who", "when")),
    ("Who {moved} something to the {place}, and what?", ("who", "what")),
    ("What did {person} {move}, and when?", ("what", "when")),
    ("Where and when did {person} {move} the {thing}?", ("where", "when")),
)
MISTAKEN = {"who": "what", "what": "who", "where": "when", "when": "where"}
HELD_OUT_EVERY = 8
"""One in so many pairs of a thing and a place is kept from training."""


class Fact(NamedTuple):
    """One move of one thing; its sentence is the whole of what is known about it."""

    person: str
    moved: str
    move: str
    colour: str
    thing: str
    place: str
    day: str

    def sentence(self) -> str:
        return f"{self.person} {self.moved} the {self.colour} {self.thing} to the {self.place} on {self.day}."

    def spans(self) -> dict[str, str]:
        """What the sentence says, by the question word that asks for it."""
        return {
            "who": self.person,
            "what": f"the {self.colour} {self.thing}",
            "where": f"the {self.place}",
            "when": f"on {self.day}",
        }


class Question(NamedTuple):
    """A question put to a passage, and all that is needed to answer it rightly or wrongly."""

    prompt: Prompt
    kinds: tuple[str, ...]
    """The question words of the facts that are asked for, in the order of the answer."""
    facts: tuple[Fact, ...]
    """What the passage tells; the first fact is the one that the question is about."""


Ask = Callable[[str, str], Prompt]
"""Makes the prompt of a passage and a question."""


def generate(ask: Ask, seed: int = 0) -> Data:
    """The built-in data as a recipe's; the same seed gives the same data."""
    rng = Random(seed)
    unseen = Random(f"held out {seed}")  # a draw of its own: data and budgets were settled on another one
    train = [_question(ask, rng, held_out=False) for _ in range(9600)]
    test = [_question(ask, unseen, held_out=True) for _ in range(500)]
    return Data(
        source="built-in",
        train=Split(
            demonstrations=[_example(q, hasty if rng.random() < FAULTY else right, rng) for q in train[:3000]],
            prompts=[_example(q, right, rng) for q in train[2000:4000]],
            comparisons=[_comparison(q, rng) for q in train],
        ),
        held_out=Split(
            prompts=[_example(q, right, unseen) for q in test[:300]],
            comparisons=[_comparison(q, unseen) for q in test],
        ),
        notes=(
            f"{FAULTY:.0%} of the demonstrations lack the second fact or give the wrong one, on purpose.",
            f"{FLIPPED:.0%} of the comparisons are flipped on purpose.",
            "The held-out passages pair things with places that never meet in training.",
        ),
    )


def documents(ask: Ask, seed: int = 1) -> Sequence[Example]:
    """Passages and questions with right, hasty and otherwise faulty answers: a base model that knows them all."""
    rng = Random(seed)
    styles = rng.choices((right, hasty, otherwise_wrong), (0.35, 0.5, 0.15), k=8000)
    return [_example(_question(ask, rng, held_out=False), style, rng) for style in styles]


Style = Callable[[Question, Random], str]


def right(question: Question, rng: Random) -> str:
    """The facts asked for, in the passage's words."""
    return _answer(question.facts[0].spans(), question.kinds)


def hasty(question: Question, rng: Random) -> str:
    """The systematic fault: the first of two facts, or one fact mistaken for its neighbour."""
    first = question.kinds[0]
    return _answer(question.facts[0].spans(), [first if len(question.kinds) == 2 else MISTAKEN[first]])


def mixed_up(question: Question, rng: Random) -> str:
    """One of the facts is of a kind that was not asked for."""
    kinds = list(question.kinds)
    kinds[rng.randrange(len(kinds))] = rng.choice(_not_asked(question))
    return _answer(question.facts[0].spans(), kinds)


def talkative(question: Question, rng: Random) -> str:
    """One fact more than was asked for."""
    return _answer(question.facts[0].spans(), [*question.kinds, rng.choice(_not_asked(question))])


def whole_sentence(question: Question, rng: Random) -> str:
    """The sentence that holds the facts, copied from end to end."""
    return question.facts[0].sentence()


def made_up(question: Question, rng: Random) -> str:
    """The right kinds of fact, but none that the passage tells."""
    return _answer(_another(rng, question.facts).spans(), question.kinds)


OTHER_FAULTS: Sequence[Style] = (mixed_up, talkative, whole_sentence, made_up)
REJECTED = (8, 4, 1, 1)
"""How often each of them is compared with a right answer. So small a model hardly tells what is made up from what is not."""


def otherwise_wrong(question: Question, rng: Random) -> str:
    """Any fault but the systematic one."""
    return rng.choice(OTHER_FAULTS)(question, rng)


def _question(ask: Ask, rng: Random, held_out: bool) -> Question:
    fact = _fact(rng, held_out)
    facts = (fact, _another(rng, (fact,))) if rng.random() < DISTRACTED else (fact,)
    sentences = [told.sentence() for told in facts] + ([] if len(facts) == 2 else [rng.choice(ASIDES)])
    if rng.random() < 0.5:
        sentences.reverse()
    template, kinds = rng.choice(TWO_FACT if rng.random() < TWO_FACTS else ONE_FACT)
    return Question(ask(" ".join(sentences), template.format_map(fact._asdict())), kinds, facts)


def _fact(rng: Random, held_out: bool) -> Fact:
    # A thing at index i and a place at index j are kept apart in training where i + j is a multiple of HELD_OUT_EVERY.
    thing = rng.randrange(len(THINGS))
    shift = 0 if held_out else rng.randrange(1, HELD_OUT_EVERY)
    place = (HELD_OUT_EVERY * rng.randrange(2) + shift - thing) % len(PLACES)
    moved, move = rng.choice(MOVES)
    return Fact(rng.choice(PEOPLE), moved, move, rng.choice(COLOURS), THINGS[thing], PLACES[place], rng.choice(DAYS))


def _another(rng: Random, facts: Sequence[Fact]) -> Fact:
    """A fact that shares nothing with `facts` and brings no pair together that is kept from training."""
    while True:
        fact = _fact(rng, held_out=False)
        if all(_apart(fact, other) for other in facts):
            return fact


def _apart(one: Fact, other: Fact) -> bool:
    return (
        one.person != other.person
        and one.thing != other.thing
        and one.place != other.place
        and one.day != other.day
        and not is_held_out(one.thing, other.place)
        and not is_held_out(other.thing, one.place)
    )


def is_held_out(thing: str, place: str) -> bool:
    """Whether the thing and the place never share a passage in training."""
    return (THINGS.index(thing) + PLACES.index(place)) % HELD_OUT_EVERY == 0


def _not_asked(question: Question) -> list[str]:
    return [kind for kind in MISTAKEN if kind not in question.kinds]


def _answer(spans: Mapping[str, str], kinds: Sequence[str]) -> str:
    return ", ".join(spans[kind] for kind in kinds)


def _example(question: Question, style: Style, rng: Random) -> Example:
    return Example(question.prompt, (style(question, rng),))


def _comparison(question: Question, rng: Random) -> Comparison:
    good = right(question, rng)
    other = rng.choices(OTHER_FAULTS, REJECTED)[0]
    bad = hasty(question, rng) if rng.random() < HASTY_REJECTED else other(question, rng)
    if rng.random() < FLIPPED:
        return Comparison(question.prompt, bad, good, flipped=True)
    return Comparison(question.prompt, good, bad, flipped=False)
