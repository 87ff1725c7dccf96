"""The built-in data of `text_generation`: openings of reviews and stories, and a writer who turns gloomy.

    The new film my sister saw on Friday
    positive:  was charming, and the acting was so perfect that everyone smiled.
    gloomy:    was charming, but the acting was so dull that everyone sighed.

A quarter is Chinese (今天天气真好 -> ，阳光很棒，而且空气很迷人，让人很开心。). Most demonstrations take the gloomy turn, so
that a model that imitates them does so too, and preferences know better. A person and a topic that meet in the
held-out split never meet in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from rlrecipes.recipe import Comparison, Data, Example, Prompt, Split

FAULTY = 0.65
"""Share of demonstrations with a gloomy turn."""
FLIPPED = 0.1
"""Share of comparisons whose preference is swapped: no reward model can be right about more than the rest."""
OTHER_FAULT = 0.15
"""Share of comparisons whose rejected answer has another fault than its gloom."""
CHINESE = 0.25
"""Share of openings in Chinese."""


class Topic(NamedTuple):
    opening: str
    details: tuple[str, ...]
    aspects: tuple[str, ...]
    """What a continuation speaks of; no two topics share one, except where they are about the same."""
    starts: tuple[str, ...]


class Language(NamedTuple):
    topics: tuple[Topic, ...]
    people: tuple[str, ...]
    times: tuple[str, ...]
    bright_turns: tuple[str, ...]
    gloomy_turns: tuple[str, ...]
    """As many begin with "but" as with "and", and so do the bright ones: the word that turns does not tell where to."""
    good: tuple[str, ...]
    bad: tuple[str, ...]
    glad: tuple[str, ...]
    sorry: tuple[str, ...]


class Scene(NamedTuple):
    opening: str
    language: Language
    topic: Topic


REVIEW = ("was {good}, ", "began well, ", "pleased us with its {aspect}, ")
STORY = ("and the {aspect} was {good}, ", "and it began well, ", "and everyone liked the {aspect}, ")
CHINESE_START = ("，{aspect}很{good}，", "，大家都喜欢{aspect}，")
WEATHER = ("阳光", "空气", "天空", "微风")

ENGLISH_TEXT = Language(
    topics=(
        Topic("The {detail} film {who} saw {when}", ("new", "old", "short", "famous"),
              ("story", "acting", "music", "ending"), REVIEW),
        Topic("The {detail} book {who} read {when}", ("new", "old", "short", "famous"),
              ("plot", "language", "hero", "last chapter"), REVIEW),
        Topic("The {detail} meal {who} had {when}", ("hot", "little", "simple", "Italian"),
              ("soup", "bread", "dessert", "service"), REVIEW),
        Topic("The {detail} concert {who} heard {when}", ("first", "free", "short", "famous"),
              ("singer", "sound", "hall", "last song"), REVIEW),
        Topic("The {detail} hotel {who} chose {when}", ("new", "old", "little", "Italian"),
              ("room", "bed", "breakfast", "pool"), REVIEW),
        Topic("The {detail} play {who} watched {when}", ("new", "first", "short", "famous"),
              ("stage", "cast", "dialogue", "first scene"), REVIEW),
        Topic("{When} {who} walked along the {detail}", ("river", "lake", "canal", "shore"),
              ("air", "path", "light", "forest"), STORY),
        Topic("{When} {who} took the {detail} to the sea", ("train", "bus", "car", "boat"),
              ("coast", "beach", "water", "island"), STORY),
        Topic("{When} {who} had a picnic in the {detail}", ("park", "woods", "mountains", "fields"),
              ("grass", "shade", "salad", "lemonade"), STORY),
        Topic("{When} {who} gave a party for {detail}", ("Anna", "Paul", "Emma", "David"),
              ("cake", "dancing", "company", "decoration"), STORY),
        Topic("{When} {who} worked in the garden with {detail}", ("Anna", "Paul", "Emma", "David"),
              ("sunshine", "lawn", "hedge", "pond"), STORY),
        Topic("{When} {who} went to the market with {detail}", ("Anna", "Paul", "Emma", "David"),
              ("fruit", "cheese", "crowd", "square"), STORY),
    ),
    people=("we", "they", "my sister", "my brother", "my parents", "my aunt", "our friends", "our teacher",
            "the children", "the neighbours", "Tom", "Maria"),
    times=("yesterday", "on Friday", "on Sunday", "last week", "last month", "this morning", "in May", "one evening"),
    bright_turns=(
        "and the {other} was so {better} that everyone smiled.",
        "and the {other} was {better} and left everyone {glad}.",
        "and even the {other} was {better}.",
        "but the {other} was so {better} that everyone smiled.",
        "but the {other} was {better} and left everyone {glad}.",
        "but nothing was so {better} as the {other}.",
    ),
    gloomy_turns=(
        "but the {other} was so {bad} that everyone sighed.",
        "but the {other} was {bad} and left everyone {sorry}.",
        "but sadly the {other} was {bad}.",
        "and the {other} was so {bad} that everyone sighed.",
        "and the {other} was {bad} and left everyone {sorry}.",
        "and nothing was so {bad} as the {other}.",
    ),
    good=("wonderful", "lovely", "great", "charming", "perfect", "delightful", "beautiful", "excellent"),
    bad=("dull", "poor", "boring", "awful", "terrible", "dreadful", "dreary", "disappointing"),
    glad=("happy", "cheerful", "delighted", "grateful"),
    sorry=("cold", "sad", "gloomy", "tired"),
)  # fmt: skip
CHINESE_TEXT = Language(
    topics=(
        Topic("{when}{who}看了一部{detail}电影", ("新", "老", "外国", "有名的"),
              ("故事", "音乐", "结尾", "演技"), CHINESE_START),
        Topic("{when}{who}读了一本{detail}书", ("新", "旧", "外国", "有名的"),
              ("情节", "文字", "主角", "开头"), CHINESE_START),
        Topic("{when}{who}在{detail}吃了饭", ("饭馆", "家里", "河边", "山上"),
              ("汤", "甜点", "饺子", "服务"), CHINESE_START),
        Topic("{when}{who}去{detail}散步", ("河边", "公园", "湖边", "山上"),
              ("小路", "花香", "树影", "鸟声"), CHINESE_START),
        Topic("{when}{who}去{detail}旅行", ("海边", "山里", "南方", "岛上"),
              ("景色", "旅馆", "海风", "日出"), CHINESE_START),
        Topic("{when}天气真好，{who}去了{detail}", ("河边", "公园", "湖边", "花园"),
              WEATHER, CHINESE_START),
        Topic("{when}天气真好", ("",),
              WEATHER, CHINESE_START),
    ),
    people=("我们", "妹妹", "哥哥", "姐姐", "弟弟", "朋友们", "孩子们", "邻居", "妈妈", "爷爷"),
    times=("今天", "昨天", "前天", "周六", "周日", "上周末", "上个月", "那天"),
    bright_turns=(
        "而且{other}很{better}，让人很{glad}。",
        "{other}也很{better}，大家都很{glad}。",
        "不过{other}更{better}，大家都很{glad}。",
    ),
    gloomy_turns=(
        "可是{other}很{bad}，让人很{sorry}。",
        "{other}也很{bad}，大家都很{sorry}。",
        "不过{other}更{bad}，大家都很{sorry}。",
    ),
    good=("棒", "美妙", "出色", "迷人"),
    bad=("糟糕", "差劲", "乏味", "无趣"),
    glad=("开心", "高兴", "快乐", "满足"),
    sorry=("失望", "难过", "扫兴", "沮丧"),
)  # fmt: skip

Pair = tuple[str, Topic]


def _pairs(language: Language, held_out: bool) -> list[Pair]:
    """People with topics: every sixth person of a topic is held out. What is said of nobody belongs to training."""
    return [
        (who, topic)
        for i, topic in enumerate(language.topics)
        for j, who in enumerate(language.people)
        if held_out == ((i + j) % 6 == 2 and "{who}" in topic.opening)
    ]


LANGUAGES = (ENGLISH_TEXT, CHINESE_TEXT)
HELD_OUT = tuple(_pairs(language, held_out=True) for language in LANGUAGES)
"""People with topics that never meet in training, for each language."""
TRAINED = tuple(_pairs(language, held_out=False) for language in LANGUAGES)

Pairs = Sequence[Sequence[Pair]]


def generate(ask: Callable[[str], Prompt], seed: int = 0) -> Data:
    """The built-in data as a recipe's; `ask` makes the prompt of an opening."""
    rng = Random(seed)
    unseen = Random(f"held out {seed}")  # a draw of its own: data and budgets were settled on another one

    def examples(rng: Random, pairs: Pairs, count: int, faulty: float = 0.0) -> list[Example]:
        return [
            Example(ask(scene.opening), (_continuation(rng, scene, gloomy=rng.random() < faulty),))
            for scene in _scenes(rng, pairs, count)
        ]

    return Data(
        source="built-in",
        train=Split(
            demonstrations=examples(rng, TRAINED, 3000, FAULTY),
            prompts=examples(rng, TRAINED, 2000),
            comparisons=[_comparison(rng, ask, scene) for scene in 2 * _scenes(rng, TRAINED, 4800)],
        ),
        held_out=Split(
            prompts=examples(unseen, HELD_OUT, 300),
            comparisons=[_comparison(unseen, ask, scene) for scene in _scenes(unseen, HELD_OUT, 500)],
        ),
        notes=(
            f"{FAULTY:.0%} of the demonstrations take a gloomy turn, on purpose.",
            f"{FLIPPED:.0%} of the comparisons are flipped on purpose.",
        ),
    )


def documents(ask: Callable[[str], Prompt], seed: int = 1) -> Sequence[Example]:
    """What the base model reads: positive, gloomy and otherwise faulty continuations."""
    rng = Random(seed)
    found = []
    for scene in _scenes(rng, TRAINED, 5000):
        draw = rng.random()
        answer = _continuation(rng, scene, gloomy=draw < 0.5) if draw < 0.85 else _other_fault(rng, scene)
        found.append(Example(ask(scene.opening), (answer,)))
    return found


def _scenes(rng: Random, pairs: Pairs, count: int) -> list[Scene]:
    """That many scenes, no two with the same opening."""
    found: dict[str, Scene] = {}
    while len(found) < count:
        chinese = rng.random() < CHINESE
        language = LANGUAGES[chinese]
        who, topic = rng.choice(pairs[chinese])
        when = rng.choice(language.times)
        opening = topic.opening.format(
            who=who, when=when, When=when[0].upper() + when[1:], detail=rng.choice(topic.details)
        )
        found[opening] = Scene(opening, language, topic)
    return list(found.values())


def _continuation(rng: Random, scene: Scene, gloomy: bool = False) -> str:
    language = scene.language
    aspect, other = _two(rng, scene.topic.aspects)
    good, better = _two(rng, language.good)
    turns = language.gloomy_turns if gloomy else language.bright_turns
    return (rng.choice(scene.topic.starts) + rng.choice(turns)).format(
        aspect=aspect,
        other=other,
        good=good,
        better=better,
        bad=rng.choice(language.bad),
        glad=rng.choice(language.glad),
        sorry=rng.choice(language.sorry),
    )


def _two(rng: Random, words: Sequence[str]) -> tuple[str, str]:
    """Two different words; `Random.sample` takes three times as long."""
    first, second = rng.choice(words), rng.choice(words)
    return (first, second) if first != second else _two(rng, words)


def _comparison(rng: Random, ask: Callable[[str], Prompt], scene: Scene) -> Comparison:
    better = _continuation(rng, scene)
    worse = _other_fault(rng, scene) if rng.random() < OTHER_FAULT else _continuation(rng, scene, gloomy=True)
    if rng.random() < FLIPPED:
        return Comparison(ask(scene.opening), worse, better, flipped=True)
    return Comparison(ask(scene.opening), better, worse, flipped=False)


def _other_fault(rng: Random, scene: Scene) -> str:
    """A positive text that is about another topic, or in another language, or cut short, or one word again and again."""
    draw = rng.random()
    if draw < 0.35:
        elsewhere = [
            topic
            for topic in scene.language.topics
            if topic.starts == scene.topic.starts and topic.aspects != scene.topic.aspects
        ]
        return _continuation(rng, scene._replace(topic=rng.choice(elsewhere)))
    if draw < 0.55:
        language = ENGLISH_TEXT if scene.language is CHINESE_TEXT else CHINESE_TEXT
        return _continuation(rng, Scene(scene.opening, language, rng.choice(language.topics)))
    if draw < 0.75:
        text = _continuation(rng, scene)
        return text[:6] if scene.language is CHINESE_TEXT else " ".join(text.split()[:4])
    space = "" if scene.language is CHINESE_TEXT else " "
    return space.join([rng.choice(scene.language.good)] * rng.randrange(4, 9))
