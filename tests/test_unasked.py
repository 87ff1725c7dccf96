"""Nothing leaves the machine that nobody asked for, and no code of a stranger's runs."""

import ast
import json
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SMALLEST, Listener, changed, main, sentences, smallest, write_rows

import rlrecipes
from rlrecipes.errors import UserError
from rlrecipes.hub.fetch import _write
from rlrecipes.recipe import HubSet
from rlrecipes.run.stages import STAGES

ROAD = """
import huggingface_hub.constants
from rlrecipes import load_profile, run_recipe
import sys
run_recipe("translation", load_profile("tiny", sys.argv[1:]), data="pairs.jsonl", run="quiet")
"""


def test_a_whole_road_asks_no_server_for_anything(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", sentences(60))
    tracked = [setting for setting in SMALLEST if setting != "track.wandb=off"]
    with Listener() as server:
        given = subprocess.run(
            [sys.executable, "-c", ROAD, *tracked],
            **{"cwd": tmp_path, "capture_output": True, "text": True},
            env=server.environment() | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        )
    assert given.returncode == 0, given.stderr
    assert server.heard == []
    assert list(tmp_path.glob("runs/quiet/translation/wandb/offline-run-*")), "it was tracked, on this machine"


def settings_after_import(**environment):
    code = f"import os, rlrecipes; from huggingface_hub import constants as c; \
print(*(os.environ[name] for name in {list(rlrecipes.UNASKED)}), c.HF_HUB_DISABLE_TELEMETRY)"
    with Listener() as server:
        environment = server.environment() | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout.split()


def test_what_nobody_asked_for_is_off_unless_its_variable_says_otherwise():
    assert settings_after_import() == [*rlrecipes.UNASKED.values(), "True"]
    given = dict.fromkeys(rlrecipes.UNASKED, "yours") | {"HF_HUB_DISABLE_TELEMETRY": "0"}
    assert settings_after_import(**given) == [*given.values(), "False"]


STATES = """
from rlrecipes.recipe import Reward, Term
from rlrecipes.reward.terms import term_states
class Counter:
    def __call__(self, *given): return 0.0
    def state_dict(self): return {}
term_states(Reward(terms=(Term("calls", Counter(), weight=1.0),)))
"""


@pytest.mark.parametrize("before", ["from rlrecipes.run.console import quiet; quiet()", STATES])
def test_bitsandbytes_fetches_no_kernel_while_it_is_imported(tmp_path, before):
    (tmp_path / "kernels.py").write_text("raise SystemExit('kernels was imported')\n")
    code = f"{before}\nimport sys, bitsandbytes, peft; print('quiet' if sys.modules['kernels'] is None else 'loud')"
    paths = f"{tmp_path}:{ROOT}"
    with Listener() as server:
        environment = server.environment() | {"PYTHONPATH": paths, "HOME": str(tmp_path)}
        given = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert given.stdout == "quiet\n", given.stderr
    assert server.heard == []


# Strangers' code.


@pytest.fixture
def stranger(tmp_path, checkpoint, monkeypatch):
    """Makes checkpoint folders whose own code leaves a file when it is imported; whoever is asked says yes."""
    ran = tmp_path / "ran"
    monkeypatch.setattr("builtins.input", lambda *question: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))

    def make(config=None, tokenizer=None):
        folder = tmp_path / "stranger"
        shutil.copytree(checkpoint.model, folder, dirs_exist_ok=True)
        (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
        kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
        if config is not None:
            changed(folder / "config.json", auto_map=dict.fromkeys(kinds, "own.Own"), **config)
        if tokenizer is not None:
            changed(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]}, **tokenizer)
        return folder

    make.ran = ran
    return make


@pytest.fixture
def lent(finished, tmp_path, home):
    """`runs/lent/translation`: a copy of `finished` that a test may change."""
    folder = finished.parent.parent / "lent" / "translation"
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(finished, folder)


OWN = {"model_type": "own"}
NO_DECODER = {"model_type": "vit"}
"""Transformers knows its configuration, and has no language model for it."""
CLASSIFIER = OWN | {"architectures": ["OwnForSequenceClassification"], "id2label": {"0": "score"}}
REFUSED = ("code of its own", "no model_type 'own'", "makes no vit", "is no causal language model")


@pytest.mark.parametrize(
    ("config", "tokenizer", "command"),
    [
        (OWN, None, "sft translation --run strangers --model {}"),
        (OWN, None, "plan translation --model {}"),
        (NO_DECODER, None, "sft translation --run strangers --model {}"),
        (NO_DECODER, None, "plan translation --model {}"),
        (None, {"tokenizer_class": "Own"}, "sft translation --run strangers --model {}"),
        (OWN, {"tokenizer_class": "Own"}, "show translation --model {}"),
        (CLASSIFIER, None, "run translation --run strangers reward.model={}"),
        (CLASSIFIER, {"tokenizer_class": "Own"}, "run translation --run strangers reward.model={}"),
        (OWN, None, "chat translation --run lent"),
        (OWN, None, "export translation --run lent --merged"),
    ],
)
def test_a_models_own_code_never_runs(stranger, lent, capsys, config, tokenizer, command):
    folder = stranger(config, tokenizer)
    settings = json.loads((lent / "sft" / "done.json").read_text())["settings"]
    changed(lent / "sft" / "done.json", settings=settings | {"model.name": str(folder)}, base=None)
    arguments = command.format(folder).split()
    road = smallest([*arguments, *["terms.learned=0"] * ("reward.model" in command)])
    road = ["--data", "pairs.jsonl", *road] if arguments[0] in {"run", *STAGES} else []
    status = main([*arguments, *road])
    assert not stranger.ran.exists()
    said = capsys.readouterr()
    refused = said.out.splitlines() if arguments[0] == "show" else said.err.splitlines()[-1:]
    assert status == (0 if arguments[0] == "show" else 2), "what it can show without the model, `show` shows"
    (sentence,) = [line for line in refused if any(reason in line for reason in REFUSED)]
    assert len(sentence.replace(str(folder), "")) <= 300


def test_a_family_that_transformers_knows_is_read_by_its_code_and_not_by_the_models(stranger, home, capsys):
    folder = stranger({}, {})
    assert main(["show", "translation", "--model", str(folder), "--data", "pairs.jsonl"]) == 0
    assert not stranger.ran.exists()


def test_a_data_sets_own_script_never_runs(stranger, home, tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    (stranger() / "own.py").rename(folder / "set.py")
    write_rows(folder / "rows.jsonl", sentences(30))
    assert main(["show", "translation", "--data", str(folder)]) == 0
    hub_set = HubSet("nobody/set", (), ("source",), dict, "none")
    with pytest.raises(UserError, match="scripts are no longer supported"):
        _write(tmp_path / "kept", hub_set, "train", str(folder), None)
    assert not stranger.ran.exists()


@pytest.mark.parametrize("path", sorted((ROOT / "rlrecipes").rglob("*.py")), ids=lambda path: path.stem)
def test_whatever_could_run_a_models_code_is_told_not_to(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(value=owner, attr="from_pretrained" | "from_config")):
                harmless = ast.unparse(owner) in ("PeftModel", "LoraConfig")
                assert harmless or "trust_remote_code=False" in ast.unparse(node), f"line {node.lineno}"
