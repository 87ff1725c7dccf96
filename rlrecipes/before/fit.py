"""Settings for a model of one's own where no profile is named: from its size, the data and the machine.

    0.26M parameters of width 64, 2,380 demonstrations of up to 57 tokens
    -> {"sft": {"learning_rate": 0.002, "max_steps": 743, …}, "reward": {…}, "ppo": {…}}

On a GPU, the published profile of its memory is taken as it is; the rules below are for CPUs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlrecipes.before.config import read_config
from rlrecipes.before.plan import gpu_profile
from rlrecipes.before.shape import read_size
from rlrecipes.errors import UserError
from rlrecipes.job import Job
from rlrecipes.profile import SAMPLING, algorithms, make_profile, read_tables
from rlrecipes.run.console import say
from rlrecipes.run.gpu import use_one_gpu
from rlrecipes.run.settings import tables_of

PROFILE = "own"
"""The profile's file on a CPU."""
BUDGET = 1e14
"""Floating-point operations of a stage that trains: about a quarter of an hour on two cores in float32."""
COST = {"sft": 4, "reward": 8, "ppo": 24, "dpo": 10, "distill": 20}
"""Operations of a row's token for each parameter. A forward pass has 2 and the gradient of states 2 more, since the base's
weights get none (Kaplan et al. 2020, arXiv 2001.08361, table 1); a comparison has two rows, which DPO once
more reads for the reference; PPO samples, scores by two adapters and passes four times; `distill` samples
and scores four answers to a prompt, and learns from one."""
WIDTH, RATE, POWER = 2000, 5e-4, 0.781
"""The best rate of a LoRA adapter does not depend on its rank and falls with the model's width: 5e-4 * (2000 / width) ^ 0.781
for Llamas (Schulman et al. 2025, "LoRA Without Regret", and tinker-docs.thinkingmachines.ai, sl-hyperparams)."""
HIGHEST = 2e-3
"""The rule was fitted on models of a billion parameters and more; far below, it would say ten times this."""
SHARES = {"sft": 1.0, "reward": 1 / 3, "ppo": 1 / 4, "dpo": 1 / 10, "distill": 1.0}
"""Of that rate. TRL's and ms-swift's examples train a reward model at half to a third of SFT's rate, PPO at less, DPO at a
fortieth; `distill` is SFT."""
EPOCHS = {"sft": 10, "reward": 3, "dpo": 3, "distill": 3}
"""The most, since the best step is kept: SFT of a model of 0.26M parameters on 2,000 reviews went on getting better up to its
tenth epoch; the reward model's best step lay between the second epoch and the fourth."""
UPDATES = 48
"""The most, of PPO."""
BATCH, FEWEST_STEPS = 32, 50
SAMPLE = 256
"""Demonstrations whose tokens are counted."""


@dataclass(frozen=True)
class Size:
    """What the rules read."""

    parameters: int
    width: int
    """Numbers of a hidden state."""
    demonstrations: int
    judged: int
    """Comparisons, or ratings where there are none."""
    prompts: int
    tokens: int
    """Most tokens of a demonstration, a few long ones aside."""


def fit(job: Job, overrides: Sequence[str]) -> Job:
    """The job under settings that fit it, said in a line; `overrides` keep the last word.

    Raises:
        UserError: an override contradicts them, or the GPU that `model.device` names is not there.
    """
    try:
        read_config(job.profile)  # which says no before anything heavy is imported
    except UserError:  # what is wrong with the model is told where it is loaded
        return job
    gib = _gpu(job)
    try:
        name, tables = _published(job, gib) if gib is not None else _fitted(job, overrides)
    except UserError:
        return job
    model, key = job.profile.model.name, "run.algorithms="
    tables["run"] = tables.get("run", {}) | {
        "algorithms": job.profile.run.algorithms
    }  # stages asked for by name included
    overrides = [override for override in overrides if not override.startswith(key)]
    profile = make_profile(tables, name, overrides, model, f"the settings for '{model}'")
    asked = job.asked and dataclasses.replace(job.asked, profile=name, tables=tables_of(profile))
    return dataclasses.replace(job, profile=profile, asked=asked)


def _published(job: Job, gib: float) -> tuple[str, dict[str, Any]]:
    """The profile for a GPU's memory, and its tables without its data."""
    name = gpu_profile(gib)
    say(f"{job.recipe.name}: settings of the profile {name}, for a GPU of {gib:.0f} GiB; PROFILE=… takes another")
    return name, {key: value for key, value in read_tables(name).items() if key != "data"}


def _fitted(job: Job, overrides: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The profile for a CPU, and its tables with what follows from the size of the model and the data."""
    size, tables = _size(job), read_tables(PROFILE)
    fitted = rules(size, algorithms(job.profile))
    for table in fitted.keys() & EPOCHS.keys():
        if any(override.startswith(f"{table}.num_train_epochs=") for override in overrides):
            del fitted[table]["max_steps"]
        else:
            del tables[table]["num_train_epochs"]
    values = {f"{table}.{key}": value for table in fitted for key, value in fitted[table].items()}
    for override in overrides:
        values.pop(override.partition("=")[0], None)
    told = ", ".join(f"{name}={value}" for name, value in values.items())
    say(
        f"{job.recipe.name}: settings for {size.parameters / 1e6:.3g}M parameters of width {size.width}, "
        f"{size.demonstrations:,} demonstrations of up to {size.tokens} tokens: {told}"
    )
    return PROFILE, tables | {table: tables.get(table, {}) | settings for table, settings in fitted.items()}


def _gpu(job: Job) -> float | None:
    """The memory in GiB of the GPU that the job uses; None without one."""
    if note := use_one_gpu(job.profile.model.device):
        say(f"{job.recipe.name}: {note}")
    import torch

    return torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None


def rules(size: Size, policies: Sequence[str] = ("ppo",)) -> dict[str, dict[str, Any]]:
    """The settings that follow from the size, by table, of which `policies` are those of algorithms."""
    rate = min(HIGHEST, RATE * (WIDTH / size.width) ** POWER)
    few = min(size.demonstrations, size.judged or size.demonstrations) < 10_000
    window = min(512, 64 * (size.tokens // 32 + 1))
    tables: dict[str, dict[str, Any]] = {
        "model": {"max_length": window},
        "lora": {"lora_dropout": 0.1 if few else 0.05},  # QLoRA's 0.1 for its smaller models (arXiv 2305.14314)
    }
    learned = {"sft": size.demonstrations, "reward": size.judged}
    learned |= {table: rows for table, rows in (("dpo", size.judged), ("distill", size.prompts)) if table in policies}
    for stage, rows in learned.items():
        batch = _batch(size, stage, rows)
        tables[stage] = {
            "learning_rate": _rounded(rate * SHARES[stage]),
            "per_device_train_batch_size": batch,
            "max_steps": max(1, min(EPOCHS[stage] * rows // batch, _rows(size, stage) // batch)),
        }
    batch = 64 if size.prompts >= 256 else max(2, 2 ** ((size.prompts // 2).bit_length() - 1))
    micro = min(batch, 64 if size.parameters < 1e7 else 16)
    updates = max(8, min(UPDATES, _rows(size, "ppo") // batch))
    of_policy = {
        "learning_rate": _rounded(rate * SHARES["ppo"]),
        "total_episodes": updates * batch,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch // micro,
    }
    return tables | {table: dict(of_policy) for table in policies if table in SAMPLING}


def _rows(size: Size, stage: str) -> int:
    """How many rows the budget pays for."""
    return int(BUDGET / (COST[stage] * size.parameters * size.tokens))


def _batch(size: Size, stage: str, rows: int) -> int:
    """The largest power of two, up to `BATCH`, that leaves `FEWEST_STEPS` to the budget and two batches to the rows."""
    most = min(BATCH, max(4, _rows(size, stage) // FEWEST_STEPS), max(2, rows // 2))
    return int(2 ** (most.bit_length() - 1))


def _rounded(rate: float) -> float:
    """Two digits, as people write rates."""
    return float(f"{rate:.1e}")


def _size(job: Job) -> Size:
    from rlrecipes.model.tokens import encode, open_tokenizer

    tokenizer, train = open_tokenizer(job.profile.model.name), job.data.train
    demonstrations = train.demonstrations
    sample = demonstrations[:: max(1, len(demonstrations) // SAMPLE)]
    lengths = sorted(len(encode(tokenizer, row.prompt, row.answers[0]).ids) for row in sample) or [1]
    parameters, width = read_size(job.profile)
    judged = len(train.comparisons or train.ratings)
    tokens = lengths[int(0.98 * (len(lengths) - 1))]
    return Size(parameters, width, len(demonstrations), judged, len(train.prompts), tokens)
