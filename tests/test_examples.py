"""The fifth task of docs/adding-a-recipe.md: copied to `recipes/`, it is a recipe like the others, and changes none."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SMALLEST

from rlrecipes.model import embedded
from rlrecipes.recipe import load_recipe, recipe_names


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The project with the example's folder copied to where the guide says."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("rlrecipes", "recipes", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, folder / name)
    example = ROOT / "examples" / "summary"
    shutil.copytree(example, folder / "recipes" / "summary", ignore=ignored, dirs_exist_ok=True)
    return folder


def python(checkout, *arguments):
    given = subprocess.run([sys.executable, "-m", *arguments], cwd=checkout, capture_output=True, text=True)
    assert given.returncode == 0, given.stdout + given.stderr
    return given.stdout


def test_the_contract_tests_take_it_up(checkout):
    out = python(checkout, "pytest", "-q", "tests/recipes/test_contract.py", "-k", "summary", "-p", "no:cacheprovider")
    assert out.count(".") > 10


def test_the_command_line_and_make_take_it_up(checkout):
    assert "\nsummary " in "\n" + python(checkout, "rlrecipes", "list")
    if shutil.which("make"):
        listed = subprocess.run(["make"], cwd=checkout, capture_output=True, text=True, check=True).stdout
        assert "summary" in listed.partition("<recipe> is one of")[2]


def test_it_gets_through_the_smallest_road(checkout):
    python(checkout, "rlrecipes", "run", "summary", *SMALLEST)
    done = json.loads((checkout / "runs" / "tiny" / "summary" / "evaluate" / "done.json").read_text())
    assert done["headline"] == "facts"
    assert done["metrics"].keys() == {"base", "sft", "ppo"}


def test_a_recipe_that_is_added_leaves_the_shared_base_as_it_is_and_has_its_own(monkeypatch):
    shared = embedded.documents("translation")
    fifth = load_recipe("translation").documents()[:3]
    real = embedded.load_recipe
    monkeypatch.setattr(embedded, "recipe_names", lambda: sorted([*recipe_names(), "fifth"]))
    monkeypatch.setattr(
        embedded,
        "load_recipe",
        lambda name: type("Fifth", (), {"documents": lambda: fifth}) if name == "fifth" else real(name),
    )
    assert all(embedded.documents(name) == shared for name in embedded.SHARING)
    own = embedded.documents("fifth")
    assert len(own) == len(shared) + 3
    assert all(document in own for document in fifth)


def test_the_recipes_that_share_a_base_are_there():
    assert set(embedded.SHARING) <= set(recipe_names())
