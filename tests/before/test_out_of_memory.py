"""Memory that runs out: told with the phase, the plan and what to lower; or the stage goes on with half its micro-batch."""

import json
import shutil

import pytest
import torch
from conftest import SMALLEST, main
from safetensors.torch import load_file

from rlrecipes.before.out_of_memory import halved
from rlrecipes.policy import answers
from rlrecipes.policy.dpo_trainer import ResumableDPOTrainer
from rlrecipes.policy.group_trainer import GRPOTrainer, RLOOTrainer
from rlrecipes.policy.ppo_trainer import SharedBasePPOTrainer
from rlrecipes.policy.sampler import Sampler
from rlrecipes.policy.sft_trainer import ResumableSFTTrainer
from rlrecipes.profile import SAMPLING, load_profile
from rlrecipes.reward.trainers import ResumableRewardTrainer
from rlrecipes.run.stages import STAGES
from rlrecipes.stages import evaluate

STEPS = {
    "sft": (ResumableSFTTrainer, "training_step"),
    "reward": (ResumableRewardTrainer, "training_step"),
    "ppo rollout": (SharedBasePPOTrainer, "roll_out"),
    "ppo update": (SharedBasePPOTrainer, "update"),
    "rloo rollout": (RLOOTrainer, "roll_out"),
    "grpo update": (GRPOTrainer, "update"),
    "dpo": (ResumableDPOTrainer, "training_step"),
    "answers": (answers, "sample"),
    "evaluate": (evaluate, "score_all"),
}
BATCH = {
    "sft": "sft.per_device_train_batch_size=4",
    "reward": "reward.per_device_train_batch_size=4",
    "ppo rollout": "ppo.local_rollout_forward_batch_size=8",  # a whole batch, since the setting is more
    "ppo update": "ppo.per_device_train_batch_size=8",
    "rloo rollout": "rloo.local_rollout_forward_batch_size=8",
    "grpo update": "grpo.per_device_train_batch_size=8",
    "dpo": "dpo.per_device_train_batch_size=4",
    "answers": "evaluate.batch_size=100",
    "evaluate": "evaluate.batch_size=100",
}
OWN = {
    **{
        table: [f"{table}.{key}" for key in ("total_episodes=16", "per_device_train_batch_size=8", "anyway=true")]
        for table in ("rloo", "grpo")
    },
    "dpo": ["dpo.max_steps=2", "dpo.per_device_train_batch_size=4"],
}
"""The smallest settings of the other algorithms."""


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr("rlrecipes.before.checks._check_memory", lambda profile: None)


@pytest.fixture
def full(monkeypatch):
    """Lets memory run out in a phase, the first time or the first few times that it is entered."""

    def fill(phase: str, times: int = 1, after: int = 0) -> None:
        place, name = STEPS[phase]
        inner, left, passed = getattr(place, name), [times], [0]

        def step(*arguments, **keywords):
            passed[0] += 1
            if left[0] and passed[0] > after:
                left[0] -= 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return inner(*arguments, **keywords)

        monkeypatch.setattr(place, name, step)

    return fill


@pytest.fixture
def copied(finished, home):
    """Runs a stage anew in a copy of the finished run."""

    def run(stage: str, name: str, *settings: str) -> int:
        folder = home / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished, folder / "translation")
        stages = list(STAGES)
        for later in stages[stages.index(stage) :]:
            shutil.rmtree(folder / "translation" / later, ignore_errors=True)
        return _made(stage, name, *settings)

    return run


@pytest.mark.parametrize("phase", STEPS)
def test_the_sentence_has_the_phase_the_plan_and_what_to_lower(phase, full, copied, home, capsys):
    full(phase)
    stage = phase.split()[0]
    assert copied(stage, "full") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert f"out of memory in the phase '{phase}', which needs " in line
    assert "GiB by the plan; lower " in line
    assert BATCH[phase] in line
    assert "model.max_length=512" in line
    of_others = [f"{table}." for table in (*SAMPLING, "dpo") if table != stage]
    assert not any(other in line.replace("ppo.response_length", "") for other in of_others)
    left = [path.name for path in (home / "runs" / "full" / "translation").glob(f"*{stage}")]
    assert left == ([".dpo"] if stage == "dpo" else []), "of DPO, what it has read of the reference"


def test_answers_for_the_log_are_sampled_as_a_rollout_is(copied, monkeypatch, capsys):
    def greedy(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Sampler, "greedy", greedy)
    assert copied("ppo", "full-samples", "ppo.eval_every=0", "ppo.num_sample_generations=1") == 2
    assert "out of memory in the phase 'ppo rollout'" in capsys.readouterr().err


@pytest.mark.parametrize("phase", STEPS)
def test_a_stage_goes_on_once_with_half_its_micro_batch_and_says_so(phase, full, copied, home, capsys):
    full(phase)
    stage, (key, size) = phase.split()[0], BATCH[phase].split("=")
    assert copied(stage, "halved", "memory.halve_on_oom=true") == 0
    half, usual = int(size) // 2, 64 if "rollout" in phase else int(size)
    assert f"{key}={half} instead of {usual}" in capsys.readouterr().out
    done = json.loads((home / "runs" / "halved" / "translation" / stage / "done.json").read_text())
    assert done["halved"][key] == [usual, half]
    assert done["settings"][key] == usual, "the same command finds its stage finished"


@pytest.mark.parametrize("phase", ["sft", "reward", "ppo update", "grpo update", "dpo"])
def test_an_equal_batch_in_halves_differs_in_rounding_alone(phase, full, copied, home, finished):
    stage = phase.split()[0]
    plain, quiet = ("lora.lora_dropout=0", "sft.max_steps=2"), "memory.halve_on_oom=true"
    full(phase)
    for name, more in (("whole", ()), ("halves", (quiet,))):
        folder = home / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        if name == "whole":
            with pytest.MonkeyPatch.context() as patch:
                place, step = STEPS[phase]
                patch.setattr(place, step, _original(place, step))
                assert _all_to(stage, name, *plain) == 0
        else:
            assert _all_to(stage, name, *plain, *more) == 0
    whole, halves = (
        load_file(home / "runs" / name / "translation" / stage / "adapter" / "adapter_model.safetensors")
        for name in ("whole", "halves")
    )
    assert json.loads((home / "runs" / "halves" / "translation" / stage / "done.json").read_text())["halved"]
    for key, weight in whole.items():
        torch.testing.assert_close(halves[key], weight, rtol=1e-2, atol=2e-5)


_ORIGINALS = {(place, step): getattr(place, step) for place, step in STEPS.values()}


def _original(place, step):
    return _ORIGINALS[place, step]


def _all_to(stage, name, *settings):
    road = ("sft", stage) if stage in ("sft", "dpo") else ("sft", "reward", stage)
    return max(_made(each, name, *settings) for each in dict.fromkeys(road))


def _made(stage, name, *settings):
    return main(
        [stage, "translation", "--run", name, "--data", "pairs.jsonl", *SMALLEST, *OWN.get(stage, ()), *settings]
    )


@pytest.mark.parametrize(("phase", "stage"), [("sft", "sft"), ("ppo update", "ppo")])
def test_it_goes_on_from_the_last_checkpoint(phase, stage, full, copied, home, capsys):
    full(phase, after=1)
    settings = ("checkpoint.seconds=0", "memory.halve_on_oom=true", "ppo.total_episodes=32")
    assert copied(stage, "later", *settings) == 0
    assert "going on after step 1" in capsys.readouterr().out
    done = json.loads((home / "runs" / "later" / "translation" / stage / "done.json").read_text())
    assert done["resumed"]["step"] == 1
    assert done["halved"]


def test_it_halves_once_and_no_more(full, copied, capsys):
    full("sft", times=2)
    assert copied("sft", "twice", "memory.halve_on_oom=true") == 2
    assert "sft.per_device_train_batch_size=2" in capsys.readouterr().err


def test_what_cannot_be_halved_at_an_equal_batch_is_not():
    assert halved(load_profile("tiny", ["sft.per_device_train_batch_size=3"]), "sft") is None
    assert halved(load_profile("tiny", ["ppo.per_device_train_batch_size=1"]), "ppo update") is None
    assert halved(load_profile("tiny", ["evaluate.batch_size=1"]), "evaluate") is None


def test_a_halved_batch_is_equal():
    changed, told = halved(load_profile("tiny"), "ppo update")
    assert (changed.ppo.per_device_train_batch_size, changed.ppo.gradient_accumulation_steps) == (32, 2)
    assert told == {"ppo.per_device_train_batch_size": (64, 32), "ppo.gradient_accumulation_steps": (1, 2)}


def test_a_halved_batch_of_groups_takes_as_many_steps():
    before = load_profile("tiny", ["run.algorithms=grpo", "grpo.steps_per_generation=3"])
    after, told = halved(before, "grpo update")
    assert (after.grpo.batch, after.grpo.mini_batches) == (before.grpo.batch, before.grpo.mini_batches) == (192, 3)
    assert told["grpo.steps_per_generation"] == (3, 6)


@pytest.mark.parametrize(("given", "held"), [(64, 16), (10, 10)])
def test_half_a_rollout_is_half_of_what_is_sampled_together(given, held):
    """Which is no more than a batch: half of 64 would be as much as before, where a batch is 16."""
    settings = ["rloo.per_device_train_batch_size=16", f"rloo.local_rollout_forward_batch_size={given}"]
    profile = load_profile("tiny", ["run.algorithms=rloo", *settings[: 1 if given == 64 else 2]])
    assert halved(profile, "rloo rollout")[1] == {"rloo.local_rollout_forward_batch_size": (given, held // 2)}
