"""Public data sets become the recipe's data: rows in their real shapes, from a hub's cache and without a network."""

import json
import re
from pathlib import Path

import pytest
from conftest import main
from hub_rows import COMMIT, ROWS, loaded, put_in_cache, set_of

from rlrecipes.data.load import load
from rlrecipes.errors import UserError
from rlrecipes.recipe import RECIPES, Comparison, Data, Example, Rating, is_hub, load_recipe, recipe_names, user

SETS = [(name, hub_set) for name in recipe_names() for hub_set in load_recipe(name).hub]


def read(id: str, i: int = 0, **changed):
    return set_of(id).read({**ROWS[id](i), **changed})


# What a row says.


def test_a_review_is_an_opening_and_the_sentences_after_it():
    assert read("stanfordnlp/imdb", 1) == Example(
        user("Continue: Film number 1 is slow."),
        ("Its last act is lovely from the first scene to the last. I left.",),
        {"label": 1},
    )


def test_a_review_is_cut_behind_a_sentence_and_left_out_where_none_ends():
    long = read("stanfordnlp/imdb", text="One two three four five " + "Six seven eight. " * 30).answers[0]
    assert long.endswith("eight.")
    assert len(long.split()) == 60
    with pytest.raises(ValueError, match="no end within 60 words"):
        read("stanfordnlp/imdb", text="word " * 100)


@pytest.mark.parametrize("labels", [2, -1, "A", None])
def test_a_forum_answer_is_preferred_by_a_known_label_alone(labels):
    with pytest.raises(ValueError, match="'labels' must be 1 or 0"):
        read("stanfordnlp/SHP", labels=labels)


def test_a_story_goes_on_in_a_better_and_a_worse_way():
    pair = read("trl-lib/lm-human-preferences-sentiment")
    assert pair == Comparison(
        user("Continue: She opened door 0 and looked."), "The garden was in bloom.", "It was bare."
    )


def test_a_post_is_summed_up():
    example = read("trl-lib/tldr")
    assert example.prompt[0].content.startswith("SUBREDDIT: r/pets")
    assert example.answers == ("Cat 0 blocks my laptop.",)
    assert read("trl-lib/tldr-preference", 1).rejected == "I have a cat."
    with pytest.raises(ValueError, match="news article"):
        read("trl-lib/tldr-preference", 0)


def test_a_sentence_is_translated_into_the_language_that_the_prompt_names():
    train = user("Translate into German: Train 0 does not stop here.")
    assert read("wmt/wmt14") == Example(train, ("Der Zug 0 hält hier nicht.",))
    held_out = user("Translate into German: Bridge 0 opens on Monday.")
    assert read("google/wmt24pp") == Example(held_out, ("Brücke 0 wird am Montag eröffnet.",))
    with pytest.raises(ValueError, match="bad source"):
        read("google/wmt24pp", 9)
    with pytest.raises(ValueError, match="repeats the source"):
        read("wmt/wmt14", translation={"de": "Berlin ", "en": "Berlin"})


def test_the_best_of_three_translations_is_preferred_to_the_worst():
    pair = read("haoranxu/ALMA-R-Preference")
    assert pair.prompt == user("Translate into German: Water 0 is cold.")
    assert (pair.chosen, pair.rejected) == ("Das Wasser 0 ist kalt.", "Kalt ist Wasser 0.")
    with pytest.raises(ValueError, match="other direction"):
        read("haoranxu/ALMA-R-Preference", 3)
    values = ROWS["haoranxu/ALMA-R-Preference"](0)["translation"]
    scores = dict.fromkeys((key for key in values if key.endswith("de_kiwi_xcomet")), 0.5)
    with pytest.raises(ValueError, match="all scores are equal"):
        read("haoranxu/ALMA-R-Preference", translation=values | scores)


def test_raters_scores_are_ratings():
    prompt = user("Translate into German: Shop 0 is closed.")
    assert read("RicardoRei/wmt-da-human-evaluation") == Rating(prompt, "Laden 0 ist zu.", -0.4)


def test_a_passage_is_asked_about():
    example = read("rajpurkar/squad")
    assert example.prompt[0].content.endswith("Seaford.\nQuestion: Who built tower 0?")
    assert example.answers == ("Ada Holm",)


def test_an_answer_with_sources_has_them_as_its_passage():
    pair = read("openai/webgpt_comparisons")
    passage = "Rivers carry minerals.\nWater leaves, salt stays."
    assert pair.prompt == user(f"{passage}\nQuestion: Why is sea 0 salty?")
    assert (pair.chosen, pair.rejected) == ("Salt stays behind.", "Rivers bring minerals. They stay.")
    with pytest.raises(ValueError, match="neither"):
        read("openai/webgpt_comparisons", 9)
    none = {"title": [], "extract": []}
    assert read("openai/webgpt_comparisons", quotes_0=none, quotes_1=none).prompt == user(
        "Question: Why is sea 0 salty?"
    )
    objects = [{"title": "Seas", "extract": "Rivers carry minerals."}]
    assert "Rivers carry" in read("openai/webgpt_comparisons", quotes_0=objects).prompt[0].content


def test_the_answer_with_twice_the_votes_is_preferred_whichever_stands_first():
    pair = read("stanfordnlp/SHP")
    assert pair == Comparison(user("Why is bread 0 flat?"), "Your yeast may be old.", "Bad luck.")
    assert read("stanfordnlp/SHP", labels=1).chosen == "Bad luck."
    with pytest.raises(ValueError, match="fewer than 2 times"):
        read("stanfordnlp/SHP", 9)


def test_chats_differ_in_their_last_reply():
    pair = read("trl-lib/ultrafeedback_binarized")
    assert pair == Comparison(user("Name a prime above 0."), "1 may be.", "No.", margin=5.5)
    with pytest.raises(ValueError, match="more than the last reply"):
        read("trl-lib/ultrafeedback_binarized", rejected=ROWS["trl-lib/ultrafeedback_binarized"](1)["rejected"])
    for score in (3.0, 2.5):
        with pytest.raises(ValueError, match="'score_chosen' is not above 'score_rejected'"):
            read("trl-lib/ultrafeedback_binarized", score_chosen=score)
    pair = read("trl-lib/hh-rlhf-helpful-base")
    assert [message.role for message in pair.prompt] == ["user", "assistant", "user"]
    assert (pair.chosen, pair.rejected) == ("Then try a herbal tea.", "Coffee.")


def test_graded_replies_are_ratings_and_longer_chats_have_their_turns():
    assert read("nvidia/HelpSteer2") == Rating(user("List fruits, list 0."), "Apple and pear.", 4.0)
    turns = read("nvidia/HelpSteer2", 2).prompt
    assert [message.content for message in turns] == ["List fruits, list 1.", "For whom?", "For me."]
    assert [message.role for message in turns] == ["user", "assistant", "user"]


# Sets as a recipe's data.


@pytest.mark.parametrize("name", sorted({name for name, _ in SETS}))
def test_a_recipes_own_choice_gives_all_that_training_needs(name, cache):
    data = loaded(name, "hub", cache)
    train, held_out = data.train, data.held_out
    for part in (train.demonstrations, train.prompts, train.comparisons, held_out.prompts, held_out.comparisons):
        assert len(part) > 1
    trained = {item.prompt for part in (train.demonstrations, train.prompts, train.comparisons) for item in part}
    assert not trained & {item.prompt for part in (held_out.prompts, held_out.comparisons) for item in part}
    assert data.source.startswith("hub:")
    for told in data.hub:
        assert told["revision"] == COMMIT
        assert told["licence"]
        assert f"{told['id']}@{COMMIT}" in data.source


@pytest.mark.parametrize(("name", "hub_set"), SETS, ids=[hub_set.id for _, hub_set in SETS])
def test_every_set_is_read_from_files_as_they_are_on_the_hub(name, hub_set, cache):
    put_in_cache(cache, hub_set)
    if "held out" in hub_set.serves:
        with pytest.raises(
            UserError, match=r"is only held out.*name another set beside it, such as --data hub:.*,\S+/\S+$"
        ):
            load(load_recipe(name), f"hub:{hub_set.id}", {}, Path("runs"))
        return
    data = load(load_recipe(name), f"hub:{hub_set.id}", {}, Path("runs"))
    assert data.train.demonstrations
    assert data.train.comparisons
    assert data.held_out.prompts
    assert bool(data.train.ratings) == ("ratings" in hub_set.serves)


def test_sets_serve_as_what_they_say(cache):
    data = loaded("translation", "hub", cache)
    assert all("Train" in example.prompt[0].content for example in [*data.train.demonstrations, *data.train.prompts])
    assert all("Bridge" in example.prompt[0].content for example in data.held_out.prompts)
    assert all("Water" in pair.prompt[0].content for pair in [*data.train.comparisons, *data.held_out.comparisons])
    assert len(data.train.demonstrations) == 40, "the translations are all trained on, since another set is held out"
    assert not list(Path("runs/.hub").glob("wmt--wmt14-validation*")), "and their own held-out split is not fetched"


def test_rows_sorted_by_what_they_hold_are_mixed(cache, monkeypatch):
    rows = ROWS["stanfordnlp/imdb"]
    monkeypatch.setitem(ROWS, "stanfordnlp/imdb", lambda i: rows(2 * i + (i % 100_000 >= 20)))
    data = loaded("text_generation", "hub:stanfordnlp/imdb", cache)
    for part in (data.train.demonstrations, data.held_out.prompts):
        assert {example.truth["label"] for example in part[:20]} == {0, 1}


def test_ratings_become_no_demonstrations_where_there_are_others(cache):
    data = loaded("dialogue", "hub", cache)
    assert len(data.train.ratings) == 40
    assert not any("fruits" in example.prompt[0].content for example in data.train.demonstrations)
    assert not any("fruits" in pair.prompt[0].content for pair in data.train.comparisons)


def test_ratings_are_compared_where_there_are_no_preferences(cache):
    data = loaded("translation", "hub:wmt/wmt14,RicardoRei/wmt-da-human-evaluation", cache)
    assert {(pair.chosen[-12:], pair.rejected[-3:]) for pair in data.train.comparisons} == {("geschlossen.", "zu.")}
    assert all("Zug" in example.answers[0] for example in data.train.demonstrations)
    assert not any("Demonstrations are" in note for note in data.notes)


def test_ratings_that_make_no_comparisons_are_not_said_to(cache):
    data = loaded("translation", "hub:haoranxu/ALMA-R-Preference,RicardoRei/wmt-da-human-evaluation", cache)
    assert all("Shop" in example.prompt[0].content for example in data.train.demonstrations)
    assert all("Water" in pair.prompt[0].content for pair in data.train.comparisons)
    assert any("Demonstrations are the best graded" in note for note in data.notes)
    assert not any("Comparisons are" in note for note in data.notes)


def reasons(data: Data) -> dict[str, int]:
    """Counts by reason alone; each must name the kept file and row that was left out first."""
    matches = {
        re.fullmatch(r"(.*) \(first: [\w-]+\.jsonl\.gz, row [1-9]\d*\)", told): n for told, n in data.dropped.items()
    }
    return {match[1]: count for match, count in matches.items() if match} if all(matches) else {}


def test_rows_left_out_are_counted_with_their_set_and_reason(cache):
    assert reasons(loaded("translation", "hub", cache)) == {
        "google/wmt24pp: marked as a bad source": 4,
        "haoranxu/ALMA-R-Preference: made for the other direction": 10,
    }


def test_rows_that_recur_or_are_held_out_are_counted_over_both_splits(cache, monkeypatch):
    rows = ROWS["trl-lib/tldr"]
    monkeypatch.setitem(ROWS, "trl-lib/tldr", lambda i: rows(i % 25 if i < 100_000 else 20 + i % 100_000 % 25))
    data = loaded("text_generation", "hub:trl-lib/tldr", cache)
    assert reasons(data) == {"trl-lib/tldr: duplicate row": 30, "prompt is held out": 5}
    assert (len(data.train.demonstrations), len(data.held_out.prompts)) == (20, 25)


def test_what_is_held_out_of_a_set_is_said_with_its_name(cache, monkeypatch):
    data = loaded("translation", "hub:RicardoRei/wmt-da-human-evaluation", cache)
    assert any(
        note.startswith("RicardoRei/wmt-da-human-evaluation: It has no held-out split, so") for note in data.notes
    )
    monkeypatch.setattr("rlrecipes.data.load.HELD_OUT", 5)
    data = loaded("text_generation", "hub:trl-lib/tldr", cache)
    cut = "trl-lib/tldr: Of 40 held-out prompts 5 are kept; the others are not trained on either."
    assert cut in data.notes
    assert len(data.held_out.prompts) == 5


def test_an_alternative_brings_its_own_headline(cache):
    assert [metric.name for metric in loaded("text_generation", "hub:trl-lib/tldr", cache).metrics] == ["overlap"]
    assert [metric.name for metric in loaded("text_generation", "hub", cache).metrics] == ["positive"]


def test_rows_with_missing_values_are_left_out_and_a_set_of_nothing_else_is_refused(cache, monkeypatch):
    rows = ROWS["trl-lib/tldr"]
    monkeypatch.setitem(ROWS, "trl-lib/tldr", lambda i: rows(i) | ({"completion": None} if i % 4 == 0 else {}))
    dropped = reasons(loaded("text_generation", "hub:trl-lib/tldr", cache))
    assert dropped["trl-lib/tldr: a value is missing or of another type"] == 20
    monkeypatch.setitem(ROWS, "trl-lib/tldr", lambda i: rows(i) | {"completion": " "})
    with pytest.raises(UserError, match="empty answer"):
        loaded("text_generation", "hub:trl-lib/tldr", cache, commit="e" * 40) and load(
            load_recipe("text_generation"), f"hub:trl-lib/tldr@{'e' * 40}", {}, Path("runs")
        )


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hub:wmt/wtm14", "did you mean 'wmt/wmt14'?"),
        ("hub:nobody/nothing", "there are haoranxu/ALMA-R-Preference, wmt/wmt14"),
        ("hub:wmt/wmt14@", "after @"),
        ("hub:wmt/wmt14", "hf download --repo-type dataset wmt/wmt14"),
        ("hub:wmt/wmt14@abc", "hf download --repo-type dataset wmt/wmt14 --revision abc"),
        ("hub", "HF_HUB_OFFLINE is se"),
    ],
)
def test_what_cannot_be_had_is_one_sentence_and_nothing_is_written(cache, source, said, capsys):
    assert main(["sft", "translation", "--data", source]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not Path("runs").exists()


def test_columns_beside_the_hub_are_refused(cache, capsys):
    assert main(["show", "translation", "--data", "hub", "--columns", "target=post_edit"]) == 2
    assert "read as they are" in capsys.readouterr().err


def test_the_built_in_world_can_be_named(cache, capsys):
    assert main(["show", "translation", "--data", "built-in"]) == 0
    assert "data: built-in" in capsys.readouterr().out
    assert not is_hub("built-in")


# The same sets as files.


@pytest.mark.parametrize(("name", "hub_set"), SETS, ids=[hub_set.id for _, hub_set in SETS])
def test_a_download_is_read_as_files_where_its_columns_are_its_own(name, hub_set, cache, capsys):
    if set(hub_set.columns) <= {"prompt", "completion", "chosen", "rejected", "text", "label"}:
        pytest.skip("a usual layout: read as any such file, without the recipe's own prompt")
    snapshot = put_in_cache(cache, hub_set)
    assert main(["show", name, "--data", str(snapshot / (hub_set.config or "default"))]) == 0
    out = capsys.readouterr().out
    kept = hub_set.read(ROWS[hub_set.id](2 if hub_set.where else 1))
    assert kept.prompt[0].content.split("\n")[0].partition(" ")[0] in out
    others = any(not hub_set.where.items() <= ROWS[hub_set.id](i).items() for i in range(4))
    assert ("20 rows left out: 'lp' is not en-de" in out) == others


def test_done_json_names_sets_commits_and_licences(cache):
    from rlrecipes.job import make_job
    from rlrecipes.profile import load_profile
    from rlrecipes.run.folder import Run

    put_in_cache(cache, set_of("nvidia/HelpSteer2"))
    job = make_job("dialogue", load_profile("tiny"), Run("t", "dialogue"), source="hub:nvidia/HelpSteer2")
    (told,) = json.loads(json.dumps(job.described_data()))["hub"]
    assert (told["id"], told["revision"], told["licence"]) == ("nvidia/HelpSteer2", COMMIT, "CC-BY-4.0")
    assert job.settings("sft")["data.source"] == f"hub:nvidia/HelpSteer2@{COMMIT}"


@pytest.mark.parametrize(("name", "hub_set"), SETS, ids=[hub_set.id for _, hub_set in SETS])
def test_every_set_stands_on_its_recipes_card_with_its_licence(name, hub_set):
    card = (RECIPES / name / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in card.splitlines() if f"`{hub_set.id}`" in line and line.startswith("|")]
    assert hub_set.licence in row
    assert f"`{hub_set.split}`" in row
    assert ("**" in row) == hub_set.default
    assert not hub_set.take or f"{hub_set.take:,}" in row
