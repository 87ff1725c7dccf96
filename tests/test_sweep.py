"""A sweep's trial takes SFT and reward model from a run, and trains PPO alone. No server: an agent's part is played here."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, main
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from rlrecipes.profile import load_profile
from rlrecipes.recipe import recipe_names


def command(recipe, tmp_path, values):
    """The arguments after `python` that an agent of W&B would start a trial with."""
    sweep = yaml.safe_load((ROOT / "recipes" / recipe / "sweep.yaml").read_text())
    given = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    words = [word for w in sweep["command"] for word in (given[w[2:-1]] if w.startswith("${") else [w])]
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "FROM": "t", "WANDB_RUN_ID": "abc"}
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return said.stdout.splitlines()


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipes_sweep_tries_settings_that_there_are(recipe, tmp_path):
    parameters = yaml.safe_load((ROOT / "recipes" / recipe / "sweep.yaml").read_text())["parameters"]
    values = {key: each["values"][0] if "values" in each else each["min"] for key, each in parameters.items()}
    words = command(recipe, tmp_path, values)
    assert words[:7] == ["-m", "rlrecipes", "run", recipe, "--from", "t", "--run"]
    assert words[7] == "sweep-abc"
    load_profile("tiny", words[8:])
    assert len(words[8:]) == len(values)


def test_a_trial_takes_what_the_run_has_and_trains_ppo_alone(finished, home, tmp_path, capsys):
    words = command("translation", tmp_path, {"ppo.learning_rate": 3e-06, "ppo.kl_coef": 0.1})
    assert main(words[2:]) == 0
    out = capsys.readouterr().out
    assert "translation · ppo\n" in out
    assert "sft: taken from runs/t/translation/sft" in out
    assert "reward: taken from runs/t/translation/reward" in out


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_a_sweep_without_a_login_says_how_to_log_in(tmp_path):
    words = ["make", "sweep", "RECIPE=translation", "FROM=t", f"VENV={sys.prefix}", "READY=Makefile", "-oMakefile"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "NETRC"))}
    done = subprocess.run(words, cwd=ROOT, env=kept | {"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"log in with `{sys.prefix}/bin/wandb login`" in done.stderr
    assert "Traceback" not in done.stderr
