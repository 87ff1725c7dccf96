"""The house: folders in layers, imports that point downwards, and looking that never waits for torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

LAYERS = (
    "errors text",
    "recipe",
    "metrics profile",
    "run",
    "hub",
    "data",
    "model",
    "job",
    "reward",
    "policy before report",
    "after",
    "stages",
    "pipeline",
    "command",
    "__main__",
)
"""Lowest first; a name is a folder of the package, or a module at its top. What shares a row never imports from it."""
ROW = {name: row for row, names in enumerate(LAYERS) for name in names.split()}
WORDS = {"errors", "text", "recipe", "metrics", "profile"}
"""What recipes are written in."""
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "wandb", "bitsandbytes", "accelerate")

PACKAGE = ROOT / "rlrecipes"
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
RECIPE_FILES = sorted((ROOT / "recipes").rglob("*.py"))


def room(path: Path) -> str:
    """The folder or top module that a file of the package belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Full names of all imported modules and names, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(names: set[str]) -> set[str]:
    """The folders and top modules of the package among imported names."""
    parts = [name.split(".") for name in names]
    return {inner for outer, inner, *_ in (p for p in parts if len(p) > 1) if outer == "rlrecipes" and inner in ROW}


def test_every_folder_and_top_module_has_its_layer():
    assert {room(path) for path in FILES} == set(ROW)


def test_the_top_of_the_package_is_read_at_a_glance():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = room(path)
    assert not {other for other in rooms(imports(path)) if other != own and ROW[other] >= ROW[own]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_longer_than_a_reader_holds_in_mind(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", sorted((PACKAGE / "stages").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_stages_never_import_each_other(path):
    assert not {name for name in imports(path) if name.startswith("rlrecipes.stages.")}


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipes_import_the_words_alone_and_nothing_heavy_anywhere(path):
    names = imports(path)
    assert not {name.partition(".")[0] for name in names} & set(HEAVY)
    assert rooms(names) <= WORDS


def test_recipes_do_not_import_each_other():
    for path in RECIPE_FILES:
        others = {name for name in imports(path) if name.startswith("recipes.")}
        assert all(name.split(".")[1] == path.parent.name for name in others), path


def test_one_file_imports_trls_experimental_ppo():
    users = [path for path in FILES if any(name.startswith("trl.experimental") for name in imports(path))]
    assert [path.relative_to(PACKAGE).as_posix() for path in users] == ["policy/trainer.py"]


@pytest.mark.parametrize(
    "argv",
    [
        ["list"],
        ["--help"],
        ["show", "dialogue"],
        ["sft", "dialogu"],
        ["sft", "dialogue", "sft.max_step=1"],
        ["report"],
        ["plan", "dialogue", "--card", "rtx4091"],
    ],
    ids=" ".join,
)
def test_listing_showing_and_usage_errors_never_wait_for_torch(argv, tmp_path):
    looking = f"""
import sys
from rlrecipes.__main__ import main
try:
    main({argv!r})
except SystemExit:
    pass
heavy = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", looking],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_no_two_files_of_tests_make_a_run_of_one_name():
    """The tests of a process share one folder of runs, and a finished run would refuse other settings."""
    named = (
        r'"--run",\s*"([a-z0-9_-]+)"|--run ([a-z0-9_-]+)|\brun\(\s*"([a-z0-9_-]+)"|copied\(finished, "([a-z0-9_-]+)"'
    )
    files: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for match in re.finditer(named, path.read_text(encoding="utf-8")):
            files.setdefault(next(name for name in match.groups() if name), set()).add(path.name)
    shared = {"t", "apart"}  # which nobody may change
    elsewhere = {"mine", "x", "broken"}  # in folders of their own
    assert [name for name, paths in files.items() if len(paths) > 1 and name not in shared | elsewhere] == []
