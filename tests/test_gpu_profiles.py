"""The profiles for a GPU, at toy size on the CPU: every key is taken up by the stages, and does what it says."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import SHORTEST, SMALLEST, main
from safetensors.torch import load_file

from rlrecipes.model import loading as models
from rlrecipes.model.tokens import load_tokenizer
from rlrecipes.policy import trainer
from rlrecipes.profile import load_profile, profile_names, settings_of

GPU_PROFILES = [name for name in profile_names() if name.startswith("single_gpu")]
TOY = (
    *("model.max_length=128", "lora.r=8", "track.wandb=off", "evaluate.limit=4"),
    *("sft.num_train_epochs=none", "sft.max_steps=2", "sft.warmup_steps=0", "sft.per_device_train_batch_size=2"),
    *(
        "reward.num_train_epochs=none",
        "reward.max_steps=2",
        "reward.warmup_steps=0",
        "reward.per_device_train_batch_size=2",
    ),
    *("ppo.total_episodes=16", "ppo.per_device_train_batch_size=4", "ppo.gradient_accumulation_steps=2"),
    *("ppo.response_length=8", "ppo.local_rollout_forward_batch_size=8", "ppo.anyway=true"),
)
"""What makes a profile small; precision, quantization, attention, optimizers, checkpointing and the rest stay its own."""


@pytest.mark.parametrize("name", GPU_PROFILES)
def test_a_gpu_profile_takes_every_step_at_toy_size(name, checkpoint, home):
    command = ["run", "translation", "--profile", name, "--model", str(checkpoint.model), "--data", "pairs.jsonl"]
    assert main([*command, *TOY]) == 0
    folder = home / "runs" / name / "translation"
    for stage in ("sft", "reward", "ppo"):
        done = json.loads((folder / stage / "done.json").read_text())
        asked = settings_of(load_profile(name, TOY, str(checkpoint.model)), stage)
        asked.pop("reward.function", None)  # no reward model knows of it
        assert asked.items() <= done["settings"].items()


@pytest.mark.parametrize("name", GPU_PROFILES)
def test_a_gpu_profile_is_what_it_says_it_is(name):
    profile = load_profile(name)
    assert (profile.model.quantization, profile.model.dtype, profile.model.attention) == ("nf4", "bfloat16", "sdpa")
    assert all(getattr(profile, stage).gradient_checkpointing for stage in ("sft", "reward", "ppo"))
    assert profile.data == "hub"


def test_the_data_of_the_profile_are_read_where_none_are_named(home, monkeypatch, capsys):
    seen, made = [], SimpleNamespace(profile=load_profile("tiny"))
    monkeypatch.setattr("rlrecipes.pipeline.make_job", lambda *arguments, source, **rest: seen.append(source) or made)
    monkeypatch.setattr("rlrecipes.before.show.show", lambda job: "")
    for more in ([], ["--data", "built-in"], ["--data", "pairs.jsonl"]):
        main(["show", "translation", "--profile", GPU_PROFILES[0], *more])
    main(["show", "translation"])
    assert seen == ["hub", "built-in", "pairs.jsonl", "built-in"]


def test_attention_reaches_the_model(checkpoint):
    tokenizer = load_tokenizer(str(checkpoint.model))
    for attention in ("sdpa", "eager"):
        settings = load_profile("tiny", ["model.quantization=none", f"model.attention={attention}"]).model
        for load in (models.load_causal, models.load_scorer):
            assert load(str(checkpoint.model), settings, tokenizer).config._attn_implementation == attention


def test_an_optimizer_reaches_every_stage(checkpoint, home, monkeypatch):
    import bitsandbytes

    made = []
    inner = bitsandbytes.optim.AdamW.__init__

    def noted(self, *arguments, **keywords):
        made.append((keywords.get("optim_bits"), keywords.get("is_paged")))
        inner(self, *arguments, **keywords)

    monkeypatch.setattr(bitsandbytes.optim.AdamW, "__init__", noted)
    optimizers = [f"{stage}.optim=paged_adamw_8bit" for stage in ("sft", "reward", "ppo")]
    command = ["ppo", "translation", "--run", "paged", "--data", "pairs.jsonl", "--model", str(checkpoint.model)]
    for stage in ("sft", "reward", "ppo"):
        assert main([stage, *command[1:], *SHORTEST, *optimizers]) == 0
    assert set(made) == {(8, True)}
    assert len(made) > 3  # each is also tried beforehand


def test_bfloat16_changes_the_computation_and_leaves_the_adapters_in_float32(finished, home, monkeypatch):
    seen = set()
    inner = trainer.states_at

    def noted(model, ids, places):
        states = inner(model, ids, places)
        seen.add(states.dtype)
        return states

    monkeypatch.setattr("rlrecipes.policy.trainer.states_at", noted)
    command = ["run", "translation", "--run", "bf16", "--data", "pairs.jsonl", *SMALLEST, "model.dtype=bfloat16"]
    assert main(command) == 0
    assert seen == {torch.bfloat16}
    for stage in ("sft", "reward", "ppo"):
        found, full = (
            load_file(folder / stage / "adapter" / "adapter_model.safetensors")
            for folder in (home / "runs" / "bf16" / "translation", finished)
        )
        assert {weight.dtype for weight in found.values()} == {torch.float32}
        assert any(not torch.equal(found[key], full[key]) for key in full)
    first, *_ = (home / "runs" / "bf16" / "translation" / "ppo" / "log.jsonl").read_text().splitlines()
    assert json.loads(first)["policy/grad_norm"] > 0
