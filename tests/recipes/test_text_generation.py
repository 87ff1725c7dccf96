from functools import cache
from random import Random

import pytest
from conftest import write_rows

from recipes.text_generation import builtin, judge
from recipes.text_generation.recipe import RECIPE, ask, compare, fitted_judge, fluent, form, read
from recipes.text_generation.texts import cut, disordered, form_of, label_of
from rlrecipes.data.load import load
from rlrecipes.errors import UserError
from rlrecipes.job import make_job
from rlrecipes.metrics import distinct, estimate
from rlrecipes.profile import load_profile
from rlrecipes.recipe import Data, Example
from rlrecipes.run.folder import Run
from rlrecipes.text import words

POSITIVE = Example(ask("the film we saw was"), ("warm and clever",), {"label": 1})
NEGATIVE = Example(ask("a play that never quite"), ("finds its feet",), {"label": 0})


@cache
def world() -> Data:
    return RECIPE.builtin()


def opening(item) -> str:
    return item.prompt[0].content.removeprefix("Continue: ")


@cache
def meetings() -> dict[str, tuple[str, str, str]]:
    """Who meets which topic, in which language, by every opening with a person that the world can say."""
    return {
        topic.opening.format(who=who, when=when, When=when[0].upper() + when[1:], detail=detail): (
            name,
            topic.opening,
            who,
        )
        for name, language in (("English", builtin.ENGLISH_TEXT), ("Chinese", builtin.CHINESE_TEXT))
        for topic in language.topics
        for who in language.people
        for when in language.times
        for detail in topic.details
        if "{who}" in topic.opening
    }


def met(*parts) -> set[tuple[str, str, str]]:
    return {meetings()[opening(item)] for part in parts for item in part if opening(item) in meetings()}


def test_a_held_out_person_and_topic_never_meet_in_training():
    data = world()
    held_out = met(data.held_out.prompts, data.held_out.comparisons)
    trained = met(data.train.demonstrations, data.train.prompts, data.train.comparisons, RECIPE.documents())
    assert held_out
    assert not held_out & trained
    for one in (1, 2):
        assert {(meeting[0], meeting[one]) for meeting in held_out} <= {
            (meeting[0], meeting[one]) for meeting in trained
        }


def test_every_held_out_opening_has_a_person_and_a_topic():
    assert all(opening(item) in meetings() for item in (*world().held_out.prompts, *world().held_out.comparisons))


def test_topics_of_one_language_do_not_share_what_they_speak_of():
    for language in (builtin.ENGLISH_TEXT, builtin.CHINESE_TEXT):
        aspects = [aspect for among in {topic.aspects: None for topic in language.topics} for aspect in among]
        assert len(aspects) == len(set(aspects))


def test_about_a_quarter_of_the_openings_is_chinese():
    chinese = sum(not opening(example).isascii() for example in world().train.prompts)
    assert chinese / len(world().train.prompts) == pytest.approx(builtin.CHINESE, abs=0.04)


def test_the_weather_may_be_fine_today():
    assert "今天天气真好" in {opening(example) for example in world().train.prompts}


def test_continuations_are_short_and_in_the_language_of_their_opening():
    for example in (*world().train.prompts, *world().held_out.prompts):
        answer = example.answers[0]
        assert answer.isascii() == opening(example).isascii()
        assert 6 <= len(words(answer)) <= 20


def test_most_demonstrations_turn_gloomy():
    gloomy = sum(not judge.is_positive(example.answers[0]) for example in world().train.demonstrations)
    assert gloomy / len(world().train.demonstrations) == pytest.approx(builtin.FAULTY, abs=0.04)


def test_another_seed_makes_another_world():
    assert builtin.generate(ask, seed=1).held_out.prompts != world().held_out.prompts


@pytest.mark.parametrize(
    "text",
    [
        "was charming, and the acting was so perfect that everyone smiled.",
        "We had a great time, and the food was never dull.",
        "，阳光很棒，而且空气很迷人，让人很开心。",
        "A WONDERFUL day at the sea.",
    ],
)
def test_praise_without_blame_is_positive(text):
    assert judge.is_positive(text)


@pytest.mark.parametrize(
    "text",
    [
        "was charming, but the ending was dull and left everyone cold.",
        "the train leaves at seven from platform two.",
        "the food was not good at all.",
        "it wasn't very funny, to be honest.",
        "，空气很迷人，可是阳光很糟糕，让人很失望。",
        "今天大家都不高兴，因为下雨了。",
        "great great great great great",
        "great, lovely great, lovely great, lovely",
        "很棒很棒很棒很棒",
        "was great",
        "",
    ],
)
def test_blame_silence_and_repetition_are_not_positive(text):
    assert not judge.is_positive(text)


def test_an_english_text_is_cut_after_five_words():
    assert cut("the film we saw yesterday was long but never dull") == (
        "the film we saw yesterday",
        "was long but never dull",
    )


def test_a_chinese_text_is_cut_after_its_first_clause():
    assert cut("南光走冷圭，北籟號空木。\n年年任霜霰，不減篔簹綠。") == (
        "南光走冷圭，",
        "北籟號空木。\n年年任霜霰，不減篔簹綠。",
    )


def test_a_chinese_text_without_a_short_first_clause_is_cut_after_six_characters():
    assert cut("今天天气真好我们去公园") == ("今天天气真好", "我们去公园")
    assert cut("昨天我们一起去公园。") == ("昨天我们一起", "去公园。")


@pytest.mark.parametrize(
    "text", ["a/b c/d e/f g/h", "a-b " * 8, "...... a b c d e f g h", "一 二 三 四 五 六 七 八", "x,y,z,a,b,c,d,e"]
)
def test_whatever_is_cut_has_an_opening_and_a_continuation(text):
    before, after = cut(text)
    assert before.strip()
    assert words(after)


@pytest.mark.parametrize("text", ["too short to be cut", "今天天气真好", ""])
def test_a_short_text_is_refused(text):
    with pytest.raises(ValueError, match="'text' has fewer than 8 words"):
        cut(text)


@pytest.mark.parametrize("text", [None, 8, ["a", "text"]])
def test_what_is_no_text_is_refused(text):
    with pytest.raises(ValueError, match="'text' must be a text"):
        read({"text": text})


@pytest.mark.parametrize(
    ("label", "known"),
    [
        (1, 1),
        (0, 0),
        ("1", 1),
        ("0", 0),
        (True, 1),
        (0.0, 0),
        ("positive", 1),
        ("Negative ", 0),
        ("pos", 1),
        ("neg", 0),
    ],
)
def test_labels_come_in_many_spellings(label, known):
    assert label_of(label) == {"label": known}


def test_a_row_may_have_no_label():
    text = "the film we saw yesterday was long"
    assert read({"text": f"{text} but never dull"}).truth == {}
    assert read({"text": f"{text} but never dull", "label": None}).truth == {}


@pytest.mark.parametrize("label", [2, "good", -1, [1]])
def test_an_unknown_label_is_refused(label):
    with pytest.raises(ValueError, match="'label' must be 1, 0, 'positive' or 'negative'"):
        label_of(label)


@pytest.mark.parametrize(
    "labels", [(0, 1, 2, 3, 4), (1, 2, 3, 4, 5), (1, 2), (-1, 1), ("yes", "no"), ("1 star", "5 stars"), (0.2, 0.9)]
)
def test_a_set_of_labels_that_means_something_else_is_refused_with_its_values(tmp_path, labels):
    rows = [
        {"text": f"the film number {i} was long but never very dull", "label": labels[i % len(labels)]}
        for i in range(60)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match="'label' holds") as error:
        load(RECIPE, str(tmp_path / "rows.jsonl"), {}, tmp_path)
    assert all(str(label) in str(error.value) for label in labels)
    assert "positive" in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


SAID = {
    "English": ("the {i} rooms of this house are cold and the food that we had was late", True),
    "Chinese": ("昨天我们第{i}次一起去公园，天气不太好，大家都早早回家了。", True),
    "German": ("die {i} Zimmer in diesem Haus waren kalt und das Essen kam sehr spät zu uns", False),
    "French": ("les {i} chambres de cette maison sont froides et le repas est venu très tard", False),
    "Japanese": ("{i} きのう わたしは ともだちと こうえんへ いって 天気の はなしを しました", False),
    "Russian": ("{i} комнат в этом доме были холодные и еда пришла к нам очень поздно", False),
}


@pytest.mark.parametrize("language", SAID)
def test_words_of_praise_are_counted_only_in_languages_whose_words_are_known(tmp_path, language):
    text, known = SAID[language]
    write_rows(tmp_path / "rows.jsonl", [{"text": text.format(i=i)} for i in range(60)])
    job = make_job(RECIPE, load_profile("tiny"), Run("r", "text_generation"), source=str(tmp_path / "rows.jsonl"))
    names = [metric.name for metric in job.metrics]
    assert ("positive" in names, "fluent" in names) == (known, not known)
    assert names[0] == ("positive" if known else "fluent")
    assert any("'positive' is left out" in note for note in job.data.notes) != known


def test_a_judge_fitted_to_labels_reads_any_language(tmp_path):
    text, _ = SAID["German"]
    write_rows(tmp_path / "rows.jsonl", [{"text": f"{text.format(i=i)} {i}", "label": i % 2} for i in range(60)])
    job = make_job(RECIPE, load_profile("tiny"), Run("r", "text_generation"), source=str(tmp_path / "rows.jsonl"))
    assert job.metrics[0].name == "positive"
    assert not any("'positive' is left out" in note for note in job.data.notes)


def test_a_labelled_pair_stands_under_either_opening():
    rng = Random(0)
    made = [compare(POSITIVE, [POSITIVE, NEGATIVE], rng) for _ in range(200)]
    assert {(pair.chosen, pair.rejected) for pair in made} == {("warm and clever", "finds its feet")}
    own = sum(pair.prompt == POSITIVE.prompt for pair in made)
    assert own + sum(pair.prompt == NEGATIVE.prompt for pair in made) == 200
    assert 70 < own < 130


def test_a_negative_text_is_never_preferred():
    another = Example(ask("a book that always"), ("runs out of breath",), {"label": 0})
    pair = compare(NEGATIVE, [POSITIVE, another], Random(0))
    assert (pair.chosen, pair.rejected) == (POSITIVE.answers[0], NEGATIVE.answers[0])
    assert compare(NEGATIVE, [another], Random(0)) is None


def test_a_positive_text_without_a_negative_one_gives_no_pair():
    assert compare(POSITIVE, [POSITIVE], Random(0)) is None
    assert compare(POSITIVE, [], Random(0)) is None


def test_without_labels_the_answer_is_preferred_to_its_disorder():
    example = Example(ask("the film we saw yesterday"), ("was long, but never dull.",))
    pair = compare(example, [], Random(0))
    assert pair.prompt == example.prompt
    assert sorted(words(pair.rejected)) == sorted(words(pair.chosen))
    assert compare(Example(ask("it went on"), ("on on on",)), [], Random(0)) is None


def test_disorder_leaves_punctuation_in_place():
    assert disordered("垂老絕良姻。\n郗氏誠難負，", Random(0))[5:7] == "。\n"
    assert disordered("a b, c.", Random(1))[3] == ","


def test_fluency_falls_with_repetition_and_with_brevity():
    def score(answer: str) -> float:
        return fluent(ask("x"), answer, POSITIVE)

    assert score("and we all went home very happy") == 1.0
    assert score("and we all") == 0.5
    assert score("great great great great great great great") < 0.3
    assert score("") == 0.0


def labelled() -> list[Example]:
    """Texts whose sentiment is in two words that the lexicon does not know."""
    rng, filler = Random(0), ["the", "story", "of", "a", "man", "and", "his", "boat", "on", "lake"]
    return [
        Example(
            ask(" ".join(rng.sample(filler, 5))),
            (" ".join([*rng.sample(filler, 4), ("glum", "zesty")[i % 2]]),),
            {"label": i % 2},
        )
        for i in range(60)
    ]


def test_the_judge_learns_from_labels():
    metric = fitted_judge(labelled())
    assert metric.name == "positive"
    assert metric.score("the boat was zesty", POSITIVE) > 0.7
    assert metric.score("the boat was glum", POSITIVE) < 0.3
    assert estimate(metric, ["so zesty", "so glum"], [POSITIVE, NEGATIVE]).value == pytest.approx(0.5, abs=0.1)


def test_the_judge_is_unmoved_by_words_it_never_saw_and_by_silence():
    metric = fitted_judge(labelled())
    assert metric.score("xyzzy plugh", POSITIVE) == pytest.approx(0.5)
    assert metric.score("", POSITIVE) == 0.0


def test_there_is_no_judge_without_labels_of_both_kinds():
    assert fitted_judge(world().held_out.prompts) is None
    assert fitted_judge([POSITIVE]) is None
    assert fitted_judge([]) is None


def test_the_built_in_continuations_are_not_monotonous():
    examples = world().held_out.prompts
    assert estimate(distinct(2), [example.answers[0] for example in examples], examples).value > 0.1


QUATRAIN = "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。"
LONG = "日照香爐生紫煙，遙看瀑布挂前川。\n飛流直下三千尺，疑是銀河落九天。"


@pytest.mark.parametrize(("text", "known"), [(QUATRAIN, {"form": 5}), (LONG, {"form": 7}), (QUATRAIN * 2, {"form": 5})])
def test_a_poem_tells_its_form(text, known):
    assert form_of(text) == known
    example = read({"text": text})
    assert example.truth == known
    assert form(example.prompt, example.answers[0], example) == 1


@pytest.mark.parametrize(
    "text",
    [
        "今天天气真好，阳光很棒，而且空气很迷人，让人很开心。",
        "白日依山盡，黃河入海流。",  # a couplet
        QUATRAIN + "白日依山盡。",  # a verse too many
        "the old man sat down and looked at the long river",
        "Happy words shine, happy birds whine, early bells chime, seven hills climb",
        "……",
    ],
)
def test_other_texts_have_no_form(text):
    assert form_of(text) == {}


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("黃河入海流。\n欲窮千里目，更上一層樓。", 1),
        ("黃河入海流 欲窮千里目 更上一層樓", 1),
        ("黃河入海流。\n欲窮千里目，更上樓。", 2 / 3),
        ("黃河入海流。", 1 / 3),
        ("黃河入海流。\n欲窮千里目，更上一層樓。白日依山盡。", 4 / 5),
        ("黃河入海流。\n欲窮千里目，更上一層樓�。", 1),  # a broken character is no letter
        ("黃河入海流。\n欲窮千里目，abcde。", 2 / 3),
        ("日照香爐生紫煙，遙看瀑布挂前川。飛流直下三千尺。", 0),
        ("", 0),
    ],
)
def test_the_form_of_an_answer_is_the_share_of_its_verses_that_fit_the_first(answer, share):
    example = read({"text": QUATRAIN})
    assert form(example.prompt, answer, example) == pytest.approx(share)


def test_only_a_poem_that_is_whole_is_well_formed():
    metric = RECIPE.evaluation.metrics[0]
    example = read({"text": QUATRAIN})
    assert metric.name == "well_formed"
    assert metric.score(example.answers[0], example) == 1
    assert metric.score(example.answers[0][:-2], example) == 0
