"""A run keeps its settings: with its name alone a later command goes on with it, and another run can begin like it."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT, SMALLEST, main, sentences, write_rows

from rlrecipes.errors import UserError
from rlrecipes.profile import load_profile, make_profile
from rlrecipes.run.settings import NAME, Settings, asked_for, put_back, read_settings, tables_of, write_settings

OWN = ("--data", "kept.jsonl", "--columns", "target=post edit", "--seed", "3", "terms.chrf=0.25", *SMALLEST)


@pytest.fixture(scope="module")
def kept(session_home):
    """`runs/kept/translation` after SFT, on a file whose columns have other names."""
    rows = [{"source": row["source"], "post edit": row["target"]} for row in sentences(60)]
    write_rows(session_home / "kept.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(session_home)
        assert main(["sft", "translation", "--run", "kept", *OWN]) == 0
    return session_home / "runs" / "kept" / "translation"


def settings_of(folder, stage):
    return json.loads((folder / stage / "done.json").read_text(encoding="utf-8"))["settings"]


def asked(monkeypatch, *arguments):
    """The job that a command line asks for."""
    seen = []
    monkeypatch.setattr("rlrecipes.__main__.run_stages", lambda job, *others: seen.append(job))
    assert main(arguments) == 0
    return seen[0]


def test_a_run_goes_on_by_its_name_alone_and_says_under_what(kept, home, capsys):
    assert main(["reward", "translation", "--run", "kept"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if NAME in line]
    assert line.startswith("settings of runs/kept/translation/settings.toml: profile tiny with ")
    assert line.endswith("data kept.jsonl, seed 3")
    made = settings_of(kept, "reward")
    assert (made["seed"], made["data.source"], made["sft.max_steps"]) == (3, "kept.jsonl", 2)


def test_all_that_was_said_comes_back_and_what_stands_beside_it_is_another(kept, home, monkeypatch, capsys):
    job = asked(monkeypatch, "ppo", "translation", "--run", "kept")
    assert (job.seed, job.asked.columns, job.profile.ppo.response_length) == (3, {"target": "post edit"}, 6)
    assert {term.name: term.weight for term in job.recipe.reward.terms}["chrf"] == 0.25
    other = asked(monkeypatch, "ppo", "translation", "--run", "kept", "ppo.kl_coef=0.5", "terms.chrf=1", "--seed", "0")
    assert (other.seed, other.profile.ppo.kl_coef, other.profile.ppo.response_length) == (0, 0.5, 6)
    assert {term.name: term.weight for term in other.recipe.reward.terms}["chrf"] == 1
    assert "; here with seed 0, ppo.kl_coef=0.5, terms.chrf=1" in capsys.readouterr().out


def test_other_data_are_read_without_the_columns_of_the_first(kept, home, monkeypatch):
    job = asked(monkeypatch, "ppo", "translation", "--run", "kept", "--data", "pairs.jsonl")
    assert (job.data.source, job.asked.columns, job.seed) == ("pairs.jsonl", {}, 3)


def test_a_named_profile_is_taken_whole(kept, home, monkeypatch, capsys):
    job = asked(monkeypatch, "ppo", "translation", "--run", "kept", "--profile", "tiny")
    assert (job.seed, job.data.source, job.profile) == (0, "built-in", load_profile("tiny"))
    assert NAME not in capsys.readouterr().out


def test_a_finished_stage_under_changed_settings_is_still_refused(kept, home, capsys):
    assert main(["sft", "translation", "--run", "kept", "sft.max_steps=3"]) == 2
    assert "sft.max_steps = 2 where you now have 3" in capsys.readouterr().err


def test_a_home_in_the_name_of_a_settings_file_is_found(kept, home, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(kept))
    job = asked(monkeypatch, "sft", "translation", "--run", "like", "--settings", f"~/{NAME}")
    assert (job.run.name, job.seed) == ("like", 3)
    assert main(["sft", "translation", "--run", "like", "--settings", "~nobody-has-this/a.toml"]) == 2
    assert "cannot read ~nobody-has-this/a.toml (No such file" in capsys.readouterr().err


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
@pytest.mark.parametrize("where", ["named", "of the run", "in the way"])
def test_a_pipe_or_a_device_in_the_place_of_settings_is_refused_and_not_waited_for(home, make, where):
    path = home / "runs" / "piped" / "translation" / NAME
    path.parent.mkdir(parents=True)
    make(path)
    options = {
        "named": ["--run", "another", "--settings", str(path)],
        "of the run": ["--run", "piped"],
        "in the way": ["--run", "piped", "--profile", "tiny", *SMALLEST],
    }[where]
    limit = ["prlimit", f"--as={16 << 30}"] if shutil.which("prlimit") else []  # a device gives bytes without end
    command = [*limit, sys.executable, "-m", "rlrecipes", "sft", "translation", "--data", "pairs.jsonl", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    shutil.rmtree(path.parent.parent)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*{NAME} is no regular file; move it away, or name a settings\.toml .*", last)


def test_another_run_begins_with_the_settings_of_a_file(kept, home, monkeypatch, capsys):
    job = asked(monkeypatch, "sft", "translation", "--run", "like", "--settings", str(kept / NAME), "--seed", "4")
    assert (job.run.name, job.seed, job.data.source, job.profile.sft.max_steps) == ("like", 4, "kept.jsonl", 2)
    assert read_settings(kept / NAME) == dataclasses.replace(job.asked, seed=3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sft", "translation", "--settings", "{file}"], "name the new run, as --run"),
        (
            ["sft", "translation", "--run", "x", "--settings", "{file}", "--profile", "tiny"],
            "--profile … or --settings",
        ),
        (["sft", "translation", "--run", "x", "--settings", "nothing.toml"], "cannot read nothing.toml"),
        (["sft", "dialogue", "--run", "x", "--settings", "{file}"], "is of the recipe translation, not of dialogue"),
        (["sft", "translation", "--run", "kept", "sft.max_stepz=3"], "did you mean 'sft.max_steps'?"),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_line(kept, home, capsys, arguments, said):
    assert main([argument.format(file=kept / NAME) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def damaged(text):
    yield text.replace("seed = 3", "seed = 4"), "is no longer what was written"
    yield text.replace("# How", "# Now"), "is no longer what was written"
    yield text.replace("seed = 3\n", ""), "is damaged ('seed': Field required); delete it"
    yield text.replace("[sft]", "[sft"), "is damaged (Expected"
    yield text.replace("seed = 3", 'seed = "3"'), "is damaged ('seed': Input should be a valid integer); delete it"
    yield "\xff", "is damaged ("


def test_a_damaged_file_is_one_line(kept, home, capsys):
    text = (kept / NAME).read_text(encoding="utf-8")
    try:
        for wrong, said in damaged(text):
            (kept / NAME).write_bytes(wrong.encode("latin-1"))
            assert main(["evaluate", "translation", "--run", "kept"]) == 2
            out, err = capsys.readouterr()
            assert (out, err.count("\n")) == ("", 1)
            assert f"{NAME} {said}" in err
    finally:
        (kept / NAME).write_text(text, encoding="utf-8")


def test_a_change_on_purpose_counts_once_its_checksum_is_gone(kept, home, tmp_path, monkeypatch):
    lines = (kept / NAME).read_text(encoding="utf-8").replace("seed = 3", "seed = 5").splitlines(keepends=True)
    (tmp_path / "mine.toml").write_text("".join(line for line in lines if not line.startswith("sha256")), "utf-8")
    job = asked(monkeypatch, "sft", "translation", "--run", "by-hand", "--settings", str(tmp_path / "mine.toml"))
    assert job.seed == 5


def test_what_failed_at_once_is_not_taken_up_by_a_command_that_says_less(kept, home, capsys):
    before = (kept / NAME).read_bytes()
    assert (
        main(["reward", "translation", "--run", "kept", "--force", "model.max_length=5", "ppo.response_length=2"]) == 2
    )
    assert main(["sft", "translation", "--run", "failed", *OWN, "sft.per_device_train_batch_size=4000"]) == 2
    capsys.readouterr()
    assert (kept / NAME).read_bytes() == before
    assert not (home / "runs" / "failed").exists()


def test_settings_are_written_aside_and_come_back_whatever_they_hold(tmp_path):
    folder = tmp_path / "mine" / "translation"
    folder.mkdir(parents=True)
    odd = 'a "b"\\\n\x7f\u2028 ü 文'
    settings = Settings("translation", "tiny", odd, 0, {odd: odd}, {"learned": 1e-7}, tables_of(load_profile("tiny")))
    assert write_settings(folder, settings) is None
    assert read_settings(folder / NAME) == settings
    assert [path.name for path in folder.iterdir()] == [NAME]
    first = (folder / NAME).read_text(encoding="utf-8")
    assert write_settings(folder, dataclasses.replace(settings, seed=1)) == first
    assert tomllib.loads((folder / NAME).read_text(encoding="utf-8"))["seed"] == 1
    put_back(folder, first)
    assert read_settings(folder / NAME) == settings


def test_a_file_that_is_read_and_written_again_keeps_its_bytes(tmp_path):
    for name in ("first", "again"):
        (tmp_path / name / "t").mkdir(parents=True)
    profile = load_profile("single_gpu_24gb")
    write_settings(tmp_path / "first" / "t", asked_for("t", profile, None, 0))
    own = read_settings(tmp_path / "first" / "t" / NAME)
    write_settings(
        tmp_path / "again" / "t", asked_for("t", make_profile(own.tables, own.profile, (), None, NAME), None, 0)
    )
    first, again = ((tmp_path / name / "t" / NAME).read_text("utf-8").split("\n", 2)[2] for name in ("first", "again"))
    assert first == again


def test_a_missing_file_says_what_to_name(tmp_path):
    with pytest.raises(UserError, match=r"name a settings\.toml that a run has left"):
        read_settings(tmp_path / NAME)


def test_a_plan_of_a_run_is_under_what_the_run_was_begun_with(kept, home, capsys):
    assert main(["plan", "translation", "--run", "kept", "--card", "24"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("settings of runs/kept/translation/settings.toml: profile tiny with ")
    assert "answers of at most 6" in said
    assert "(now 8)" in said, "the batch of its PPO"
    assert main(["plan", "translation", "--run", "kept", "--card", "24", "ppo.response_length=9"]) == 0
    assert "answers of at most 9" in capsys.readouterr().out
