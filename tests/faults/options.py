"""Command lines that cannot mean anything, a hundred and twenty and more; each is told in one line before torch loads.

sft dialogue sft.max_stepz=1  ->  error: there is no setting 'sft.max_stepz'; did you mean 'sft.max_steps'?
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from faults.attempt import Outcome, command, fault_of, forked
from faults.files import GOOD

SECONDS = 20
"""More than any refusal takes on a busy machine; none may begin to train."""


def command_lines() -> list[tuple[str, ...]]:
    """All of them, in a fixed order, each once."""
    return list(dict.fromkeys([*_words(), *_settings(), *_values()]))


def _words() -> Iterator[tuple[str, ...]]:
    """Commands, recipes and options that are missing, unknown, empty, double or in the wrong place."""
    yield ()
    for word in ("", " ", "train", "tset", "SFT", "sft.max_steps=1", "translation", "-x", "--sft", "run,sft", "../run"):
        yield (word,)
    for stage in ("sft", "reward", "ppo", "answers", "evaluate", "report", "run", "show", "plan", "chat", "export"):
        yield (stage,)
        yield stage, "transaltion"
        yield stage, ""
        yield stage, "translation", "dialogue"
        yield stage, "translation", "--sed", "1"
        yield stage, "translation", "--profile"
        yield stage, "translation", "--profile", "tinny"
        yield stage, "translation", "--run", "../other"
    for option in ("--seed", "--run", "--model", "--data", "--profile", "--columns"):
        yield "sft", "translation", option, ""
    for seed in ("-1", "1.5", "x", "1e3", str(2**64), "nan", "0x10", "١a"):
        yield "sft", "translation", "--seed", seed
    for run in (".", "..", "a/b", "/tmp", "-a", "a" * 300, "a\nb", "a b", "~"):
        yield "sft", "translation", f"--run={run}"
    for columns in ("target", "target=", "=b", "target=a=", "nothing=a"):
        yield "show", "translation", "--data", "pairs.jsonl", "--columns", columns
    yield "show", "translation", "--columns", "target=b"
    yield "show", "translation", "--data", "pairs.jsonl", "--columns", "target=a", "target=b"
    yield "plan", "translation", "--card", "rtx4091"
    for card in ("0", "-24", "nan", "inf", "many", "24GB 2"):
        yield "plan", "translation", "--profile", "single_gpu_24gb", "--card", card
    for temperature in ("-1", "nan", "inf", "0.001", "warm"):
        yield "chat", "translation", "--temperature", temperature
    yield "chat", "translation", "--policy", "best"
    yield "export", "translation", "--policy", "base"
    yield "export", "translation", "--push", "no-slash"
    yield "list", "translation"
    yield "demo", "translation"
    yield "demo", "--data", "pairs.jsonl"
    yield "ppo", "translation+dialogue"
    yield "reward", "translation+"
    yield "reward", "translation+translation"


def _settings() -> Iterator[tuple[str, ...]]:
    """Settings that do not exist, or not so."""
    for setting in (
        "sft.max_stepz=1",
        "stf.max_steps=1",
        "max_steps=1",
        "sft.max_steps",
        "sft.=1",
        ".max_steps=1",
        "sft.max_steps=",
        "sft.max_steps==1",
        "SFT.max_steps=1",
        "sft.max.steps=1",
        "name=big",
        "profile.name=big",
        "terms.nothing=1",
        "terms.learned=",
        "terms.learned=nan",
        "terms.learned=inf",
        "terms.learned=much",
        "ppo.bf16=true",
        "ppo.max_steps=3",
        "ppo.eval_steps=3",
        "ppo.stop_token=eos",
        "ppo.reward_model_path=x",
        "sft.max_length=3",
        "model.revision=main",
        "optimizer.lr=1",
    ):
        yield "sft", "translation", setting
    yield "sft", "translation", "sft.max_steps=1", "sft.max_steps=2"


def _values() -> Iterator[tuple[str, ...]]:
    """Values out of bounds, or of another type."""
    for key in ("sft.max_steps", "ppo.total_episodes", "ppo.num_ppo_epochs", "evaluate.batch_size", "lora.r"):
        for value in ("0", "-5", "1.5", "ten", "true", "nan", "1e400", "[1]", "9" * 400):
            yield "run", "translation", f"{key}={value}"
    for key in ("sft.learning_rate", "ppo.learning_rate", "ppo.cliprange", "reward.max_grad_norm", "ppo.temperature"):
        for value in ("0", "-1", "nan", "inf", "fast", "true", "1,5"):
            yield "run", "translation", f"{key}={value}"
    for setting in (
        "ppo.gamma=1.01",
        "ppo.lam=0",
        "lora.lora_dropout=1",
        "model.quantization=int8",
        "model.dtype=float16",
        "model.attention=flash",
        "track.wandb=maybe",
        "ppo.value=critic",
        "ppo.kl_estimator=k2",
        "reward.objective=ranking",
        "sft.lr_scheduler_type=cosinus",
        "ppo.whiten_rewards=perhaps",
        "sft.optim=adm",
        "base.vocab_size=100",
        "base.num_attention_heads=7",
        "ppo.num_mini_batches=7",
        "ppo.response_length=512",
        "ppo.kl_horizon=5",
        "checkpoint.seconds=-1",
        "evaluate.limit=-1",
        "memory.halve_on_oom=2",
        "sft.num_train_epochs=2",
    ):
        yield "run", "translation", setting


def outcomes(folder: Path, done: set[str]) -> Iterator[Outcome]:
    """Tries the command lines; none may get as far as a run of its own."""
    (folder / "pairs.jsonl").write_bytes(GOOD)
    for argv in command_lines():
        if (case := " ".join(argv)[:200]) in done:
            continue
        ended = forked(command(argv, folder), folder / "output", limit=SECONDS)
        fault = fault_of(ended)
        if any((folder / "runs").glob("*")):
            fault = fault or "something was left in runs/"
            shutil.rmtree(folder / "runs")
        yield Outcome("options", case, "fell" if fault else "told", fault or ended.errors.strip(), ended.seconds)
