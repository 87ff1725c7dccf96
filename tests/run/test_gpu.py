"""Of several GPUs a process uses one: every library that asks CUDA then sees that one alone."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from trl import SFTConfig

from rlrecipes.errors import UserError
from rlrecipes.pipeline import prepare
from rlrecipes.profile import load_profile
from rlrecipes.run import gpu
from rlrecipes.run.gpu import use_one_gpu
from rlrecipes.run.resume import training_arguments
from rlrecipes.run.settings import tables_of

UUIDS = ["GPU-0a", "GPU-1b", "GPU-2c", "GPU-3d"]


@pytest.fixture
def cards(monkeypatch):
    """A machine of so many cards, as CUDA shows them; where it has begun, it keeps what it saw."""
    monkeypatch.setattr(gpu, "_process", gpu._Process())

    def machine(count: int, visible: str | None = None, begun: bool = False) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        seen = shown(count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(shown(count)))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen if begun else shown(count)))
        monkeypatch.setattr(
            torch.cuda, "get_device_name", lambda index: f"Card {(seen if begun else shown(count))[index]}"
        )
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    return machine


def shown(count: int) -> list[int]:
    """The cards that CUDA_VISIBLE_DEVICES shows, up to the first that is not there; of parts, the first."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    places = list(range(count)) if listed is None else []
    for entry in (listed or "").split(","):
        if entry.startswith("MIG-"):
            return [0]
        place = UUIDS.index(entry) if entry in UUIDS else int(entry or -1)
        if listed is None or not 0 <= place < count:
            break
        places.append(place)
    return places


@pytest.mark.parametrize(
    ("visible", "device", "left", "card"),
    [
        (None, None, "0", 0),
        (None, 0, "0", 0),
        (None, 2, "2", 2),
        ("2,3", None, "2", 2),
        ("2,3", 1, "3", 3),
        ("GPU-1b,GPU-3d", 1, "GPU-3d", 3),
        ("MIG-a,MIG-b", 1, "MIG-b", 0),
    ],
)
def test_one_of_the_visible_gpus_is_left_and_named(cards, visible, device, left, card):
    cards(4, visible)
    count = len(visible.split(",")) if visible else 4
    place = f"number {device}, counted from 0" if device else "the first"
    line = f"{count} GPUs are visible; this uses {place}, Card {card}; model.device chooses another"
    assert use_one_gpu(device) == line
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left
    assert torch.cuda.device_count() == 1
    assert use_one_gpu(device) is None, "it is said once"


@pytest.mark.parametrize(("count", "visible"), [(1, None), (4, "3"), (4, "GPU-1b"), (0, None), (2, ""), (2, "-1")])
def test_where_one_or_none_is_visible_nothing_is_changed_or_said(cards, count, visible):
    cards(count, visible)
    assert use_one_gpu() is None
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


@pytest.mark.parametrize(
    ("count", "visible", "device", "there"),
    [
        (0, None, 0, "none visible"),
        (2, "", 1, "none visible"),
        (2, None, 2, "2 visible, counted from 0"),
        (4, "1,3", 2, "2 visible, counted from 0"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(cards, count, visible, device, there):
    cards(count, visible)
    with pytest.raises(UserError) as error:
        use_one_gpu(device)
    assert str(error.value) == f"model.device={device} would have no effect: of GPUs there is {there}; leave it out"
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


@pytest.mark.parametrize("visible", [None, "0,1"])
def test_where_cuda_has_begun_with_several_a_process_is_refused_and_left_as_it_was(cards, visible):
    cards(2, visible, begun=True)
    with pytest.raises(UserError, match=r"CUDA began in this process with 2 GPUs .* CUDA_VISIBLE_DEVICES=1$"):
        use_one_gpu(1)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


def test_a_process_keeps_its_gpu(cards):
    cards(2)
    assert use_one_gpu(1)
    assert use_one_gpu(1) is None
    with pytest.raises(UserError, match=r"works on GPU 1 already, .* CUDA_VISIBLE_DEVICES=0$"):
        use_one_gpu()
    with pytest.raises(UserError, match=r"model\.device=2 would have no effect: of GPUs there is 2 visible"):
        use_one_gpu(2)


def test_transformers_trainer_then_has_one_gpu_and_the_profiles_batch(cards, tmp_path):
    settings = load_profile("tiny", ["sft.per_device_train_batch_size=8"]).sft

    def arguments() -> SFTConfig:
        return SFTConfig(**training_arguments(SFTConfig, settings, tmp_path, 0))

    cards(2)
    assert (arguments().n_gpu, arguments().train_batch_size) == (2, 16), "as it is without a choice"
    use_one_gpu()
    assert (arguments().n_gpu, arguments().train_batch_size) == (1, 8)


def test_a_device_is_an_index_or_auto_and_kept_with_the_run_but_not_with_its_results(home):
    chosen, usual = (load_profile("tiny", [f"model.device={value}"]) for value in ("1", "auto"))
    assert (chosen.model.device, usual.model.device) == (1, None)
    assert tables_of(chosen)["model"]["device"] == 1
    recorded = [prepare("translation", each, data="pairs.jsonl").settings("ppo") for each in (chosen, usual)]
    assert recorded[0] == recorded[1]
    for value in ("-1", "cuda:1", "1.5"):
        with pytest.raises(UserError, match=f"model.device={value}: it must be "):
            load_profile("tiny", [f"model.device={value}"])


CHOSEN_FIRST = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from rlrecipes import errors
from rlrecipes.run import gpu
def stop(*arguments, **keywords):
    loaded = [name for name in ("bitsandbytes", "peft", "accelerate", "trl") if name in sys.modules]
    raise errors.UserError(f"chosen after {{loaded}}")
gpu.use_one_gpu = stop
from rlrecipes.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "translation", "--run", "gpu-first", "--data", "pairs.jsonl"],
        ["run", "translation", "--run", "gpu-own", "--data", "pairs.jsonl", "--model", "of one's own"],
        ["show", "translation", "--run", "gpu-own", "--data", "pairs.jsonl", "--model", "of one's own"],
        ["evaluate", "translation", "--run", "t", "--data", "pairs.jsonl", "--force"],
        ["chat", "translation", "--run", "t"],
        ["export", "translation", "--run", "t"],
        ["export", "translation", "--run", "t", "--policy", "reward"],
        ["examine", "translation", "--run", "t"],
        ["examine", "translation", "--run", "gpu-else", "--data", "pairs.jsonl", "reward.model=of one's own"],
    ],
    ids=lambda argv: "-".join(argv[:1] + argv[4:]),
)
def test_every_command_that_opens_a_model_chooses_before_any_library_asks_cuda(argv, finished, checkpoint, home):
    places = {"of one's own": str(checkpoint.model), "reward.model=of one's own": f"reward.model={checkpoint.reward}"}
    command = [sys.executable, "-c", CHOSEN_FIRST, *(places.get(word, word) for word in argv)]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.stderr.splitlines()[-1] == "error: chosen after []"
