"""Python runs what the command line runs, into the same folders; docs/python.md says so, and its examples do."""

import dataclasses
import json
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, SMALLEST, main, sentences, write_rows

import rlrecipes
from rlrecipes import UserError, load_profile, load_recipe, run_recipe
from rlrecipes.profile import split_override
from rlrecipes.run.interrupts import Interrupted, finishing_first

OWN = {"data": "pairs.jsonl", "run": "t"}
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.S)


@pytest.fixture
def profile(home):
    return load_profile("tiny", SMALLEST)


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/done.json")}


def test_importing_the_package_imports_nothing_else():
    code = "import sys, rlrecipes; print([name for name in sys.modules if name.startswith(('rlrecipes.', 'torch'))])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_name_that_the_package_offers_is_there():
    assert all(callable(getattr(rlrecipes, name)) for name in rlrecipes.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        rlrecipes.nonsense  # noqa: B018


def test_what_the_command_line_finished_is_finished_for_python_too(finished, profile, capsys):
    before = times(finished)
    records = run_recipe("translation", profile, **OWN)
    assert list(records) == ["sft", "reward", "ppo", "answers", "evaluate", "report"]
    for stage, record in records.items():
        assert record == json.loads((finished / stage / "done.json").read_text(encoding="utf-8"))
    assert capsys.readouterr().out.count("done already") == 6
    assert times(finished) == before


def test_stages_run_in_their_own_order_whatever_order_they_are_named_in(finished, profile):
    assert list(run_recipe("translation", profile, ("ppo", "sft"), **OWN)) == ["sft", "ppo"]


def test_a_stage_that_lacks_another_is_refused_before_any_is_run(profile, home):
    with pytest.raises(UserError, match=r"no finished ppo stage .*rlrecipes ppo translation --run gap"):
        run_recipe("translation", profile, ("sft", "reward", "evaluate"), data="pairs.jsonl", run="gap")
    assert not (home / "runs" / "gap").exists()


def test_recipes_that_share_a_reward_model_share_two_stages(profile, home):
    with pytest.raises(UserError, match="can share sft and reward alone"):
        run_recipe("translation+dialogue", profile, "ppo", run="both")
    records = run_recipe("translation+dialogue", profile, run="both")
    assert list(records) == ["sft", "reward"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"recipe": "translatoin"}, "did you mean 'translation'"),
        ({"profile": "tyni"}, "did you mean 'tiny'"),
        ({"stages": "pop"}, "there is no stage 'pop'; did you mean 'ppo'"),
        ({"seed": -1}, "seed is -1"),
        ({"run": "../elsewhere"}, "cannot name a run"),
        ({"data": "nothing.jsonl"}, r"nothing\.jsonl"),
    ],
)
def test_what_the_user_can_mend_is_raised_and_nothing_is_written(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        run_recipe(**{"recipe": "translation", **arguments})
    assert not list(tmp_path.iterdir())


def test_a_recipe_without_a_folder_brings_no_documents_to_the_embedded_base(profile):
    recipe = dataclasses.replace(load_recipe("translation"), name="mine")
    with pytest.raises(
        UserError, match=r"put 'mine' into recipes/mine/recipe.py, name a model, or leave its documents"
    ):
        run_recipe(recipe, profile, "sft")
    with pytest.raises(UserError, match=r"'\.\./mine' cannot name a recipe"):
        run_recipe(dataclasses.replace(recipe, name="../mine"), profile, "sft")


def test_an_interrupted_step_is_finished_first(profile, monkeypatch):
    done = []

    def step(*arguments):
        with finishing_first():
            signal.raise_signal(signal.SIGINT)
            done.append("the step")

    monkeypatch.setattr("rlrecipes.pipeline.run_stages", step)
    with pytest.raises(Interrupted):
        run_recipe("translation", profile, "sft", **OWN)
    assert done == ["the step"]


def test_signals_are_the_callers_again_afterwards(finished, profile):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run_recipe("translation", profile, "sft", **OWN)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_guides_examples_run(home, base, tmp_path, monkeypatch, capsys):
    """On a `tiny` of one's own, which stands before the package's and takes two seconds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".base").symlink_to(home / "runs" / ".base")
    write_rows(tmp_path / "pairs.jsonl", sentences(60))
    tables: dict[str, list[str]] = {}
    small = [setting for setting in SMALLEST if not setting.startswith("evaluate.policies")]
    for setting in (*small, "grpo.anyway=true"):
        table, key, value = split_override(setting)
        tables.setdefault(table, []).append(f"{key} = {value if value[0].isdigit() else json.dumps(value)}")
    folder = tmp_path / "recipes" / "profiles"
    folder.mkdir(parents=True)
    text = "\n".join(f"[{table}]\n" + "\n".join(lines) for table, lines in tables.items())
    (folder / "tiny.toml").write_text(text, encoding="utf-8")

    names: dict[str, object] = {}
    for example in EXAMPLES:
        exec(example, names)
    out = capsys.readouterr().out
    assert re.search(r"^ppo \d", out, re.M), "the figures of the first example"
    assert "there is no recipe 'translatoin'; did you mean 'translation'?" in out
    assert "dict_keys(['sft', 'ppo', 'answers', 'evaluate', 'report'])" in out
    assert {path.name for path in (tmp_path / "runs").glob("[!.]*")} == {"first", "slow", "short", "checked"}
    assert main(["report", "translation", "--run", "first", "--data", "pairs.jsonl", "sft.max_steps=50"]) == 0
    assert "done already" in capsys.readouterr().out


def test_a_run_takes_sft_and_the_reward_model_of_another(finished, home, capsys):
    changed = [setting for setting in SMALLEST if not setting.startswith("ppo.total_episodes")]
    asked = {"data": "pairs.jsonl", "overrides": [*changed, "ppo.total_episodes=8"]}
    records = run_recipe("translation", run="python-taking", from_run="t", **asked)
    assert [records[stage]["taken"]["run"] for stage in ("sft", "reward")] == ["t", "t"]
    assert records["ppo"]["settings"]["ppo.total_episodes"] == 8
    assert "taken from runs/t/translation/sft" in capsys.readouterr().out
    with pytest.raises(UserError, match="name a new run"):
        run_recipe("translation", from_run="t", **asked)
    with pytest.raises(UserError, match="there is no run 'nobody'"):
        run_recipe("translation", run="python-taking", from_run="nobody", **asked)


def test_a_model_of_ones_own_gets_settings_that_fit_it(checkpoint, home, capsys):
    own = {"model": str(checkpoint.model), "data": "pairs.jsonl", "stages": "sft", "run": "python-own"}
    record = run_recipe("translation", overrides=["sft.max_steps=2", "track.wandb=off"], **own)["sft"]
    assert "translation: settings for 0.1" in capsys.readouterr().out
    assert record["settings"]["model.name"] == str(checkpoint.model)
    assert record["settings"]["sft.max_steps"] == 2
    assert record["settings"]["sft.learning_rate"] == 0.002
    assert main(["sft", "translation", "--run", "python-own"]) == 0
    assert "done already" in capsys.readouterr().out


def test_what_a_loaded_profile_has_is_not_said_twice(profile):
    with pytest.raises(UserError, match="give them to load_profile"):
        run_recipe("translation", profile, overrides=["sft.max_steps=3"], **OWN)
    with pytest.raises(UserError, match=r"reward\.max_steps=3 has no effect while terms\.learned is 0"):
        run_recipe("translation", overrides=["terms.learned=0", "reward.max_steps=3"], **OWN)
