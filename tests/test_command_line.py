"""Whatever is wrong, one sentence says so; whatever needs no training answers without torch."""

import dataclasses
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SMALLEST, WITHOUT_TORCH, main, sentences, smallest, write_rows

import recipes.translation.recipe
import rlrecipes
from rlrecipes.__main__ import commands
from rlrecipes.command.options import OPTIONS
from rlrecipes.errors import UserError
from rlrecipes.profile import profile_names
from rlrecipes.recipe import Reward, Term, load_recipe, recipe_names
from rlrecipes.run.environment import check_environment
from rlrecipes.run.stages import STAGES


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command that must fail before any stage is looked at; returns its sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlrecipes.__main__.run_stages", lambda *arguments: pytest.fail("it would have trained"))

    def run(*arguments: str) -> str:
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert not (tmp_path / "runs").exists()
        return err

    return run


@pytest.fixture
def stopped(home, monkeypatch, capsys):
    """Runs a command that must fail once it has seen model or data; returns its sentence."""

    def run(*arguments: str, name: str = "stopped") -> str:
        folder = home / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        assert main(["run", "translation", "--run", name, *smallest(arguments), *arguments]) == 2
        err = capsys.readouterr().err
        assert "Traceback" not in err
        lines = [line for line in re.split("[\n\r]", err) if "error: " in line]
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert not list(folder.glob("*/.*")), "a draft is left"
        return lines[0]

    return run


# Names and settings.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rum", "translation"], "did you mean 'run'?"),
        (["xyz"], "there is no command 'xyz'; there are list"),
        (["run", "translatoin"], "did you mean 'translation'?"),
        (["run", "xyz"], "python -m rlrecipes list"),
        (["run"], "`run` needs a recipe: dialogue"),
        (["run", "sft.max_steps=5"], "needs a recipe"),
        (["run", "translation", "--profile", "tyni"], "did you mean 'tiny'?"),
        (["run", "translation", "sft.max_stpes=5"], "did you mean 'sft.max_steps'?"),
        (["run", "translation", "stf.max_steps=5"], "did you mean 'sft.max_steps'?"),
        (["run", "translation", "fast"], "write it as table.key=value"),
        (["run", "translation", "sft.max_steps="], "cannot read the setting"),
        (["run", "translation", "sft.max_steps=few"], "error: sft.max_steps=few: it must be a whole number"),
        (["run", "translation", "sft.learning_rate=low"], "error: sft.learning_rate=low: it must be a number"),
        (["run", "translation", "sft.gradient_checkpointing=maybe"], "true or false"),
        (["run", "translation", "model.quantization=int8"], "it must be one of nf4, none"),
        (["run", "translation", "ppo.kl_coef=nan"], "finite"),
        (["run", "translation", "ppo.max_steps=5"], "ppo.total_episodes"),
        (["run", "translation", "ppo.num_mini_batches=7"], "divide"),
        (["run", "translation", "terms.chfr=1"], "did you mean 'chrf'?"),
        (["run", "translation", "terms.chrf=much"], "must be a number"),
        (["run", "translation", "terms.learned=nan"], "finite"),
        (["run", "translation", "terms.learned=0", "terms.chrf=0"], "weight 0"),
        (["run", "translation", "reward.objective=listwise"], "it must be one of auto, pairwise, regression"),
        (["run", "translation", "reward.objective=regression"], "needs ratings"),
        (["run", "translation", "reward.model=nothing/here"], "cannot read the model 'nothing/here'"),
        (["run", "translation", "reward.model=/nothing"], "it is not there"),
        (["run", "translation", "reward.model=."], "neither adapter_config.json nor config.json"),
        (["run", "translation", "reward.model=.", "reward.max_steps=5"], "reward.max_steps=5 has no effect beside"),
        (["run", "translation", "reward.model=.", "terms.learned=0"], "no effect while terms.learned is 0"),
        (["show", "translation", "reward.max_steps=5", "terms.learned=0"], "no effect while terms.learned is 0"),
        (["plan", "translation", "reward.max_steps=5", "terms.learned=0"], "no effect while terms.learned is 0"),
        (["export", "translation", "--data", "a.jsonl"], "leave --data out"),
        (["plan", "translation+dialogue"], "`plan` is for one recipe"),
        (["export", "translation+dialogue"], "`export` is for one recipe"),
        (
            ["show", "translation", "--temperature", "0"],
            "`show` does not take --temperature; leave --temperature out (it takes --profile",
        ),
        (["chat", "translation", "--temp", "0"], "`chat` does not take --temp; leave --temp out"),
        (["list", "translation"], "`list` does not take translation; leave translation out (it takes nothing)"),
        (["--profile", "tiny", "run", "translation"], "name a command first"),
        (["show", "translation", "--data", ""], "--data is empty"),
        (["run", "translation", "--run", "a" * 300], "cannot name a run"),
        (["run", "translation", "--run", "a$(x)"], "cannot name a run"),
        (["show", "translation", "--columns", "target=a", "target=b"], "names one column for two"),
        (
            ["run", "translation", "--model", "gpt2", "base.max_steps=3"],
            "base.max_steps=3 has no effect on the model 'gpt2'",
        ),
        (["run", "translation", "base.num_attention_heads=7"], "base.num_attention_heads=7 does not cut"),
        (["run", "translation", "base.vocab_size=10"], "base.vocab_size=10: it must be 261 or more"),
        (["run", "translation", "base.seed=99999999999"], "base.seed=99999999999: it must be at most"),
        (["run", "translation", "lora.lora_dropout=2"], "lora.lora_dropout=2: it must be less than 1"),
        (["run", "translation", "ppo.temperature=1e-9"], "ppo.temperature=1e-9: it must be 0.01 or more"),
        (["run", "translation", "ppo.response_length=512"], "leaves no room for a prompt"),
        (["reward", "translation+dialog"], "did you mean 'dialogue'?"),
        (["reward", "translation+"], "empty recipe"),
        (["reward", "translation+translation"], "names a recipe twice"),
        (["ppo", "translation+dialogue"], "`ppo` is for one recipe"),
        (["run", "translation+dialogue"], "`run` is for one recipe"),
        (["reward", "translation+dialogue", "terms.chrf=1"], "is for one recipe"),
        (["reward", "translation+dialogue", "reward.model=."], "is for one recipe"),
        (["reward", "translation+dialogue", "--data", "a.jsonl"], "names 1 sources for the 2 recipes"),
        (["run", "translation", "--seed", "-1"], "--seed is -1"),
        (["run", "translation", "--seed", "one"], "--seed"),
        (["run", "translation", "--nonsense"], "--nonsense"),
        (["run", "translation", "--run", "../elsewhere"], "cannot name a run"),
        (["run", "translation", "--columns", "target=post_edit"], "no file is named"),
        (["demo", "translation"], "name no recipe"),
        (["run", "translation", "--card", "24"], "`run` does not take --card; leave --card out"),
        (["run", "translation", "model.attention=flash"], "it must be one of auto, sdpa, eager"),
        (["show", "translation", "--data", "nothing.jsonl"], "nothing.jsonl"),
        (["run", "translation", "--seeds", "1"], "must be two whole numbers or more"),
        (["run", "translation", "--seeds", "1", "1"], "must be two whole numbers or more"),
        (["run", "translation", "--seeds", "0", "x"], "must be two whole numbers or more"),
        (["run", "translation", "--seeds", "0 1", "--seed", "3"], "is for one seed"),
        (["run", "translation", "--seeds", "0 1", "--run", "b", "--from", "a"], "is for one seed"),
        (["sft", "translation", "--seeds", "0", "1"], "`sft` does not take --seeds"),
        (["compare", "a"], "there is no run 'a'"),
        (["compare", "--runs", "a"], "leave --runs out"),
        (["runs", "translation"], "`runs` does not take translation"),
        ([], "command"),
    ],
)
def test_a_usage_error_is_one_sentence_and_nothing_is_written(refused, arguments, said):
    assert said in refused(*arguments)


# Data.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ('{"source": "a", "target": "b"}\n{"source": "c", "tar', "row 2 (the last line) is cut off"),
        ('{"source": "a", "target": "b"}\nnot json\n', "row 2 is not JSON"),
        ("[1, 2]\n", "row 1 is a list"),
        ('{"german": "a", "english": "b"}\n', "has the columns german, english"),
        ('{"source": 5, "target": "b"}\n', "'source' must be a text"),
    ],
)
def test_bad_data_are_told_with_file_and_row(refused, tmp_path, content, said):
    (tmp_path / "bad.jsonl").write_text(content)
    error = refused("run", "translation", "--data", "bad.jsonl")
    assert "bad.jsonl" in error
    assert said in error


def test_a_column_that_is_not_there_is_told(refused, tmp_path):
    write_rows(tmp_path / "good.jsonl", sentences(20))
    error = refused("run", "translation", "--data", "good.jsonl", "--columns", "target=post_edit")
    assert "no column 'post_edit'" in error


def test_data_smaller_than_a_batch_name_the_setting_to_lower(stopped):
    error = stopped("--data", "pairs.jsonl", "sft.per_device_train_batch_size=4000")
    assert "50 demonstrations cannot fill one batch of 4000" in error
    assert "sft.per_device_train_batch_size=50" in error


def test_rows_that_are_all_too_long_name_the_window(stopped):
    error = stopped("--data", "pairs.jsonl", "model.max_length=5", "ppo.response_length=2")
    assert "all 50 demonstrations are longer than 5 tokens" in error
    assert "model.max_length" in error


# Models and training.


def test_a_model_folder_that_is_not_there_is_told(stopped, tmp_path):
    assert "no config.json" in stopped("--model", str(tmp_path / "nothing"))


def test_a_model_that_cannot_be_fetched_is_told(stopped):
    assert "cannot read the model 'nobody/nothing'" in stopped("--model", "nobody/nothing")


def test_a_damaged_model_folder_is_told(stopped, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    assert "cannot read the model" in stopped("--model", str(tmp_path))


def test_a_model_that_is_no_decoder_is_told(stopped, tmp_path):
    from transformers import T5Config

    T5Config(d_model=8, num_layers=1).save_pretrained(tmp_path)
    assert "encoder-decoder (t5)" in stopped("--model", str(tmp_path))


def test_an_adapters_place_that_the_model_lacks_is_told(stopped):
    assert "lora.target_modules=q_porj" in stopped("lora.target_modules=q_porj", "--data", "pairs.jsonl")


def test_an_optimizer_that_does_not_exist_is_told(stopped, home):
    said = stopped("ppo.optim=adamw_trch", "--data", "pairs.jsonl", name="optim")
    assert "ppo.optim: " in said
    assert "did you mean 'adamw_torch" in said
    assert not (home / "runs" / "optim").exists(), "it is told before SFT"


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda prompt, answer, example: float("nan"), "the reward term 'odd' gave nan"),
        (lambda prompt, answer, example: float("inf"), "the reward term 'odd' gave inf"),
        (lambda prompt, answer, example: {}["a"], "the reward term 'odd' raised KeyError"),
    ],
)
def test_a_reward_term_that_fails_ends_ppo_and_leaves_the_stages_before(stopped, home, monkeypatch, score, said):
    module = recipes.translation.recipe
    reward = Reward(learned=0.0, terms=(Term("odd", score, weight=1.0),))
    monkeypatch.setattr(module, "RECIPE", dataclasses.replace(module.RECIPE, reward=reward))
    assert said in stopped("--data", "pairs.jsonl", name="odd")
    assert sorted(path.name for path in (home / "runs" / "odd" / "translation").iterdir()) == ["settings.toml", "sft"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_record_is_told(tmp_path, monkeypatch, capsys, content):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "tiny" / "translation" / "sft"
    folder.mkdir(parents=True)
    (folder / "done.json").write_text(content)
    assert main(["run", "translation"]) == 2
    assert "done.json is damaged" in capsys.readouterr().err


def test_another_trl_is_refused_with_the_command_that_mends_it(stopped, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.13.0" if name == "trl" else real(name))
    error = stopped("--data", "pairs.jsonl")
    assert "found 1.13.0" in error
    assert "pip install trl==1.12.0" in error


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WORLD_SIZE", "2", "RANK is missing; start them with torchrun or accelerate launch"),
        ("OMPI_COMM_WORLD_SIZE", "4", "start them with torchrun or accelerate launch"),
        ("LOCAL_RANK", "0", "start them with torchrun or accelerate launch"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "behind the profile's back"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "behind the profile's back"),
        ("ACCELERATE_USE_FSDP", "1", "behind the profile's back"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8", "behind the profile's back"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "compiled again and again"),
        ("ACCELERATE_STRANGE", "1", "behind the profile's back; unset it"),
    ],
)
def test_what_a_launcher_left_is_refused_before_anything_runs(stopped, home, monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    error = stopped("--data", "pairs.jsonl", name="launched")
    assert f"{name}={value}" in error
    assert said in error
    assert not (home / "runs" / "launched").exists()


def test_a_launcher_of_one_process_that_changes_nothing_is_no_hindrance(monkeypatch):
    standing = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    for name, value in {**standing, "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_MODE": "default"}.items():
        monkeypatch.setenv(name, value)
    check_environment()
    assert not {*standing} & {*os.environ}, "Accelerate would make a group of the one process"


def test_what_accelerate_launch_says_of_the_cpu_holds_for_all_of_the_run(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    check_environment()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert "ACCELERATE_USE_CPU" not in os.environ


def test_what_a_launcher_left_empty_counts_as_not_set(home, monkeypatch):
    names = ("WORLD_SIZE", "PMI_SIZE", "LOCAL_RANK", "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION")
    for name in names:
        monkeypatch.setenv(name, "")
    assert main(["sft", "translation", "--data", "pairs.jsonl", "--run", "emptied", *SMALLEST]) == 0
    assert not {*names} & {*os.environ}


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_trained(stopped):
    said = stopped("--data", "pairs.jsonl", "model.device=0", name="cards")
    assert "model.device=0 would have no effect: of GPUs there is none visible; leave it out" in said


# Without torch.


def answer(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)


def test_the_guard_against_imports_works():
    code = WITHOUT_TORCH.split("runpy.run_module")[0] + "import torch"
    assert "torch is imported" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


def test_list_names_every_recipe_and_profile_without_torch():
    given = answer("list")
    assert given.returncode == 0, given.stderr
    for name in (*recipe_names(), *profile_names()):
        assert name in given.stdout


def test_help_names_every_command_and_recipe_without_torch():
    given = answer("--help")
    assert given.returncode == 0, given.stderr
    for name in (*commands(), *recipe_names()):
        assert name in given.stdout


@pytest.mark.parametrize("name", commands())
def test_a_commands_help_has_what_the_command_takes_and_nothing_else(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    said, command = capsys.readouterr().out, commands()[name]
    listed = re.findall(r"^  (?:-h, )?--(\w+)", said, re.M)
    assert listed == ["help", *command.options]
    assert ("<recipe>" in said, "sft.max_steps" in said) == (command.recipe, command.settings)
    assert said.count("\n") <= 36, "it is read at a glance"


def test_every_option_is_taken_by_a_command_and_every_command_takes_options_that_there_are():
    assert {option for command in commands().values() for option in command.options} == set(OPTIONS)


def test_settings_may_stand_between_options(refused, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "rlrecipes.__main__.run_stages", lambda job, stages, force, _: seen.append((job, stages, force))
    )
    assert main(["sft", "--seed", "3", "translation", "sft.max_steps=7", "--force", "lora.r=2", "--run", "mine"]) == 0
    ((job, stages, force),) = seen
    assert (job.seed, job.profile.sft.max_steps, job.profile.lora.r, job.run.name) == (3, 7, 2, "mine")
    assert (stages, force) == (("sft",), True)


def test_the_version_is_said_without_torch():
    assert answer("--version").stdout == f"rlrecipes {rlrecipes.__version__}\n"


def test_no_command_is_a_usage_error_without_torch():
    given = answer()
    assert given.returncode == 2
    assert given.stderr.startswith("error: ")
    assert "imported" not in given.stderr


@pytest.mark.parametrize("name", recipe_names())
def test_show_shows_data_reward_and_metrics_without_torch(name):
    if load_recipe(name).builtin is None:
        pytest.skip(f"{name} has no world of its own")
    given = answer("show", name)
    assert given.returncode == 0, given.stderr
    for heading in ("demonstrations (", "comparisons (", "prompts (", "held out (", "reward:", "metrics:"):
        assert heading in given.stdout


def test_show_tells_how_the_reward_model_learns_and_a_term_that_was_asked_for_in_vain(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["show", "text_generation"]) == 0
    out = capsys.readouterr().out
    assert "(pairwise)" in out
    assert "left out" not in out
    assert main(["show", "text_generation", "terms.form=1"]) == 0
    assert "the reward term 'form' is left out: the data have no 'form'" in capsys.readouterr().out
    rows = [{"prompt": f"Say {i}", "completion": f"It is {i}", "score": i} for i in range(30)]
    write_rows(tmp_path / "rated.jsonl", rows)
    assert main(["show", "translation", "--data", "rated.jsonl"]) == 0
    out = capsys.readouterr().out
    assert "(regression)" in out
    assert "ratings (" in out


def test_an_unknown_recipe_is_told_without_torch():
    given = answer("run", "translatoin")
    assert (given.returncode, given.stdout) == (2, "")
    assert given.stderr == "error: there is no recipe 'translatoin'; did you mean 'translation'?\n"


# Make.


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_alone_lists_every_target_and_variable():
    makefile = (ROOT / "Makefile").read_text()
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (phony,) = re.findall(r"^TARGETS := (.*) \$\(RECIPES\) \$\(STAGES\)$", makefile, re.M)
    for target in (*phony.split(), *STAGES, "<recipe>"):
        assert re.search(rf"^  {target} ", listed, re.M), target
    variables = re.findall(r"^([A-Z]+) =", makefile, re.M)
    assert {"RECIPE", "PROFILE", "MODEL", "DATA", "SEED", "RUN", "ARGS", "FORCE"} <= set(variables)
    assert max(map(len, listed.splitlines())) <= 80
    whole = " ".join(listed.split())
    assert all(stage.help in whole for stage in STAGES.values())
    for variable in variables:
        assert re.search(rf"^  {variable}\b.* \S+", listed, re.M), variable


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    ("target", "said"),
    [("dialog", "there is no target dialog; did you mean dialogue?"), ("xyzzy", "no target xyzzy; `make` lists them")],
)
def test_a_target_that_is_not_there_is_told_with_the_nearest(target, said):
    given = subprocess.run(["make", target], cwd=ROOT, capture_output=True, text=True)
    assert given.returncode == 2
    assert said in given.stderr
    assert given.stdout == ""


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_the_makefile_knows_every_recipe():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (named,) = re.findall(r"<recipe> is one of: (.*)\)", listed)
    assert sorted(named.split()) == recipe_names()


VARIABLES = re.findall(r"^([A-Z]+) \??=", (ROOT / "Makefile").read_text(), re.M)
FOREIGN = "'a b' \"c\" $HOME $(shell exit 1) `id`; x && y | z > w * ~ # \\ !"


def made(*arguments: str, **environment: str) -> list[str]:
    """The words of the command that make would run."""
    given = ["make", "-n", *arguments, "VENV=none", "READY=Makefile", "-oMakefile"]
    environment = {**os.environ, **environment}
    given = subprocess.run(given, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return shlex.split(given.stdout)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    "target", ["translation", "sft", "show", "plan", "chat", "export", "examine", "demo", "bench", "numbers", "kills"]
)
def test_what_the_environment_holds_for_others_is_not_given_to_make(target):
    assert made(target, **dict.fromkeys(VARIABLES, "leaked")) == made(target)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("variable", sorted({*VARIABLES} - {"FORCE", "MERGED", "PYTHON"}))
def test_make_hands_on_what_it_is_given_letter_by_letter(variable):
    target = {"CARD": "plan", "KILLS": "kills", "SEEDS": "translation", "RUNS": "compare"}.get(variable, "chat")
    usual = made(target)
    handed_on = [word for word in made(target, f"{variable}={FOREIGN}") if word not in usual]
    if variable == "LAUNCH":
        assert handed_on[0] == "PATH=$PWD/none/bin:$PATH", "the launcher is that of .venv"
        handed_on = handed_on[1:-1]
    expected = FOREIGN.split() if variable in ("ARGS", "SEEDS", "RUNS", "LAUNCH") else [FOREIGN]
    settings = {"POLICIES": "evaluate.policies", "ALGORITHM": "run.algorithms", "START": "run.start"}
    expected = [f"{settings[variable]}={FOREIGN}"] if variable in settings else expected
    assert [word for word in handed_on if word != f"--{variable.lower()}"] == expected


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_a_sweep_gets_its_recipe_and_run_letter_by_letter():
    words = made("sweep", f"RECIPE={FOREIGN}", f"FROM={FOREIGN}")
    assert (words[0], words[-1]) == (f"FROM={FOREIGN}", f"recipes/{FOREIGN}/sweep.yaml")


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_a_file_that_make_is_told_to_read_first_hides_no_variable(tmp_path):
    first = tmp_path / "first.mk"
    first.write_text("OTHER = 1\n")
    assert made("show", "RECIPE=translation", MAKEFILES=str(first)) == made("show", "RECIPE=translation")


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_finds_the_package_that_lies_beside_it_whatever_pythons_safe_path_says():
    words = ["make", "list", f"VENV={sys.prefix}", "READY=Makefile", "-oMakefile"]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run(words, cwd=ROOT, env=kept, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ARG=a.b=1", "there is no variable ARG; did you mean ARGS?"),
        ("DAT=x", "there is no variable DAT; did you mean DATA?"),
        ("MODELL=x", "there is no variable MODELL; did you mean MODEL?"),
        ("PROFIL=x", "there is no variable PROFIL; did you mean PROFILE?"),
        ("seed=1", "there is no variable seed; did you mean SEED?"),
        ("Q=1", "there is no variable Q; there are RECIPE PROFILE"),
        ("it's$(x)=1", "there is no variable it's"),
    ],
)
@pytest.mark.parametrize("target", [[], ["translation"], ["show", "RECIPE=translation"], ["clean"]])
def test_a_misspelt_variable_is_refused_whatever_the_target(target, given, said):
    done = subprocess.run(["make", "-n", *target, given], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    ("target", "given", "said"),
    [
        ("sft", "SEEDS=0 1", "`sft` does not take --seeds"),
        ("translation", "CARD=24", "`run` does not take --card"),
        ("translation", "RUNS=a b", "`run` does not take --runs"),
        ("translation", "RECIPE=dialogue", "`run` does not take --recipe"),
        ("compare", "RUN=a", "`compare` does not take --run"),
        ("list", "RUN=a", "`list` does not take --run"),
        ("runs", "RUNS=a", "`runs` does not take --runs"),
    ],
)
def test_a_variable_that_a_target_does_not_take_is_refused(target, given, said, capsys):
    words = made(target, given, *(["RECIPE=translation"] if target == "sft" else []))
    assert main(words[words.index("rlrecipes") + 1 :]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_columns_do_not_take_the_settings_for_columns(monkeypatch):
    words = made("translation", "COLUMNS=target=a", "ARGS=sft.max_steps=5 terms.chrf=1", "DATA=own.jsonl")
    seen = []
    monkeypatch.setattr(
        "rlrecipes.command.job.prepare", lambda *arguments, **others: seen.append(others) or sys.exit(0)
    )
    with pytest.raises(SystemExit):
        main(words[words.index("run") :])
    assert (seen[0]["columns"], seen[0]["weights"]) == ({"target": "a"}, ["terms.chrf=1"])


def test_each_seed_gets_a_run_of_its_own_and_then_they_are_compared(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("rlrecipes.__main__.run_stages", lambda job, stages, force: seen.append((job, stages)))
    monkeypatch.setattr("rlrecipes.report.compare.compare", lambda runs, recipe: (f"{runs} {recipe}", "the table"))
    assert main(["run", "translation", "--seeds", "0", "12", "--run", "mine", "sft.max_steps=5"]) == 0
    assert [(job.run.name, job.seed, job.profile.sft.max_steps) for job, _ in seen] == [
        ("mine-seed0", 0, 5),
        ("mine-seed12", 12, 5),
    ]
    assert {stages for _, stages in seen} == {tuple(STAGES)}
    assert capsys.readouterr().out == "the table\ncompared: ['mine-seed0', 'mine-seed12'] translation\n"


def test_columns_may_come_as_one_text_and_their_names_may_hold_spaces(monkeypatch):
    seen = []

    def prepare(*arguments, columns, **others):
        seen.append(columns)
        raise UserError("enough")

    monkeypatch.setattr("rlrecipes.command.job.prepare", prepare)
    for columns in (["target=post edit  source=a.b"], ["target=post edit", "source=a.b"]):
        assert main(["sft", "translation", "--data", "own.jsonl", "--columns", *columns]) == 2
    assert seen == [{"target": "post edit", "source": "a.b"}] * 2


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_takes_0_for_no_and_hands_every_name_on_as_it_is():
    variables = ["FORCE=0", "MERGED=0", "RUN=it's", "DATA=my data", "VENV=none", "READY=Makefile", "-oMakefile"]
    command = subprocess.run(
        ["make", "-n", "translation", *variables], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    words = shlex.split(command.replace("@", ""))
    assert "--force" not in words
    assert "--merged" not in words
    assert "--seed" not in words, "not every command takes one"
    assert words[words.index("--run") + 1] == "it's"
    assert words[words.index("--data") + 1] == "my data"
    assert (
        "--force"
        in subprocess.run(
            ["make", "-n", "translation", "FORCE=1", *variables[4:]],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


def test_every_stage_command_is_a_target():
    makefile = (ROOT / "Makefile").read_text()
    for command in set(commands()) - {"run"}:
        assert command in STAGES or re.search(rf"^{command}: ", makefile, re.M), command
