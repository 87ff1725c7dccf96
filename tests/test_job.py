"""Several recipes share a reward model: who they are, what data they bring, what the model learns by."""

from pathlib import Path

import pytest
from conftest import main, sentences, write_rows

from rlrecipes.data.joint import joint_data
from rlrecipes.data.objective import objective
from rlrecipes.errors import UserError
from rlrecipes.job import Job, joint_recipe, make_job, recipes_of, sources_of
from rlrecipes.pipeline import run_recipe
from rlrecipes.profile import RewardSettings, load_profile
from rlrecipes.recipe import Comparison, Data, Example, Rating, Split, user
from rlrecipes.run.folder import Run

TWO = "translation+dialogue"
PAIRS = Data("pairs", Split(comparisons=[Comparison(user("a"), "b", "c")]), Split())
RATED = Data("rated", Split(ratings=[Rating(user("a"), "b", 1.0), Rating(user("b"), "c", 2.0)]), Split())
BOTH = Data("both", Split(comparisons=PAIRS.train.comparisons, ratings=RATED.train.ratings), Split())
LEVEL = Data("level", Split(ratings=[Rating(user("a"), "b", 3.0)] * 2), Split())


def test_a_plus_joins_recipes_in_their_order():
    assert [recipe.name for recipe in recipes_of(TWO)] == ["translation", "dialogue"]
    assert joint_recipe(recipes_of(TWO)).name == TWO


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("translation+dialog", "did you mean 'dialogue'?"),
        ("translation+", "empty recipe"),
        ("dialogue+dialogue", "twice"),
    ],
)
def test_recipes_that_cannot_be_joined_are_told(name, said):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        recipes_of(name)
    assert said in str(error.value)


def test_each_recipe_has_its_source():
    recipes = recipes_of(TWO)
    assert sources_of(recipes, None) == [None, None]
    assert sources_of(recipes, "built-in") == ["built-in", "built-in"]
    assert sources_of(recipes, "hub") == ["hub", "hub"]
    assert sources_of(recipes, "a.jsonl+built-in") == ["a.jsonl", "built-in"]
    assert sources_of(recipes[:1], "a+b.jsonl") == ["a+b.jsonl"]


@pytest.mark.parametrize("source", ["a.jsonl", "a.jsonl+b.jsonl+c.jsonl", "a.jsonl+"])
def test_a_source_too_few_or_too_many_is_told(source):
    with pytest.raises(UserError, match="one for each"):
        sources_of(recipes_of(TWO), source)


def test_where_no_data_are_named_each_recipe_has_what_the_profile_says(monkeypatch):
    jobs = []
    monkeypatch.setattr("rlrecipes.__main__.run_stages", lambda job, *rest: jobs.append(job))
    assert main(["reward", TWO]) == 0
    assert jobs[0].data.source == "built-in+built-in"
    assert jobs[0].tasks.keys() == {"translation", "dialogue"}


def test_a_shared_reward_model_brings_its_sft_stage_from_python_as_from_the_command_line(monkeypatch):
    calls = []
    for place in ("pipeline", "__main__"):
        monkeypatch.setattr(f"rlrecipes.{place}.run_stages", lambda job, stages, *rest: calls.append(stages))
    monkeypatch.setattr("rlrecipes.run.folder.Run.need", lambda self, stage: {})
    assert main(["reward", TWO]) == 0
    assert run_recipe(TWO, stages="reward").keys() == {"sft", "reward"}
    assert calls == [("sft", "reward")] * 2


def test_demonstrations_take_turns_and_nothing_is_lost():
    first = [Example(user(f"a{i}"), ("b",)) for i in range(3)]
    second = [Example(user("z"), ("y",))]
    pairs, ratings = PAIRS.train.comparisons, RATED.train.ratings
    left = Data("left", Split(first, first, pairs), Split(prompts=first[:2]), notes=["one"], dropped={"empty": 2})
    right = Data("right", Split(second, second, ratings=ratings), Split(prompts=second))
    data = joint_data({"a": left, "b": right})
    assert data.train.demonstrations == data.train.prompts == [first[0], second[0], *first[1:]]
    assert data.held_out.prompts == [first[0], second[0], first[1]]
    assert data.train.comparisons == pairs
    assert data.train.ratings == ratings
    assert data.source == "left+right"
    assert data.notes == ["a: one"]
    assert data.dropped == {"a: empty": 2}


@pytest.mark.parametrize(("data", "counted"), [(PAIRS, False), (RATED, True)], ids=["pairs", "rated"])
def test_done_json_counts_ratings_where_there_are_some(data, counted):
    job = Job(recipes_of("translation")[0], load_profile("tiny"), Run("t", "translation"), data)
    kept = job.described_data()["kept"]
    assert list(kept)[:5] == ["demonstrations", "prompts", "comparisons", "held_out", "held_out_comparisons"]
    assert list(kept)[5:] == (["ratings", "held_out_ratings"] if counted else [])
    assert kept["comparisons"] == len(data.train.comparisons)


@pytest.mark.parametrize(
    ("asked", "data", "kind"),
    [
        ("auto", PAIRS, "pairwise"),
        ("auto", RATED, "regression"),
        ("auto", BOTH, "pairwise"),
        ("regression", BOTH, "regression"),
        ("pairwise", BOTH, "pairwise"),
    ],
)
def test_ratings_alone_are_learnt_by_regression_unless_it_is_said(asked, data, kind):
    assert objective(RewardSettings(objective=asked), {"translation": data}) == kind


@pytest.mark.parametrize(
    ("settings", "tasks", "said"),
    [
        (
            {"objective": "pairwise"},
            [RATED],
            "2 ratings, hardly two of the same prompt; say reward.objective=regression",
        ),
        ({"objective": "regression"}, [PAIRS], "brings none for first"),
        ({}, [LEVEL], "all 2 training ratings in level are 3"),
        ({"center_rewards_coefficient": 0.01}, [RATED], "center_rewards_coefficient has no effect"),
        ({}, [PAIRS, RATED], "first pairwise, second regression"),
    ],
)
def test_what_the_data_do_not_allow_is_told(settings, tasks, said):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        objective(RewardSettings(**settings), dict(zip(("first", "second"), tasks, strict=False)))
    assert said in str(error.value)


def test_learning_every_turn_is_refused_where_demonstrations_have_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = load_profile("tiny", ["sft.learn=all"])
    with pytest.raises(
        UserError, match=r"sft\.learn=all has no effect: no demonstration of pairs\.jsonl has a turn of the"
    ):
        make_job(
            "translation", profile, Run("r", "translation"), source=str(write_rows(Path("pairs.jsonl"), sentences(30)))
        )
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    rows = [{"messages": [*turns, {"role": "user", "content": f"{i}?"}, turns[1]]} for i in range(30)]
    chats = str(write_rows(Path("chats.jsonl"), rows))
    job = make_job("dialogue", profile, Run("r", "dialogue"), source=chats, weights=["terms.learned=0"])
    assert job.profile.sft.learn == "all"
