"""The fifth task of docs/adding-a-recipe.md, with a world and without: in `recipes/` it is a recipe like the others."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SMALLEST, smallest, write_rows

from rlrecipes.model import embedded
from rlrecipes.recipe import load_recipe, recipe_names


def with_example(folder, example):
    """The project in `folder`, with an example copied to where its README says."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("rlrecipes", "recipes", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "examples" / example, folder / "recipes" / example.partition("_")[0], ignore=ignored)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return with_example(tmp_path_factory.mktemp("world"), "summary")


@pytest.fixture(scope="module")
def without_world(tmp_path_factory):
    return with_example(tmp_path_factory.mktemp("short"), "summary_short")


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
    assert done["metrics"].keys() >= {"base", "sft", "ppo"}


def test_the_guides_recipe_is_the_short_example_and_has_less_than_40_lines():
    code = (ROOT / "examples" / "summary_short" / "recipe.py").read_text(encoding="utf-8")
    guide = (ROOT / "docs" / "adding-a-recipe.md").read_text(encoding="utf-8")
    assert re.findall(r"```python\n(.*?)```", guide, re.DOTALL)[0] == code
    assert len(code.splitlines()) < 40
    assert f"One file of {len(code.splitlines())} lines" in guide


def test_without_a_world_the_contract_and_the_types_hold_as_well(without_world):
    out = python(
        *(without_world, "pytest", "-q", "tests/recipes/test_contract.py", "tests/test_layers.py", "-k", "summary"),
        *("-p", "no:cacheprovider"),
    )
    assert "." in out
    python(without_world, "mypy", "--cache-dir", "none", "-p", "recipes.summary")


def test_without_a_world_it_gets_through_the_smallest_road_on_data_and_a_model_of_ones_own(without_world, checkpoint):
    rows = [{"text": f"Anna met Ben {i}. They bought {i}.", "summary": f"They bought {i} things."} for i in range(60)]
    own = ("--data", write_rows(without_world / "rows.jsonl", rows).name, "--model", str(checkpoint.model))
    python(without_world, "rlrecipes", "run", "summary", *own, *smallest(["--model"]))
    done = json.loads((without_world / "runs" / "own" / "summary" / "evaluate" / "done.json").read_text())
    assert done["headline"] == "overlap"
    assert done["metrics"].keys() >= {"base", "sft", "ppo"}
    policy = ("--policy", "sft", "--json")
    chat = [sys.executable, "-m", "rlrecipes", "chat", "summary", *policy]
    given = subprocess.run(chat, cwd=without_world, input='{"prompt": "Hello"}\n', capture_output=True, text=True)
    assert given.returncode == 0, given.stderr


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    return with_example(tmp_path_factory.mktemp("sums"), "arithmetic")


def test_a_world_without_demonstrations_holds_the_contract(sums):
    checked = ("tests/recipes/test_contract.py", "tests/test_layers.py", "-k", "arithmetic", "-p", "no:cacheprovider")
    out = python(sums, "pytest", "-q", *checked)
    assert out.count(".") > 10
    python(sums, "mypy", "--cache-dir", "none", "-p", "recipes.arithmetic")


def test_arithmetic_is_learned_from_the_base_by_a_program_that_checks_the_answer(sums):
    small = [s for s in SMALLEST if s.startswith(("base.", "track.", "evaluate.limit", "lora."))]
    groups = [
        f"{table}.{key}"
        for table in ("rloo", "grpo")
        for key in ("total_episodes=16", "per_device_train_batch_size=8", "num_iterations=2")
    ]
    asked = ("run.start=base", "run.algorithms=rloo,grpo", "ppo.response_length=6", "evaluate.pass_at=4")
    python(sums, "rlrecipes", "run", "arithmetic", *small, *groups, *asked)
    folder = sums / "runs" / "tiny" / "arithmetic"
    done = json.loads((folder / "evaluate" / "done.json").read_text())
    assert done["headline"] == "right"
    assert {"grpo_over_base", "rloo_over_base"} <= done["comparisons"].keys()
    assert all({"pass@1", "pass@4"} <= done["metrics"][policy].keys() for policy in ("base", "rloo", "grpo"))
    assert not (folder / "sft").exists()
    assert not (folder / "reward").exists()


def test_a_world_without_demonstrations_is_not_imitated(sums):
    given = subprocess.run(
        [sys.executable, "-m", "rlrecipes", "show", "arithmetic"], cwd=sums, capture_output=True, text=True
    )
    assert given.returncode == 2
    assert "built-in brings no demonstrations for SFT to imitate; begin at the base (START=base)" in given.stderr


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
