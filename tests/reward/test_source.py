"""A reward model from elsewhere is found and looked at before anything is loaded, and what is none is told."""

import dataclasses
import json
import math

import pytest

from rlrecipes.errors import UserError
from rlrecipes.model.embedded import seal_base
from rlrecipes.profile import load_profile
from rlrecipes.reward.source import find_reward_model, model_beside
from rlrecipes.run.checksums import files_in, sealed
from rlrecipes.run.folder import write_json

NESTED = (100_000).to_bytes(8, "little") + b"[" * 100_000
"""As a header of safetensors, deeper than Python follows."""


def weights(path, header, missing=0):
    """A safetensors file of zeros, of which the last bytes may be missing. What is no object is written as it is."""
    written = json.dumps(header).encode()
    size = max((tensor["data_offsets"][1] for tensor in header.values()), default=0) if isinstance(header, dict) else 0
    path.write_bytes(len(written).to_bytes(8, "little") + written + bytes(size - missing))


def tensors(shapes):
    header, start = {}, 0
    for name, shape in shapes.items():
        end = start + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        start = end
    return header


def classifier(folder, **config):
    """A folder that looks like a sequence classifier."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}} | config
    (folder / "config.json").write_text(json.dumps(known), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    weights(folder / "model.safetensors", tensors({"score.weight": [1, 8]}))
    return folder


def adapter(folder, *, score=(1, 8), extra=(), **config):
    """A folder that looks like a PEFT adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {"task_type": "SEQ_CLS", "peft_type": "LORA", "base_model_name_or_path": "hub/base"} | config
    (folder / "adapter_config.json").write_text(json.dumps(known), encoding="utf-8")
    shapes = {"base_model.model.q.lora_A.weight": [4, 8], "base_model.model.score.weight": list(score)}
    weights(folder / "adapter_model.safetensors", tensors(shapes | {name: [8, 8] for name in extra}))
    return folder


def without(folder, file):
    (folder / file).unlink()
    return folder


def took(stage, model):
    """A finished reward stage whose model stands beside the base."""
    stage.mkdir()
    (stage / "done.json").write_text(json.dumps({"reward_model": {"name": model, "beside": model}}), encoding="utf-8")
    return stage


def profile_with(model, base="hub/base"):
    return load_profile("tiny", [f"reward.model={model}"], base)


@pytest.mark.parametrize(
    "file", ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "scale.json", "done.json"]
)
@pytest.mark.parametrize("given", ["reward", "reward/adapter"])
def test_a_stage_of_which_a_file_is_damaged_is_refused_as_a_reward_model(tmp_path, file, given):
    stage = adapter(tmp_path / "reward" / "adapter").parent
    (stage / "scale.json").write_text('{"mean": 0}')
    write_json(stage / "done.json", sealed({"settings": {"lora.r": 8}}, stage, files_in(stage)))
    assert find_reward_model(str(tmp_path / given)).place == str(stage / "adapter")
    content = bytearray((stage / file).read_bytes())
    content[-4] ^= 1
    (stage / file).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        find_reward_model(str(tmp_path / given))


def test_an_adapter_of_a_damaged_embedded_base_is_refused(tmp_path):
    base = classifier(tmp_path / ".base" / "b0")
    seal_base(base)
    stage = adapter(tmp_path / "reward", base_model_name_or_path=str(base))
    assert find_reward_model(str(stage)).base == str(base)
    (base / "tokenizer.json").write_text("{")
    with pytest.raises(
        UserError, match=r"tokenizer.json is damaged \(it has 1 bytes .*; delete the folder .*trains it anew"
    ):
        find_reward_model(str(stage))


def test_a_stages_folder_stands_for_the_adapter_in_it(tmp_path):
    adapter(tmp_path / "reward" / "adapter")
    source = find_reward_model(str(tmp_path / "reward"))
    assert source.place == str(tmp_path / "reward" / "adapter")
    assert source.base == "hub/base"
    assert source == dataclasses.replace(find_reward_model(source.place), name=source.name)


def test_a_stage_of_several_reward_models_is_refused_and_a_members_folder_is_taken(tmp_path):
    stage = tmp_path / "reward"
    adapter(stage / "adapter")
    adapter(stage / "member-1" / "adapter")
    with pytest.raises(UserError, match=r"name a member \(put /adapter or /member-1 behind it\), or take all of them"):
        find_reward_model(str(stage))
    assert find_reward_model(f"{stage}/adapter").place == f"{stage}/adapter"
    assert find_reward_model(f"{stage}/member-1").place == f"{stage}/member-1/adapter"


def test_a_plain_adapter_of_the_policys_base_brings_no_model_into_memory(tmp_path):
    place = adapter(tmp_path / "adapter")
    assert model_beside(profile_with(place)) is None
    assert model_beside(profile_with(place, "hub/other")) == "hub/base"


def test_a_base_is_the_same_by_whatever_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    place = adapter(tmp_path / "adapter", base_model_name_or_path="./base")
    source = find_reward_model(str(place))
    assert model_beside(profile_with(place, "builtin")) == "./base"
    assert source.shares(str(tmp_path / "base"))
    assert not source.shares("base2")


def test_an_adapter_that_trained_more_than_lora_and_head_is_loaded_beside(tmp_path):
    place = adapter(tmp_path / "adapter", extra=["base_model.model.embed_tokens.weight"])
    assert model_beside(profile_with(place)) == "hub/base"


def test_a_whole_classifier_is_loaded_beside(tmp_path):
    place = str(classifier(tmp_path / "rm"))
    assert model_beside(profile_with(place)) == place


def test_without_a_model_from_elsewhere_nothing_is_beside():
    assert model_beside(load_profile("tiny")) is None


def test_an_adapter_of_an_embedded_base_shares_it(tmp_path):
    base = tmp_path / "runs" / ".base" / "abc"
    base.mkdir(parents=True)
    place = adapter(tmp_path / "adapter", base_model_name_or_path=str(base))
    assert model_beside(profile_with(place, "builtin")) is None
    assert model_beside(profile_with(place, "hub/base")) == str(base)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nothing", "it is not there"),
        (lambda folder: folder.mkdir() or folder, "neither adapter_config.json nor config.json"),
        (lambda folder: classifier(folder, architectures=["LlamaForCausalLM"]), "it is LlamaForCausalLM"),
        (lambda folder: classifier(folder, architectures=None), "no architecture that it names"),
        (lambda folder: classifier(folder, id2label={"0": "bad", "1": "good"}), "has 2 outputs"),
        (lambda folder: classifier(folder, id2label=None), "has 2 outputs"),
        (lambda folder: adapter(folder, task_type="CAUSAL_LM"), "its adapter was trained for CAUSAL_LM"),
        (lambda folder: adapter(folder, task_type=None), "for no task that it names"),
        (lambda folder: adapter(folder, score=[3, 8]), "has 3 outputs"),
        (lambda folder: adapter(folder, score=[]), "has 0 outputs"),
        (lambda folder: adapter(folder, peft_type=None), "set peft_type in it"),
        (
            lambda folder: without(adapter(folder), "adapter_model.safetensors"),
            "no weights (adapter_model.safetensors)",
        ),
        (lambda folder: without(classifier(folder), "model.safetensors"), "no weights (model.safetensors)"),
        (lambda folder: without(classifier(folder), "tokenizer.json"), "no tokenizer (tokenizer_config.json"),
        (lambda folder: took(folder, "someone/rm"), "took its model from elsewhere; give someone/rm instead"),
        (lambda folder: adapter(folder, base_model_name_or_path=None), "names no base model"),
        (lambda folder: adapter(folder, base_model_name_or_path="/nowhere"), "its base model '/nowhere' is not there"),
    ],
)
def test_what_is_no_reward_model_is_told_in_one_sentence(tmp_path, make, said):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        find_reward_model(str(make(tmp_path / "it")))
    assert said in str(error.value)
    assert "reward.model=" in str(error.value)


@pytest.mark.parametrize("content", [b"\x10\0\0\0\0\0\0\0{broken", b"[" * 100_000, NESTED, b"3", b"\xff" * 9, b""])
@pytest.mark.parametrize(
    ("make", "file"),
    [
        (adapter, "adapter_config.json"),
        (adapter, "adapter_model.safetensors"),
        (classifier, "config.json"),
        (classifier, "model.safetensors"),
    ],
)
def test_a_damaged_file_is_told(tmp_path, make, file, content):
    (make(tmp_path / "it") / file).write_bytes(content)
    with pytest.raises(UserError, match=f"{file} is damaged"):
        find_reward_model(str(tmp_path / "it"))


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (classifier, {"architectures": 3}),
        (classifier, {"architectures": "LlamaForSequenceClassification"}),
        (classifier, {"id2label": 3}),
        (classifier, {"id2label": None, "num_labels": "x"}),
        (classifier, {"id2label": None, "num_labels": [1]}),
        (adapter, {"task_type": ["SEQ_CLS"]}),
        (adapter, {"peft_type": 3}),
        (adapter, {"base_model_name_or_path": 3}),
    ],
)
def test_a_value_of_another_type_is_told_with_its_key(tmp_path, make, config):
    with pytest.raises(UserError, match=f"config.json is damaged .its {list(config)[-1]} is no "):
        find_reward_model(str(make(tmp_path / "it", **config)))


@pytest.mark.parametrize(
    "header",
    [
        [],
        ["score.weight"],
        "score.weight",
    ],
)
def test_weights_whose_header_is_no_object_are_told(tmp_path, header):
    weights(adapter(tmp_path / "it") / "adapter_model.safetensors", header)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is damaged"):
        find_reward_model(str(tmp_path / "it"))


def test_weights_that_are_cut_short_are_told_without_being_read(tmp_path):
    for make, file in ((adapter, "adapter_model.safetensors"), (classifier, "model.safetensors")):
        weights(make(tmp_path / file) / file, tensors({"score.weight": [1, 8]}), missing=1)
        with pytest.raises(UserError, match=f"{file} is damaged .*not fully covered"):
            find_reward_model(str(tmp_path / file))


def test_a_stage_that_made_an_adapter_of_anothers_is_taken_all_the_same(tmp_path):
    stage = took(tmp_path / "reward", "someone/rm")
    adapter(stage / "adapter")
    assert find_reward_model(str(stage)).base == "hub/base"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody/nothing", "cannot read the model 'nobody/nothing'.*as reward.model=…, or fetch it"),
        ("no such/thing at all", "reward.model=no such/thing at all: it is not there: there is no such folder"),
        (
            "runs/typo/translation/reward",
            "reward.model=runs/typo/translation/reward: it is not there: there is no such",
        ),
    ],
)
def test_a_hub_id_out_of_reach_or_a_folder_that_is_not_there_is_told(name, said):
    with pytest.raises(UserError, match=said):
        find_reward_model(name)


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """The folder of `someone/rm` in the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--someone--rm"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    return folder / "snapshots" / "abc"


def test_an_adapter_in_the_hubs_cache_is_taken_without_a_network(snapshot):
    adapter(snapshot)
    source = find_reward_model("someone/rm")
    assert source.place == str(snapshot)
    assert source.base == "hub/base"
    assert source.shares("hub/base")
    (snapshot / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        find_reward_model("someone/rm")


def test_a_file_of_the_hubs_that_cannot_be_read_is_told(snapshot, monkeypatch):
    adapter(snapshot)

    def broken(name, file):
        raise OSError("the disk is full\nand more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with pytest.raises(
        UserError, match=r"cannot read \w+.json of reward.model=someone/rm: the disk is full; try again"
    ):
        find_reward_model("someone/rm")
