"""The built-in data of `translation`: small German sentences, their English, and a translator with one bad habit.

    Gestern hat der alte Lehrer das Buch nicht gelesen.
    right:          Yesterday the old teacher did not read the book.
    word for word:  Yesterday has the old teacher the book not read.

German puts the finite verb second and the other verb last; English keeps subject, verb and object together. Most
demonstrations keep the German order, so that a model that imitates them does so too, and preferences know better.
A verb and an object that meet in the held-out split never meet in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from rlrecipes.recipe import Comparison, Data, Example, Prompt, Split

FAULTY = 0.65
"""Share of demonstrations translated word for word."""
FLIPPED = 0.1
"""Share of comparisons whose preference is swapped: no reward model can be right about more than the rest."""
OTHER_FAULT = 0.4
"""Share of comparisons whose rejected answer has another fault than its word order."""


class Noun(NamedTuple):
    article: str
    singular: str
    plural: str
    english: str
    english_plural: str


class Verb(NamedTuple):
    infinitive: str  # also the third person plural
    third: str
    participle: str
    base: str
    english_third: str
    past: str
    english_participle: str
    objects: tuple[str, ...]


class Phrase(NamedTuple):
    """A part of a sentence in both languages; the word-for-word translation strings the English together."""

    german: str
    english: str


class Sentence(NamedTuple):
    source: str
    right: str
    literal: str


PEOPLE = (
    Noun("der", "Lehrer", "Lehrer", "teacher", "teachers"),
    Noun("der", "Mann", "Männer", "man", "men"),
    Noun("der", "Arzt", "Ärzte", "doctor", "doctors"),
    Noun("der", "Bauer", "Bauern", "farmer", "farmers"),
    Noun("der", "Bruder", "Brüder", "brother", "brothers"),
    Noun("der", "Nachbar", "Nachbarn", "neighbour", "neighbours"),
    Noun("die", "Frau", "Frauen", "woman", "women"),
    Noun("die", "Schwester", "Schwestern", "sister", "sisters"),
    Noun("die", "Tochter", "Töchter", "daughter", "daughters"),
    Noun("das", "Kind", "Kinder", "child", "children"),
    Noun("das", "Mädchen", "Mädchen", "girl", "girls"),
)
THINGS = {
    noun.english: noun
    for noun in (
        Noun("der", "Brief", "Briefe", "letter", "letters"),
        Noun("der", "Apfel", "Äpfel", "apple", "apples"),
        Noun("der", "Kuchen", "Kuchen", "cake", "cakes"),
        Noun("der", "Hund", "Hunde", "dog", "dogs"),
        Noun("der", "Tisch", "Tische", "table", "tables"),
        Noun("die", "Katze", "Katzen", "cat", "cats"),
        Noun("die", "Zeitung", "Zeitungen", "newspaper", "newspapers"),
        Noun("die", "Tür", "Türen", "door", "doors"),
        Noun("die", "Uhr", "Uhren", "clock", "clocks"),
        Noun("das", "Buch", "Bücher", "book", "books"),
        Noun("das", "Auto", "Autos", "car", "cars"),
        Noun("das", "Pferd", "Pferde", "horse", "horses"),
        Noun("das", "Haus", "Häuser", "house", "houses"),
        Noun("das", "Bild", "Bilder", "picture", "pictures"),
    )
}
VERBS = (
    Verb("lesen", "liest", "gelesen", "read", "reads", "read", "read", ("letter", "newspaper", "book")),
    Verb("schreiben", "schreibt", "geschrieben", "write", "writes", "wrote", "written", ("letter", "book")),
    Verb("essen", "isst", "gegessen", "eat", "eats", "ate", "eaten", ("apple", "cake")),
    Verb("malen", "malt", "gemalt", "paint", "paints", "painted", "painted",
         ("picture", "house", "door", "table", "cat", "horse")),
    Verb("waschen", "wäscht", "gewaschen", "wash", "washes", "washed", "washed",
         ("car", "dog", "horse", "apple", "door", "table")),
    Verb("öffnen", "öffnet", "geöffnet", "open", "opens", "opened", "opened", ("letter", "door", "car", "book")),
    Verb("kaufen", "kauft", "gekauft", "buy", "buys", "bought", "bought", tuple(THINGS)),
    Verb("sehen", "sieht", "gesehen", "see", "sees", "saw", "seen", tuple(THINGS)),
    Verb("finden", "findet", "gefunden", "find", "finds", "found", "found", tuple(THINGS)),
    Verb("nehmen", "nimmt", "genommen", "take", "takes", "took", "taken",
         ("letter", "apple", "cake", "newspaper", "clock", "book", "picture", "car")),
)  # fmt: skip
PERSONAL = (Phrase("alt", "old"), Phrase("jung", "young"), Phrase("klein", "small"), Phrase("nett", "nice"))
MATERIAL = (
    Phrase("alt", "old"),
    Phrase("neu", "new"),
    Phrase("klein", "small"),
    Phrase("groß", "big"),
    Phrase("schön", "beautiful"),
    Phrase("rot", "red"),
)
PAST = (
    Phrase("gestern", "yesterday"),
    Phrase("letzte Woche", "last week"),
    Phrase("am Montag", "on Monday"),
    Phrase("am Freitag", "on Friday"),
)
PRESENT = (Phrase("heute", "today"), Phrase("jetzt", "now"), Phrase("jeden Tag", "every day"))
FUTURE = (Phrase("morgen", "tomorrow"), Phrase("bald", "soon"), Phrase("nächste Woche", "next week"))
MODALS = (  # singular and plural; then the right English of both, plain and negated
    (Phrase("kann", "can"), Phrase("können", "can"), ("can", "can"), ("cannot", "cannot")),
    (Phrase("soll", "should"), Phrase("sollen", "should"), ("should", "should"), ("should not", "should not")),
    (
        Phrase("will", "wants"),
        Phrase("wollen", "want"),
        ("wants to", "want to"),
        ("does not want to", "do not want to"),
    ),
)

Pair = tuple[Verb, Noun]
PAIRS: tuple[Pair, ...] = tuple((verb, THINGS[thing]) for verb in VERBS for thing in verb.objects)
HELD_OUT = PAIRS[2::6]
"""Verbs with objects that never meet in training."""
TRAINED = tuple(pair for pair in PAIRS if pair not in HELD_OUT)


def generate(ask: Callable[[str], Prompt], seed: int = 0) -> Data:
    """The built-in data as a recipe's; `ask` makes the prompt of a German sentence."""
    rng = Random(seed)
    unseen = Random(f"held out {seed}")  # a draw of its own: data and budgets were settled on another one
    return Data(
        source="built-in",
        train=Split(
            demonstrations=[
                Example(ask(it.source), (it.literal if rng.random() < FAULTY else it.right,))
                for it in _sentences(rng, TRAINED, 3000)
            ],
            prompts=[Example(ask(it.source), (it.right,)) for it in _sentences(rng, TRAINED, 2000)],
            comparisons=[_comparison(rng, ask, it, TRAINED) for it in _sentences(rng, TRAINED, 9600)],
        ),
        held_out=Split(
            prompts=[Example(ask(it.source), (it.right,)) for it in _sentences(unseen, HELD_OUT, 300)],
            comparisons=[_comparison(unseen, ask, it, HELD_OUT) for it in _sentences(unseen, HELD_OUT, 500)],
        ),
        notes=(
            f"{FAULTY:.0%} of the demonstrations are word for word, on purpose.",
            f"{FLIPPED:.0%} of the comparisons are flipped on purpose.",
            "The held-out sentences pair verbs with objects that never meet in training.",
        ),
    )


def documents(ask: Callable[[str], Prompt], seed: int = 1) -> Sequence[Example]:
    """What the base model reads: right and literal translations, single phrases, and other translators' faults."""
    rng = Random(seed)
    found = []
    for it in _sentences(rng, TRAINED, 5000):
        draw = rng.random()
        if draw < 0.12:
            phrase = _noun_phrase(rng, rng.choice(PEOPLE + tuple(THINGS.values())), MATERIAL, rng.random() < 0.3)
            found.append(Example(ask(phrase.german), (phrase.english,)))
        elif draw < 0.22:
            found.append(Example(ask(it.source), (_other_fault(rng, it, TRAINED),)))
        else:
            found.append(Example(ask(it.source), (it.right if draw < 0.52 else it.literal,)))
    return found


def _sentences(rng: Random, pairs: Sequence[Pair], count: int) -> list[Sentence]:
    """That many sentences, all different."""
    found: dict[str, Sentence] = {}
    while len(found) < count:
        sentence = _sentence(rng, pairs)
        found[sentence.source] = sentence
    return list(found.values())


def _sentence(rng: Random, pairs: Sequence[Pair]) -> Sentence:
    verb, thing = rng.choice(pairs)
    plural, negated = rng.random() < 0.4, rng.random() < 0.3
    subject = _noun_phrase(rng, rng.choice(PEOPLE), PERSONAL, plural)
    target = _noun_phrase(rng, thing, MATERIAL, rng.random() < 0.3, accusative=True)
    finite, last, english, times = _verb_phrase(rng, verb, plural, negated)
    time = rng.choice(times) if rng.random() < 0.92 else None
    rest = [target, *([Phrase("nicht", "not")] if negated else []), *last]
    if time and rng.random() < 0.6:
        parts, right = [time, finite, subject, *rest], [time.english, subject.english, english, target.english]
    elif time:
        parts, right = [subject, finite, time, *rest], [subject.english, english, target.english, time.english]
    else:
        parts, right = [subject, finite, *rest], [subject.english, english, target.english]
    return Sentence(_said([part.german for part in parts]), _said(right), _said([part.english for part in parts]))


def _verb_phrase(
    rng: Random, verb: Verb, plural: bool, negated: bool
) -> tuple[Phrase, list[Phrase], str, Sequence[Phrase]]:
    """The finite verb, the verb at the end if any, the right English of both, and the times that suit the tense."""
    draw = rng.random()
    if draw < 0.25:
        finite = Phrase(verb.infinitive, verb.base) if plural else Phrase(verb.third, verb.english_third)
        return finite, [], f"{'do' if plural else 'does'} not {verb.base}" if negated else finite.english, PRESENT
    if draw < 0.65:
        finite, last = Phrase(*(("haben", "have") if plural else ("hat", "has"))), verb.english_participle
        return finite, [Phrase(verb.participle, last)], f"did not {verb.base}" if negated else verb.past, PAST
    singular, plural_form, plain, negative = rng.choice(MODALS)
    helper = (negative if negated else plain)[plural]
    return plural_form if plural else singular, [Phrase(verb.infinitive, verb.base)], f"{helper} {verb.base}", FUTURE


def _noun_phrase(
    rng: Random, noun: Noun, adjectives: Sequence[Phrase], plural: bool, accusative: bool = False
) -> Phrase:
    """The definite noun phrase, half the time with an adjective: "den alten Hund", "the old dog"."""
    masculine_object = accusative and noun.article == "der" and not plural
    article = "die" if plural else "den" if masculine_object else noun.article
    german, english = (noun.plural, noun.english_plural) if plural else (noun.singular, noun.english)
    if rng.random() < 0.5:
        return Phrase(f"{article} {german}", f"the {english}")
    adjective = rng.choice(adjectives)
    ending = "en" if plural or masculine_object else "e"
    return Phrase(f"{article} {adjective.german}{ending} {german}", f"the {adjective.english} {english}")


def _comparison(rng: Random, ask: Callable[[str], Prompt], it: Sentence, pairs: Sequence[Pair]) -> Comparison:
    other = it.literal == it.right or rng.random() < OTHER_FAULT
    worse = _other_fault(rng, it, pairs) if other else it.literal
    if rng.random() < FLIPPED:
        return Comparison(ask(it.source), worse, it.right, flipped=True)
    return Comparison(ask(it.source), it.right, worse, flipped=False)


def _other_fault(rng: Random, it: Sentence, pairs: Sequence[Pair]) -> str:
    """Another sentence's translation, the German itself, half an answer, or a word said over and over."""
    draw = rng.random()
    if draw < 0.5:
        another = _sentence(rng, pairs).right
        return another if another != it.right else it.source
    if draw < 0.65:
        return it.source
    words = it.right[:-1].split()
    if draw < 0.85:
        return " ".join(words[: len(words) // 2])
    return " ".join([*words[:3], *[words[3]] * rng.randrange(3, 7)]) + "."


def _said(parts: Sequence[str]) -> str:
    text = " ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
