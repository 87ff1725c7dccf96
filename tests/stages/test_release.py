"""No stage finds on the device what the one before it held, so the largest stage alone says how much memory a road needs."""

import shutil
import weakref

import pytest
import torch
from bitsandbytes.optim import GlobalOptimManager
from conftest import SMALLEST, main
from transformers import PreTrainedModel

from rlrecipes.stages import attempt

EIGHT_BITS = [f"{stage}.optim=adamw_8bit" for stage in ("sft", "reward", "ppo")]
"""Beside such optimizers Transformers registers the embeddings with bitsandbytes."""


@pytest.fixture
def made(monkeypatch):
    """Weak references to all models and optimizers that are made from now on."""
    references: list[weakref.ref] = []
    for kind in (PreTrainedModel, torch.optim.Optimizer):

        def init(self, *arguments, inner=kind.__init__, **keywords):
            references.append(weakref.ref(self))
            inner(self, *arguments, **keywords)

        monkeypatch.setattr(kind, "__init__", init)
    return references


def test_when_a_stage_begins_the_models_and_optimizers_before_it_are_gone_and_nothing_is_registered(
    made, home, monkeypatch
):
    begun, inner = {}, attempt._attempt

    def begin(job, profile, model_name, stage, conditions):
        begun[stage] = sum(reference() is not None for reference in made), len(made), registered()
        return inner(job, profile, model_name, stage, conditions)

    def registered() -> int:
        manager = GlobalOptimManager.get_instance()
        return len(manager.module_weight_config_triple) + len(manager.pid2config) + len(manager.index2config)

    monkeypatch.setattr(attempt, "_attempt", begin)
    shutil.rmtree(home / "runs" / "released", ignore_errors=True)
    command = ["run", "translation", "--run", "released", *SMALLEST, *EIGHT_BITS]
    assert main([*command, "evaluate.limit=40", "base.max_steps=2"]) == 0
    assert list(begun) == ["sft", "reward", "judge", "ppo", "answers", "evaluate", "report"]
    assert {stage: (alive, held) for stage, (alive, _, held) in begun.items()} == dict.fromkeys(begun, (0, 0))
    assert 0 < begun["sft"][1] < begun["reward"][1] < begun["evaluate"][1], "there was something to release"
