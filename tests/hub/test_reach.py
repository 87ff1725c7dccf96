"""A hub that does not answer is told in one sentence with the way without; what is in its cache is taken."""

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlrecipes.errors import UserError
from rlrecipes.hub import reach as access
from rlrecipes.hub.reach import cached_file, fetched_file, reach_data, reach_model, read_object

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub's cache, and a process that may ask the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return tmp_path


@pytest.fixture
def hub(cache, monkeypatch):
    """Sets what the hub does when it is asked."""

    def answers(*, commit=None, error=None):
        def asked(*arguments):
            if error:
                raise error
            return SimpleNamespace(sha=commit)

        monkeypatch.setattr(access, "_repo_info", asked)

    return answers


def put(cache, kind, id, *files):
    folder = cache / f"{kind}s--{id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for file in files:
        path = folder / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def http_error(kind):
    import httpx2
    from huggingface_hub import errors

    request = httpx2.Request("GET", "https://hub")
    return getattr(errors, kind)("no", response=httpx2.Response(404, request=request))


def test_a_set_that_the_hub_has_is_named_with_its_commit(hub):
    hub(commit=COMMIT)
    assert reach_data("a/b", None) == ("a/b", COMMIT)


def test_a_hub_that_never_answers_is_not_waited_for(cache, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(access, "SECONDS", 0.05)
    monkeypatch.setattr(access, "_repo_info", lambda *arguments: never.wait())
    with pytest.raises(UserError, match=r"no answer within 0\.05 seconds.*hf download a/b"):
        reach_model("a/b")
    never.set()


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_way_without_is_named(hub, monkeypatch, offline):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    hub(error=OSError("Name or service not known"))
    why = "HF_HUB_OFFLINE is set" if offline else "Name or service not known"
    with pytest.raises(UserError, match=rf"{why}.*DATA=<folder>") as told:
        reach_data("a/b", "v1")
    assert "hf download --repo-type dataset a/b --revision v1" in str(told.value)
    with pytest.raises(UserError, match=rf"{why}.*local checkpoint folder as MODEL="):
        reach_model("a/b")


def test_a_cached_model_is_taken_and_nothing_more_is_asked_of_the_hub(cache, hub, capsys):
    hub(error=OSError("no route"))
    put(cache, "model", "a/b", "config.json")
    with pytest.raises(UserError, match=r"cannot be reached \(no route\)"):
        reach_model("a/b")  # its weights are not there
    put(cache, "model", "c/d", "config.json", "model.safetensors")
    reach_model("c/d")
    assert "read from the hub's cache" in capsys.readouterr().out
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_cached_set_is_taken_with_its_commit(cache, hub, capsys):
    hub(error=OSError("no route"))
    put(cache, "dataset", "a/b", "data.jsonl")
    place, commit = reach_data("a/b", None)
    assert place.endswith(f"snapshots/{COMMIT}")
    assert commit == COMMIT
    assert "read from the hub's cache" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("GatedRepoError", "is gated: accept its terms"),
        ("RepositoryNotFoundError", "the hub has no data set 'a/b' that you may read"),
        ("RevisionNotFoundError", "has no revision 'v1'"),
    ],
)
def test_what_the_hub_refuses_is_told(hub, kind, said):
    hub(error=http_error(kind))
    with pytest.raises(UserError, match=said):
        reach_data("a/b", "v1")


def test_a_name_that_is_no_hub_id_is_told(cache):
    with pytest.raises(UserError, match="'a b/c/d' is neither a folder nor a hub id"):
        reach_model("a b/c/d")


def test_a_folder_is_looked_into_and_the_hub_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(access, "_repo_info", lambda *arguments: pytest.fail("it asked the hub"))
    with pytest.raises(UserError, match=r"no config\.json"):
        reach_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    reach_model(str(tmp_path))
    assert cached_file(str(tmp_path), "config.json") == tmp_path / "config.json"
    assert fetched_file(str(tmp_path), "tokenizer.json") is None


@pytest.mark.parametrize("name", ["a" * 300, "/" + "a" * 300, "~nobody-of-this-name/model", "a\0b"])
def test_a_name_that_no_folder_can_have_is_told(cache, name):
    with pytest.raises(UserError, match=r"neither a folder nor a hub id|no config\.json"):
        reach_model(name)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_told(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is no JSON object"):
        read_object(tmp_path / "config.json")


def test_a_file_that_cannot_be_fetched_is_none(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetched_file("a/b", "tokenizer.json") is None
    put(cache, "model", "a/b", "tokenizer.json")
    assert fetched_file("a/b", "tokenizer.json").name == "tokenizer.json"


# An adapter where the base should be.


@pytest.fixture
def near(tmp_path, monkeypatch):
    """A working directory without make's targets."""
    monkeypatch.chdir(tmp_path)


def placed(folder, *files, **adapter):
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file).write_text("{}")
    if adapter:
        (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return str(folder)


@pytest.mark.parametrize(("base", "named"), [("own/base", r" \('own/base'\)"), (None, ""), (3, "")])
def test_an_adapter_as_a_base_is_told_with_its_base_and_how_to_begin_with_what_it_learnt(near, base, named):
    name = placed(Path() / "lora", base_model_name_or_path=base)
    said = (
        rf"lora' is an adapter; give its base{named} as --model …, or, to begin with what it learnt, merge it first \("
    )
    with pytest.raises(UserError, match=said) as error:
        reach_model(name)
    assert "export … --merged`, or PEFT's merge_and_unload) and give that folder" in str(error.value)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_an_adapter_beside_whole_weights_is_told_as_such(near, weights):
    name = placed(Path() / "both", "config.json", weights, base_model_name_or_path="own/base")
    with pytest.raises(UserError, match=r"holds an adapter beside its weights, .*take adapter_config.json out of it"):
        reach_model(name)


def test_of_an_export_the_folder_within_is_told(near):
    placed(Path() / "export" / "adapter", base_model_name_or_path="own/base")
    with pytest.raises(UserError, match=r"export/adapter' is an adapter; give its base \('own/base'\)"):
        reach_model(str(Path() / "export"))
    merged = placed(Path() / "export" / "merged", "config.json")
    with pytest.raises(UserError, match=f"no config.json.; give {merged}, which holds one"):
        reach_model(str(Path() / "export"))


def test_an_adapter_in_a_folder_of_a_whole_model_is_nobodys_business(near):
    name = placed(Path() / "model", "config.json", "model.safetensors")
    placed(Path() / "model" / "adapter", base_model_name_or_path="own/base")
    reach_model(name)


def test_a_reward_models_base_may_lie_beside_an_adapter(near):
    reach_model(placed(Path() / "both", "config.json", base_model_name_or_path="own/base"), None)
