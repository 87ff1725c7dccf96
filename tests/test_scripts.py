"""Every script is a language: words, metrics and what derives rejected answers, in twelve scripts and with emoji."""

import re
import unicodedata
from random import Random

import pytest
import regex

from recipes.question_answering.recipe import compare as another_span
from recipes.text_generation.texts import cut, disordered
from recipes.translation.recipe import garbled
from rlrecipes import metrics
from rlrecipes.recipe import Example, user
from rlrecipes.text import characters, normal_words, words

SENTENCES = {
    "latin": ("the girl is reading a long book at home today", "the girl is reading a long boot at home today"),
    "cyrillic": ("девочка читает дома очень длинную новую книгу", "девочка читает дома очень длинную новую кнегу"),
    "greek": ("το κορίτσι διαβάζει ένα μεγάλο βιβλίο στο σπίτι", "το κορίτσι διαβάζει ένα μεγάλο βιβλία στο σπίτι"),
    "arabic": ("الْبِنْتُ تَقْرَأُ كِتَابًا طَوِيلًا فِي بَيْتِهَا", "الْبِنْتُ تَقْرَأُ كِتَابًا طَوِيلًا فِي بَيْتِهِ"),
    "hebrew": ("הַיַּלְדָּה קוֹרֵאת סֵפֶר אָרוֹךְ מְאוֹד בַּבַּיִת", "הַיַּלְדָּה קוֹרֵאת סֵפֶר אָרוֹךְ מְאוֹד בַּבַּיָת"),
    "devanagari": ("लड़की घर पर एक लंबी किताब पढ़ रही है", "लड़का घर पर एक लंबी किताब पढ़ रही है"),
    "bengali": ("মেয়েটি বাড়িতে একটি লম্বা বই পড়ছে আজ", "মেয়েটা বাড়িতে একটি লম্বা বই পড়ছে আজ"),
    "tamil": ("சிறுமி வீட்டில் ஒரு நீண்ட புத்தகம் படிக்கிறாள்", "சிறுமி வீட்டில் ஒரு நீண்ட புத்தகம் படிக்கிறான்"),
    "hangul": ("소녀가 오늘 집에서 아주 긴 책을 읽고 있다", "소녀가 오늘 집에서 아주 긴 챙을 읽고 있다"),
    "thai": ("เด็กผู้หญิงกำลังอ่านหนังสือเล่มยาวที่บ้าน", "เด็กผู้ชายกำลังอ่านหนังสือเล่มยาวที่บ้าน"),
    "chinese": ("女孩今天在家里读一本很长的新书", "男孩今天在家里读一本很长的新书"),
    "japanese": ("少女は今日家でとても長い本を読んでいる", "少年は今日家でとても長い本を読んでいる"),
    "khmer": ("ក្មេងស្រីកំពុងអានសៀវភៅវែងនៅផ្ទះ", "ក្មេងប្រុសកំពុងអានសៀវភៅវែងនៅផ្ទះ"),
    "lao": ("ເດັກຍິງກຳລັງອ່ານປຶ້ມຍາວຢູ່ເຮືອນ", "ເດັກຊາຍກຳລັງອ່ານປຶ້ມຍາວຢູ່ເຮືອນ"),
    "burmese": ("မိန်းကလေးသည်အိမ်တွင်စာအုပ်ရှည်ကိုဖတ်နေသည်", "မိန်းကလေးသည်အိမ်တွင်စားအုပ်ရှည်ကိုဖတ်နေသည်"),
    "tibetan": ("བུ་མོ་ཁྱིམ་དུ་དེབ་རིང་པོ་ཀློག་གི་འདུག", "བུ་ཚ་ཁྱིམ་དུ་དེབ་རིང་པོ་ཀློག་གི་འདུག"),
    "emoji": (
        "well done 🎉 my friend 👩‍👩‍👧 see you 👍🏽 soon 🇩🇪",
        "well done 🎉 my friend 👩‍👩‍👦 see you 👍🏽 soon 🇩🇪",
    ),
}
"""A sentence, and one that differs from it in a word or a character of it."""
OTHER = "zzz 9q9 www"
SCORES = {"f1": metrics.f1, "chrf": metrics.chrf, "exact_match": metrics.exact_match, "same_words": metrics.same_words}
scripts = pytest.mark.parametrize("script", SENTENCES)


def against(reference: str) -> Example:
    return Example(user("?"), (reference,))


def orphans(text: str) -> list[str]:
    """Marks and joiners that stand behind nothing."""
    return regex.findall(r"(?:^|\s)[\p{M}\p{Join_Control}]", text)


@scripts
@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_whole_for_the_same_text_and_less_for_another_word(script, name):
    sentence, near = SENTENCES[script]
    score = SCORES[name]
    assert score(sentence, against(sentence)) == 1
    assert score(unicodedata.normalize("NFD", sentence), against(unicodedata.normalize("NFC", sentence))) == 1
    assert score(near, against(sentence)) < 1
    assert score(OTHER, against(sentence)) < 0.1
    if name in ("f1", "chrf"):
        assert score(near, against(sentence)) > 0.5


@scripts
def test_bleu_of_the_same_sentences_is_100_and_falls_with_a_word(script):
    sentence, near = SENTENCES[script]
    examples = [against(sentence)] * 3

    def bleu(answer: str) -> float:
        return metrics.estimate(metrics.bleu(), [answer] * 3, examples).value

    assert bleu(sentence) == pytest.approx(100)
    assert bleu(unicodedata.normalize("NFD", sentence)) == pytest.approx(100)
    assert 10 < bleu(near) < 99
    assert bleu(OTHER) < 10


@scripts
def test_ter_of_the_same_sentences_is_0_and_rises_with_a_word(script):
    sentence, near = SENTENCES[script]

    def ter(answer: str) -> float:
        return metrics.estimate(metrics.ter(), [answer] * 3, [against(sentence)] * 3).value

    assert ter(sentence) == ter(unicodedata.normalize("NFD", sentence)) == 0
    assert 0 < ter(near) < 40
    assert ter(OTHER) > 50


@scripts
def test_words_keep_their_marks_and_differ_where_the_text_does(script):
    sentence, near = SENTENCES[script]
    said = words(sentence)
    assert len(said) >= 6
    assert said != words(near)
    assert "".join(said) == unicodedata.normalize("NFC", re.sub("[ \u0f0b]", "", sentence.lower()))
    assert not any(orphans(word) for word in said)
    assert said == words(unicodedata.normalize("NFD", sentence))
    assert len(normal_words(sentence)) >= 6


@scripts
def test_length_and_repetition_and_distinct_count_words(script):
    sentence, _ = SENTENCES[script]
    example = against(sentence)
    assert metrics.length(sentence, example) == len(words(sentence))
    assert metrics.repetition(f"{sentence} {sentence}", example) > 0.3
    apart = metrics.estimate(metrics.distinct(2), [sentence, OTHER], [example] * 2).value
    assert metrics.estimate(metrics.distinct(2), [sentence] * 2, [example] * 2).value < apart


@scripts
@pytest.mark.parametrize("spoil", [garbled, disordered])
def test_spoiled_answers_are_whole_characters_of_the_answer(script, spoil):
    sentence, _ = SENTENCES[script]
    worse = [spoil(sentence, Random(seed)) for seed in range(20)]
    assert any(text != sentence for text in worse)
    known = set(characters(sentence))
    assert not {part for text in worse for part in characters(text)} - known - {" "}
    assert not any(orphans(text) for text in worse)


@scripts
def test_an_opening_is_cut_between_characters(script):
    text = SENTENCES[script][0] * 2 if " " not in SENTENCES[script][0] else f"{SENTENCES[script][0]} {OTHER}"
    opening, rest = cut(text)
    assert opening
    assert rest
    assert characters(opening) == characters(text)[: len(characters(opening))]
    assert not orphans(rest)


@pytest.mark.parametrize("script", ["latin", "devanagari", "chinese", "japanese", "thai"])
def test_a_rejected_span_is_about_as_long_as_the_answer(script):
    sentence = SENTENCES[script][0]
    letters = sentence.split() if " " in sentence else characters(sentence)
    answer = (" " if " " in sentence else "").join(letters[:2])
    example = Example(user(f"{sentence}\nQuestion: ?"), (answer,))
    spans = [pair.rejected for seed in range(10) if (pair := another_span(example, [], Random(seed)))]
    assert spans
    size = len(str.split(answer) if " " in sentence else characters(answer))
    assert all(span in sentence for span in spans)
    assert all(len(span.split() if " " in sentence else characters(span)) == size for span in spans)


@pytest.mark.parametrize(
    ("passage", "answer"),
    [
        ("राम ने कप रसोई में रखा। मौसम अच्छा था।", "कप"),
        ("小明把「杯子」拿到厨房，天气很好。", "厨房"),
        ("أخذ علي الكأس إلى المطبخ، وكان الطقس جميلا؟", "الكأس"),
        ("¿Quién llegó? «Ana» llegó tarde…", "tarde"),
    ],
)
def test_no_mark_of_a_sentence_gives_a_rejected_span_away(passage, answer):
    example = Example(user(f"{passage}\nQuestion: ?"), (answer,))
    spans = {pair.rejected for seed in range(60) if (pair := another_span(example, [], Random(seed)))}
    assert len(spans) >= 3
    assert not [span for span in spans if regex.search(r"^\p{P}|\p{P}$", span)]


def test_a_rejected_span_keeps_the_signs_of_a_number():
    example = Example(user("Ann lost 40% at -5 degrees.\nQuestion: ?"), ("Ann",))
    spans = {pair.rejected for seed in range(60) if (pair := another_span(example, [], Random(seed)))}
    assert {"40%", "-5"} <= spans


def test_a_hindi_girl_is_no_boy_and_punctuation_of_every_script_is_none():
    assert words("लड़की") != words("लड़का")
    assert normal_words("क्या यह सच है।") == normal_words("क्या यह सच है")
    assert normal_words("「本当に？」") == normal_words("本当に")
    assert metrics.f1("هل هذا صحيح؟", against("هل هذا صحيح")) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("İzmir'de iyi", "izmir'de iyi"),
        ("I\u0307zmir'de iyi", "izmir'de iyi"),
        ("love ❤️ it", "love ❤ it"),
        ("see 👁️‍🗨️ it", "see 👁‍🗨 it"),
    ],
)
def test_what_only_case_or_presentation_tells_apart_is_the_same_in_every_metric(one, other):
    for score in (metrics.f1, metrics.exact_match, metrics.same_words, metrics.rouge("rouge1")):
        assert score(one, against(other)) == score(other, against(one)) == 1
    assert metrics.f1("kız", against("kiz")) == metrics.f1("kız ❤", against("kız 💔")) - 0.5 == 0


def test_no_mark_of_a_punctuation_is_left_to_the_word_before():
    assert normal_words("Wait‼️ #️⃣ two") == normal_words("wait two") == ["wait", "two"]
    assert metrics.f1("Yes⁉️", against("yes")) == 1
