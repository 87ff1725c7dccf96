"""A base that changes under the stages that stand on it is noticed."""

import json
import shutil

import pytest
import torch
from conftest import main, smallest
from safetensors.torch import load_file, save_file

from rlrecipes.hub.identity import _digest, identity
from rlrecipes.run.checkpoint import Checkpoints


@pytest.fixture
def model(checkpoint, home):
    yield shutil.copytree(checkpoint.model, home / "swapped")
    shutil.rmtree(home / "swapped")
    shutil.rmtree(home / "runs" / "swap", ignore_errors=True)


def other_weights(model):
    file = model / "model.safetensors"
    save_file({name: torch.flip(tensor, [0]) for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def other_config(model, **values):
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_copy_and_a_model_saved_by_another_version_are_the_same(model, checkpoint):
    other_config(model, transformers_version="9.9", _name_or_path="elsewhere")
    assert identity(str(model)) == identity(str(checkpoint.model))


@pytest.mark.parametrize("change", [other_weights, lambda model: other_config(model, rope_theta=5.0)])
def test_no_stage_stands_on_another_base_than_the_stages_below_it(model, capsys, change):
    def command(*stages):
        given = [*stages, "--data", "pairs.jsonl", "--model", str(model), "--run", "swap"]
        return main([*given, *smallest(given)])

    assert command("sft", "translation") == 0
    whole = {path: path.read_bytes() for path in model.iterdir()}
    change(model)
    capsys.readouterr()
    assert command("reward", "translation") == 2
    assert "sft was made on other weights or another config.json than" in capsys.readouterr().err
    assert main(["chat", "translation", "--run", "swap"]) == 2
    assert "was trained on other weights or another config.json than" in capsys.readouterr().err
    for path, content in whole.items():
        path.write_bytes(content)
    assert command("reward", "translation") == 0


def one_bit(model):
    file = model / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def other_merges(model):
    file = model / "tokenizer.json"
    file.write_text(file.read_text() + " ")


def other_template(model):
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}> {{ m.content }}{% endfor %}")


@pytest.mark.parametrize("change", [other_weights, one_bit, other_merges, other_template])
def test_an_interrupted_stage_goes_on_on_no_other_base(model, capsys, monkeypatch, change):
    real = Checkpoints.save

    def save(self, at, state):
        real(self, at, state)
        raise KeyboardInterrupt

    def command():
        given = ["sft", "translation", "--data", "pairs.jsonl", "--model", str(model), "--run", "swap"]
        return main([*given, "checkpoint.seconds=0", *smallest(given)])

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        assert command() == 75
    whole = {path: path.read_bytes() for path in model.iterdir()}
    change(model)
    capsys.readouterr()
    assert command() == 2
    assert "was begun with base = " in capsys.readouterr().err
    for path in model.iterdir():
        path.write_bytes(whole[path]) if path in whole else path.unlink()
    assert command() == 0
    assert "going on after step 1" in capsys.readouterr().out


def test_of_weights_too_large_to_read_whole_places_all_over_are(model, monkeypatch):
    known = identity(str(model))
    monkeypatch.setattr("rlrecipes.hub.identity.WHOLE", 0)
    _digest.cache_clear()  # what was read whole
    assert identity(str(model)) not in (None, known)
    monkeypatch.setattr("rlrecipes.hub.identity.BLOCKS", 64)
    before = identity(str(model))
    other_weights(model)
    assert identity(str(model)) != before


def test_weights_that_have_not_all_come_yet_have_no_identity(model):
    """Nor do others count, beside those that Transformers reads."""
    known = identity(str(model))
    (model / "pytorch_model.bin").write_bytes(b"of another format")
    assert identity(str(model)) == known
    (model / "pytorch_model.bin").unlink()
    (model / "model.safetensors").rename(model / "a.safetensors")
    assert identity(str(model)) is None
    shards = {"weight_map": {"lm_head.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(shards))
    assert identity(str(model)) is None
    shutil.copy(model / "a.safetensors", model / "b.safetensors")
    assert identity(str(model)) not in (None, known)


def test_a_model_that_is_not_there_has_no_identity():
    assert identity("nobody/has-this") is None
