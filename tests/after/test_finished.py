"""What a run has trained is found without options; what it lacks is told with the command that makes it."""

import io
import json
import os
import shutil
import sys

import pytest
from conftest import ROOT, SMALLEST, changed, main, resealed

from rlrecipes.after.finished import find_finished_run
from rlrecipes.errors import UserError, option, switch
from rlrecipes.recipe import load_recipe
from rlrecipes.run.folder import Run, make


@pytest.fixture
def copy(home, apart):
    """A copy of a finished run that a test may take things away from."""
    folder = home / "runs" / "copy" / "translation"
    shutil.copytree(apart, folder)
    yield folder
    shutil.rmtree(folder.parent)


def finished():
    return find_finished_run(Run("copy", "translation"), load_recipe("translation"))


def refused(capsys, *arguments):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("command", ["chat", "export"])
def test_nothing_trained_yet_names_the_command_that_begins(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, command, "translation")
    assert (
        "nothing has been trained in runs/tiny/translation; begin with `python -m rlrecipes sft translation`" in error
    )
    assert "`python -m rlrecipes sft translation --run mine`" in refused(
        capsys, command, "translation", "--run", "mine"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["chat", "export"])
def test_a_policy_that_is_not_there_yet_names_the_command_that_makes_it(copy, capsys, command):
    shutil.rmtree(copy / "ppo")
    error = refused(capsys, command, "translation", "--run", "copy", "--policy", "ppo")
    assert "make it with `python -m rlrecipes ppo translation --run copy`, or choose --policy sft" in error
    weak = (
        "the reward model's held-out accuracy 0.5 is not shown to be above the 0.5 that guessing has; bring more rows"
    )
    changed(copy / "evaluate" / "done.json", withheld=weak, not_run=["ppo"])
    error = refused(capsys, command, "translation", "--run", "copy", "--policy", "ppo")
    assert (
        "since the reward model's held-out accuracy 0.5 is not shown to be above the 0.5 that guessing has; " in error
    )
    assert (
        "all the same with `python -m rlrecipes ppo translation --run copy ppo.anyway=true`, or choose --policy"
        in error
    )


def test_one_algorithm_is_enough_for_nothing_to_be_missing(copy):
    assert finished().missing() is None
    shutil.move(copy / "ppo", copy / "rloo")
    record = json.loads((copy / "rloo" / "done.json").read_text(encoding="utf-8"))
    (copy / "rloo" / "done.json").write_text(json.dumps(record | {"stage": "rloo"}), encoding="utf-8")
    resealed(copy / "rloo")
    assert finished().missing() is None
    assert "rloo" in finished().policies
    assert finished().answer_length == record["answer_length"]
    shutil.rmtree(copy / "rloo")
    assert "PPO has not been run" in str(finished().missing())


@pytest.mark.parametrize("command", ["chat", "export"])
def test_an_algorithm_that_the_run_does_not_have_names_the_command_that_makes_it(copy, capsys, command):
    error = refused(capsys, command, "translation", "--run", "copy", "--policy", "grpo")
    assert "GRPO has not been run in runs/copy/translation" in error
    assert "make it with `python -m rlrecipes grpo translation --run copy`, or choose --policy ppo" in error


def test_each_algorithm_that_was_not_run_is_told_with_its_own_way_out(copy):
    shutil.rmtree(copy / "ppo")
    changed(copy / "evaluate" / "done.json", withheld="the reward model is at chance; bring", not_run=["rloo", "grpo"])
    assert str(finished().missing()).startswith(
        "RLOO was not run in runs/copy/translation, since the reward model is at"
    )
    for name in ("rloo", "grpo"):
        with pytest.raises(UserError, match=f"`python -m rlrecipes {name} translation --run copy {name}.anyway=true`"):
            finished().policy(name)
    with pytest.raises(UserError, match="PPO has not been run in"):
        finished().policy("ppo")


def test_without_a_wish_the_policy_that_was_trained_last_is_taken(copy):
    assert finished().policy(None) == "ppo"
    shutil.rmtree(copy / "ppo")
    assert finished().policy(None) == "sft"
    assert finished().policies == ("base", "sft")


@pytest.mark.parametrize("command", ["chat", "export"])
def test_an_embedded_base_that_is_gone_is_told(copy, capsys, command):
    path = copy / "sft" / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "runs/.base/gone"}))
    resealed(copy / "sft")
    error = refused(capsys, command, "translation", "--run", "copy")
    assert "is gone (runs/.base/gone); put it back" in error
    assert "`python -m rlrecipes run translation --run copy --force` and the run's options" in error
    path.write_text("{")
    assert f"{path.relative_to(copy.parents[2])} is damaged" in refused(capsys, command, "translation", "--run", "copy")


@pytest.mark.parametrize("command", ["chat", "export"])
def test_a_base_that_cannot_be_had_is_told_with_the_way_without_a_network(copy, capsys, monkeypatch, command):
    path = copy / "sft" / "done.json"
    done = json.loads(path.read_text())
    for name, said in (("nobody/nothing", "hf download nobody/nothing"), ("./gone", "no model in './gone'")):
        path.write_text(json.dumps({**done, "settings": {**done["settings"], "model.name": name}}))
        resealed(copy / "sft")
        error = refused(capsys, command, "translation", "--run", "copy")
        assert said in error
        assert "--model" not in error  # which both would refuse


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat"], "`chat` needs a recipe"),
        (["chat", "translation", "--policy", "pppo"], "did you mean 'ppo'?"),
        (["chat", "translation", "--model", "gpt2"], "leave --model out"),
        (["chat", "translation", "--data", "a.jsonl"], "leave --data out"),
        (["chat", "translation", "--force"], "leave --force out"),
        (["chat", "translation", "sft.max_steps=5"], "leave sft.max_steps=5 out"),
        (["chat", "translation", "--merged"], "`chat` does not take --merged; leave --merged out"),
        (["chat", "translation", "--temperature", "-1"], "0, which is greedy"),
        (["chat", "translation", "--temperature", "1e-40"], "from 0.01 on"),
        (["chat", "translation", "--temperature", "nan"], "finite"),
        (
            ["export", "translation", "--temperature", "1"],
            "`export` does not take --temperature; leave --temperature out",
        ),
        (["export", "translation", "--policy", "base"], "the base is not ours to export"),
        (["export", "translation", "--push", "policy"], "write it as org/name"),
        (["export", "translation", "--push", "a/b/c"], "write it as org/name"),
        (["export", "translation", "--push"], "--push"),
        (["ppo", "translation", "--policy", "sft"], "`ppo` does not take --policy; leave --policy out"),
        (["run", "translation", "--json"], "`run` does not take --json; leave --json out"),
    ],
)
def test_a_usage_error_is_one_sentence(home, apart, capsys, arguments, said):
    assert said in refused(capsys, *arguments, "--run", "apart")


def test_a_chat_without_standard_input_is_told(home, apart, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert "no standard input" in refused(capsys, "chat", "translation", "--run", "apart")


def test_a_record_that_lacks_a_part_is_told(copy, capsys):
    path = copy / "ppo" / "done.json"
    done = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in done.items() if key != "seed"}))
    resealed(copy / "ppo")
    assert "done.json lacks 'seed'" in refused(capsys, "export", "translation", "--run", "copy")


@pytest.mark.parametrize(
    ("folder", "called", "commands"),
    [
        (
            ROOT,
            "rlrecipes/__main__.py",
            ["make ppo RECIPE=dialogue", "make ppo RECIPE=dialogue RUN=mine", "make dialogue PROFILE=single_gpu_16gb"],
        ),
        (
            "/",
            "bin/rlrecipes",
            [
                "rlrecipes ppo dialogue",
                "rlrecipes ppo dialogue --run mine",
                "rlrecipes run dialogue --profile single_gpu_16gb",
            ],
        ),
        (
            "/",
            "notebook.py",
            [
                "python -m rlrecipes ppo dialogue",
                "python -m rlrecipes ppo dialogue --run mine",
                "python -m rlrecipes run dialogue --profile single_gpu_16gb",
            ],
        ),
    ],
)
def test_the_commands_name_the_run_or_its_profile_in_the_way_that_works_here(monkeypatch, folder, called, commands):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", [called])
    targets = (("ppo", "tiny"), ("ppo", "mine"), ("dialogue", "single_gpu_16gb"))
    assert [make(target, Run(run, "dialogue")) for target, run in targets] == commands


def test_options_are_named_as_make_takes_them_where_it_is_at_hand(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert (option("policy", "sft"), option("run"), switch("force")) == ("POLICY=sft", "RUN=…", "FORCE=1")
    monkeypatch.chdir(tmp_path)
    assert (option("policy", "sft"), option("run"), switch("force")) == ("--policy sft", "--run …", "--force")
    (tmp_path / "Makefile").touch()  # of another project
    assert switch("force") == "--force"


def test_the_prompts_form_is_seen_in_the_evaluation_or_else_in_the_built_in_data(copy):
    assert finished().prefix == "Translate: "
    samples = copy / "evaluate" / "samples.jsonl"
    samples.write_text(samples.read_text().replace("Translate: ", ""))
    resealed(copy / "evaluate")
    assert finished().prefix == "", "the user's data had a form of their own"
    shutil.rmtree(copy / "evaluate")
    assert finished().prompts == (), "the run's data were the user's"
    record = json.loads((copy / "sft" / "done.json").read_text())
    record["data"]["source"] = "built-in"
    (copy / "sft" / "done.json").write_text(json.dumps(record))
    resealed(copy / "sft")
    assert finished().prompts[0][-1].content.startswith("Translate: ")
    assert not finished().many_turns


WRITTEN: list[str] | None = None
"""What the process writes or moves in the test below; None outside of it, since a hook stays for good."""


def note_writing(event, arguments):
    if WRITTEN is not None and event in ("open", "os.rename", "os.remove", "os.truncate", "os.utime", "os.chmod"):
        reads = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if not reads:
            WRITTEN.append(f"{event} {arguments[0]}")


@pytest.mark.parametrize("command", ["run", "evaluate", "report", "chat"])
def test_a_finished_run_is_only_read_so_it_may_lie_on_a_read_only_disk(finished, home, monkeypatch, command):
    options = ["--run", "t"] if command == "chat" else ["--run", "t", "--data", "pairs.jsonl", *SMALLEST]
    monkeypatch.setattr("sys.stdin", io.StringIO("Das Kind liest.\n"))
    sys.addaudithook(note_writing)
    monkeypatch.setitem(globals(), "WRITTEN", [])
    assert main([command, "translation", *options]) == 0
    assert [
        line for line in WRITTEN if "runs" in line and ".lock" not in line
    ] == []  # where no lock can lie, none does
