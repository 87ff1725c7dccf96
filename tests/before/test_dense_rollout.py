"""`ppo.dense_rollout=auto` takes a dense copy of the policy where the GPU has room for it by the plan."""

from types import SimpleNamespace

import pytest
import torch

from rlrecipes.before import dense
from rlrecipes.before.parts import GIB
from rlrecipes.model import forward
from rlrecipes.profile import load_profile


@pytest.mark.parametrize(
    ("gib", "given", "settled"),
    [(24, "auto", "always"), (16, "auto", "never"), (16, "always", "always"), (24, "never", "never")],
)
def test_a_gpus_memory_decides_what_is_left_to_it(gib, given, settled, monkeypatch):
    profile = load_profile("single_gpu_24gb", [f"ppo.dense_rollout={given}"])
    job = SimpleNamespace(profile=profile, recipe=SimpleNamespace(reward=SimpleNamespace(learned=1.0)))
    memory = SimpleNamespace(total_memory=gib * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert dense.settled(job, "ppo").dense_rollout == given
    monkeypatch.setattr(forward, "device", lambda: torch.device("cuda"))
    assert dense.settled(job, "ppo").dense_rollout == settled
