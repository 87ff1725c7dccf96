"""Installed into an environment of its own, the package is a command that works from any folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import ROOT

from rlrecipes import __version__
from rlrecipes.__main__ import commands
from rlrecipes.profile import profile_names
from rlrecipes.recipe import recipe_names


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Path:
    """`bin/rlrecipes` of a fresh environment, which has the libraries of this one and of the project the wheel alone."""
    folder = tmp_path_factory.mktemp("install")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("rlrecipes", "recipes"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    bin = folder / "venv" / "bin"
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    source = str(folder / "source")
    subprocess.run([*pip, "--python", str(bin / "python"), "install", *offline, source], check=True, cwd=folder)
    return bin / "rlrecipes"


@pytest.fixture
def call(command, tmp_path):
    """Runs the installed command in an empty folder."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_it_says_its_version(call):
    assert call("--version").stdout == f"rlrecipes {__version__}\n"


def test_it_lists_the_packages_recipes_and_profiles_and_those_of_the_working_directory(call, tmp_path):
    own = tmp_path / "recipes"
    shutil.copytree(ROOT / "examples" / "summary", own / "summary", ignore=shutil.ignore_patterns("__pycache__"))
    (own / "profiles").mkdir()
    (own / "profiles" / "small.toml").write_text("[sft]\nmax_steps = 5\n[reward]\nmax_steps = 5\n", encoding="utf-8")
    listed = call("list")
    assert listed.returncode == 0, listed.stderr
    for name in (*recipe_names(), *profile_names(), "summary", "small"):
        assert name in listed.stdout
    shown = call("show", "summary", "--profile", "small")
    assert shown.returncode == 0, shown.stderr
    assert "Summarise: " in shown.stdout


def test_a_commands_help_says_what_it_takes_and_nothing_else(call):
    said = call("chat", "--help").stdout
    assert said.startswith("usage: rlrecipes chat <recipe> [options]\n")
    assert {word.strip(",") for word in said.split() if word.startswith("--")} == {
        "--help",
        *(f"--{option}" for option in commands()["chat"].options),
    }
    assert "--force" not in said


def test_its_hints_are_commands_that_it_has(call):
    assert "begin with `rlrecipes sft translation`" in call("chat", "translation").stderr
    assert "begin with `rlrecipes sft translation --run mine`" in call("export", "translation", "--run", "mine").stderr
    assert "see `rlrecipes list`" in call("run", "xyz").stderr


def test_the_wheel_has_every_file_that_the_package_reads(command):
    (site,) = command.parent.parent.glob("lib/python*/site-packages")
    for folder in ("rlrecipes", "recipes"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".toml", ".j2", ".js") and "__pycache__" not in path.parts:
                assert (site / path.relative_to(ROOT)).is_file(), path
