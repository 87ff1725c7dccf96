"""Several processes come to what one comes to: losses, weights, answers and records, whatever their number."""

import json
from pathlib import Path

import pytest
from conftest import SMALLEST
from ranks import Ranks
from safetensors.torch import load_file

UNLIKE = ("seconds", "finished", "peak_memory_mb", "git_commit", "files", "sha256", "eps", "machine")
TIMES = ("_runtime", "_per_second")
OWN = ("--data", "pairs.jsonl")


@pytest.fixture(scope="module")
def ranks():
    with Ranks() as ranks:
        yield ranks


def same(ours, theirs) -> bool:
    """Whether two records say the same, numbers up to 1e-5."""
    if isinstance(ours, dict):
        kept = [key for key in ours if key not in UNLIKE and not key.endswith(TIMES)]
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in kept)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == pytest.approx(theirs, rel=1e-5, abs=1e-5) if isinstance(ours, float) else ours == theirs


def content(path: Path):
    if path.name == "done.json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".safetensors":
        return {name: tensor.flatten().tolist() for name, tensor in load_file(path).items()}
    return None


def different(ours: Path, theirs: Path) -> list[str]:
    """The files that two runs have not both, or in which they say something else."""
    names = {path.relative_to(folder) for folder in (ours, theirs) for path in folder.rglob("*") if path.is_file()}
    there = {name for name in names if (ours / name).is_file() and (theirs / name).is_file()}
    return sorted(map(str, names - there)) + sorted(
        str(name) for name in there if not same(content(ours / name), content(theirs / name))
    )


def test_sft_in_several_processes_is_that_of_one(ranks, home):
    shape = ("sft.max_steps=4", "sft.logging_steps=1", "sft.gradient_accumulation_steps=2", "lora.lora_dropout=0")
    for world in (1, 2, 3):  # micro-batches of 2 rows leave one of three processes idle
        arguments = ("sft", "translation", "--run", f"sft-in-{world}", *OWN, *SMALLEST, *shape)
        done = ranks(world, home, *arguments, "sft.per_device_train_batch_size=2")
        assert done.statuses == [0] * world, done.outputs
        assert done.outputs[1:] == [""] * (world - 1), "the first process alone talks"
    runs = home / "runs"
    for world in (2, 3):
        assert different(runs / "sft-in-1", runs / f"sft-in-{world}") == []
