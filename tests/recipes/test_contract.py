"""What every recipe promises, whatever its task: a new folder under `recipes/` is held to this at once.

Only what a recipe has is asked for: one without a world of its own makes no promises on it.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from random import Random

import pytest

from rlrecipes.recipe import RECIPES, Comparison, Data, Example, Metric, Recipe, load_recipe, recipe_names

SAMPLE = 100
POEM = "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。"
ELSEWHERE = {"text_generation": {"form": {"text": POEM}}}
"""What terms and metrics need of a user's own data that the built-in world lacks, with a row that brings it."""


@cache
def data_of(name: str) -> Data:
    builtin = load_recipe(name).builtin
    if builtin is None:
        pytest.skip(f"{name} has no world of its own")
    return builtin()


def documents_of(recipe: Recipe) -> Sequence[Example]:
    return recipe.documents() if recipe.documents else ()


MAKE_ALL = """
import json, sys
from hashlib import sha256
from rlrecipes.recipe import load_recipe, recipe_names
recipes = [load_recipe(name) for name in recipe_names()]
texts = {r.name: ((r.builtin or tuple)(), list((r.documents or tuple)())) for r in recipes}
worlds = {name: sha256(repr(made).encode()).hexdigest() for name, made in texts.items()}
heavy = [name for name in ("torch", "transformers", "datasets", "trl", "pandas", "numpy") if name in sys.modules]
print(json.dumps({"worlds": worlds, "heavy": heavy}))
"""


@cache
def another_process() -> dict:
    """The worlds that a process with another order of sets makes, and the heavy libraries that it imports for them."""
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", MAKE_ALL]
    made = subprocess.run(command, cwd=RECIPES.parent, env=environment, capture_output=True, text=True, check=True)
    return json.loads(made.stdout)


@pytest.fixture(params=recipe_names())
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return load_recipe(request.param)


@pytest.fixture
def data(recipe: Recipe) -> Data:
    return data_of(recipe.name)


@pytest.fixture
def compared(recipe: Recipe, data: Data) -> Data:
    """Data with comparisons, which a reward without a learned part does without."""
    if not (recipe.reward.learned or data.train.comparisons):
        pytest.skip(f"{recipe.name} learns no reward")
    return data


def applying(parts: Sequence, data: Data) -> list:
    """The terms or metrics that apply to the built-in data."""
    known = set.intersection(*(set(example.truth) for example in (*data.train.prompts, *data.held_out.prompts)))
    served = [part for part in parts if part.needs is None or part.needs in known]
    return [p for p in served if getattr(p, "applies", None) is None or p.applies(data.held_out.prompts)]


def headline_of(recipe: Recipe, data: Data) -> Metric:
    return applying(recipe.evaluation.metrics, data)[0]


def unflipped(pair: Comparison) -> tuple[str, str]:
    return (pair.rejected, pair.chosen) if pair.flipped else (pair.chosen, pair.rejected)


def test_there_are_recipes():
    assert recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_named_after_its_folder(name):
    assert load_recipe(name).name == name


def test_a_recipe_has_a_card(recipe):
    assert (RECIPES / recipe.name / "README.md").exists()


def test_generation_is_deterministic(recipe, data):
    assert recipe.builtin() == data
    documents = list(documents_of(recipe))
    assert list(documents_of(recipe)) == documents
    assert another_process()["worlds"][recipe.name] == sha256(repr((data, documents)).encode()).hexdigest()


def test_no_held_out_prompt_occurs_in_training(recipe, data):
    train = data.train
    trained = {item.prompt for part in (train.demonstrations, train.prompts, train.comparisons) for item in part}
    trained |= {document.prompt for document in documents_of(recipe)}
    held_out = {item.prompt for part in (data.held_out.prompts, data.held_out.comparisons) for item in part}
    assert held_out
    assert not held_out & trained


def test_there_are_a_thousand_different_prompts_to_train_on(data):
    assert len({example.prompt for example in data.train.prompts}) >= 1000
    if data.train.demonstrations:  # a world without any is for training that begins at the base
        assert len({example.prompt for example in data.train.demonstrations}) >= 1000


def test_every_example_has_an_answer(recipe, data):
    for part in (data.train.demonstrations, data.train.prompts, data.held_out.prompts, documents_of(recipe)):
        assert all(example.answers and example.answers[0].strip() for example in part)


def test_every_prompt_ends_with_the_user(recipe, data):
    train = data.train
    for part in (train.demonstrations, train.prompts, train.comparisons, data.held_out.prompts, documents_of(recipe)):
        assert all(item.prompt[-1].role == "user" for item in part)


def test_the_reference_beats_silence_under_every_reward_term(recipe, data):
    for example in data.held_out.prompts[:SAMPLE]:
        for term in applying(recipe.reward.terms, data):
            reference = term.score(example.prompt, example.answers[0], example)
            assert reference > term.score(example.prompt, "", example), (term.name, example)


def test_the_reference_beats_silence_under_the_headline_metric(recipe, data):
    score = headline_of(recipe, data).score
    assert score, "a headline must score answers one by one"
    for example in data.held_out.prompts[:SAMPLE]:
        assert score(example.answers[0], example) > score("", example), example


def test_reward_terms_stay_between_0_and_1(recipe, data):
    for example in data.held_out.prompts[:SAMPLE]:
        for answer in (*example.answers, "", "word " * 200):
            for term in applying(recipe.reward.terms, data):
                assert -1e-9 <= term.score(example.prompt, answer, example) <= 1 + 1e-9, (term.name, answer)


def test_what_terms_and_metrics_need_is_in_the_built_in_data_or_read_from_rows(recipe, data):
    needed = {part.needs for part in (*recipe.reward.terms, *recipe.evaluation.metrics) if part.needs}
    elsewhere = ELSEWHERE.get(recipe.name, {})
    for example in (*data.train.prompts, *data.held_out.prompts):
        assert needed - set(elsewhere) <= set(example.truth)
    for key, row in elsewhere.items():
        assert key in needed
        assert key in recipe.columns.example(row).truth


def test_the_chosen_answer_is_not_the_rejected_one(data):
    for pair in (*data.train.comparisons, *data.held_out.comparisons):
        assert pair.chosen.strip() != pair.rejected.strip()


def test_the_better_answer_scores_no_lower_under_the_headline_metric(recipe, compared):
    data, headline = compared, headline_of(recipe, compared)
    known = {example.prompt: example for example in (*data.train.prompts, *data.held_out.prompts)}
    judged = 0
    for pair in (*data.train.comparisons[:1000], *data.held_out.comparisons):
        better, worse = unflipped(pair)
        if headline.needs and pair.prompt not in known:
            continue  # only the example of the same prompt knows the truth that the metric needs
        example = known[pair.prompt] if headline.needs else Example(pair.prompt, (better,))
        assert headline.score(better, example) >= headline.score(worse, example), pair
        judged += 1
    assert judged > SAMPLE


def test_the_stated_share_of_the_comparisons_is_flipped(recipe, compared):
    data = compared
    stated = importlib.import_module(f"recipes.{recipe.name}.builtin").FLIPPED
    for pairs in (data.train.comparisons, data.held_out.comparisons):
        share = sum(bool(pair.flipped) for pair in pairs) / len(pairs)
        assert share == pytest.approx(stated, abs=0.04)


def test_a_made_comparison_prefers_a_reference_to_something_else(recipe, data):
    if recipe.compare is None:
        pytest.skip(f"{recipe.name} makes no comparisons")
    rng, made = Random(0), 0
    for example in data.held_out.prompts[:SAMPLE]:
        pair = recipe.compare(example, data.held_out.prompts, rng)
        if pair is None:
            continue
        made += 1
        assert pair.rejected.strip()
        assert pair.chosen in example.answers
        assert pair.rejected not in example.answers
    assert made > SAMPLE / 2


def test_recipes_are_imported_without_the_heavy_libraries():
    assert another_process()["heavy"] == []
