"""The plan beside what is measured: twelve shapes on the CPU, each in a process of its own.

    {"name": "sft, wide", "moment": "sft", "planned_mb": 412.0, "measured_mb": 398.1, "ratio": 1.035}

    python -m benchmarks.plan            # docs/memory.md has its table, runs/plan-bench/done.json what it is made of

The models are random, saved, and loaded as a stage loads them; the trainers are the stages' own. What is measured is the
peak of resident memory (VmHWM, set back once the libraries are loaded and used) less what the process held before the model
was loaded. glibc is told to give freed blocks back at once, so that this counts what tensors take and not what it keeps.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, measure, peak, require_linux, reset_peak, settle
from benchmarks.work import Model, Work, prompts
from rlrecipes.before.needs import fullest, moments
from rlrecipes.before.shape import Lengths, shape_of
from rlrecipes.errors import UserError
from rlrecipes.profile import (
    EvaluateSettings,
    LoraSettings,
    ModelSettings,
    PPOSettings,
    Profile,
    RewardSettings,
    SFTSettings,
)
from rlrecipes.run.circumstances import git_commit
from rlrecipes.run.folder import write_json

OUT = Path("runs/plan-bench")


@dataclass(frozen=True)
class Shape:
    """What is measured: a phase of a stage, on a work."""

    phase: str
    """`sft`, `reward`, `ppo rollout`, `ppo update` or `answers`."""
    work: Work


def _work(
    name: str,
    model: Model,
    longest: int,
    answer: int,
    batch: int,
    micro: int,
    shortest: int = 0,
    updates: int = 2,
    **settings: Any,
) -> Work:
    """Two updates of two micro-batches or more, so that gradients and moments are there beside the activations.

    A rollout is measured in the first: oneDNN keeps a compiled kernel for each shape of a bfloat16 product that an update
    has seen, tens of megabytes that are no tensors.
    """
    return Work(
        name,
        model,
        shortest=shortest or longest,
        longest=longest,
        answer=answer,
        batch=batch,
        micro_batch=micro,
        epochs=1,
        updates=updates,
        **settings,
    )


WIDE = Model(vocabulary=4096, hidden=512, layers=5, heads=8, kv_heads=4, intermediate=1408)
DEEP = Model(vocabulary=2048, hidden=256, layers=16, heads=4, intermediate=768)
MANY_WORDS = Model(vocabulary=65536, hidden=384, layers=3, heads=6, kv_heads=2, intermediate=1024, family="qwen3")


def _qlora(model: Model) -> Model:
    return dataclasses.replace(model, quantization="nf4", dtype="bfloat16")


SHAPES = (
    Shape("sft", _work("wide", WIDE, 192, 64, 8, 4)),
    Shape(
        "sft",
        _work("deep, checkpointed, lengths differ", DEEP, 384, 128, 8, 4, shortest=128, gradient_checkpointing=True),
    ),
    Shape("sft", _work("vocabulary 65k, QLoRA", _qlora(MANY_WORDS), 64, 192, 4, 2)),
    Shape("reward", _work("wide, QLoRA", _qlora(WIDE), 192, 64, 8, 4)),
    Shape("reward", _work("deep, lengths differ", DEEP, 192, 64, 4, 2, shortest=64)),
    Shape("ppo rollout", _work("wide, long answers", WIDE, 64, 192, 64, 4, updates=1)),
    Shape(
        "ppo rollout",
        _work("deep, QLoRA, long prompts that differ", _qlora(DEEP), 480, 32, 32, 4, shortest=240, updates=1),
    ),
    Shape("ppo update", _work("wide", WIDE, 128, 128, 16, 8)),
    Shape(
        "ppo update",
        _work("vocabulary 65k, QLoRA, checkpointed", _qlora(MANY_WORDS), 448, 64, 48, 24, gradient_checkpointing=True),
    ),
    Shape("ppo update", _work("deep, value adapter", DEEP, 128, 64, 16, 8, value="adapter")),
    Shape(
        "ppo update",
        _work("wide, value adapter, checkpointed", WIDE, 192, 64, 64, 32, value="adapter", gradient_checkpointing=True),
    ),
    Shape("answers", _work("wide, QLoRA, lengths differ", _qlora(WIDE), 192, 64, 64, 32, shortest=64, updates=1)),
)


def main() -> int:
    """Prints the table; returns the exit status: 0, 1 where a plan is off by more than 10 %, 2 for what the user can mend."""
    try:
        require_linux()
        rows = []
        for shape in SHAPES:
            found = measure("plan", shape.work, phase=shape.phase)
            rows.append(row(shape, found["peak_mb"]))
            print(json.dumps(rows[-1]), flush=True)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(table(rows))
    record = {"rows": rows, "machine": machine(), "git_commit": git_commit()}
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(OUT / "done.json", record | {"finished": time.strftime("%Y-%m-%d %H:%M")})
    return int(any(abs(found["ratio"] - 1) > 0.1 for found in rows))


def row(shape: Shape, measured_mb: float) -> dict[str, Any]:
    planned = planned_mb(shape)
    return {
        "phase": shape.phase,
        "shape": shape.work.name,
        "planned_mb": planned,
        "measured_mb": measured_mb,
        "ratio": planned / measured_mb,
    }


def planned_mb(shape: Shape, device: str = "cpu") -> float:
    """What `rlrecipes.before` says, from the model's configuration alone."""
    work, model = shape.work, shape.work.model
    heads = model.heads or max(1, model.hidden // 32)
    config = {
        "model_type": model.family,
        "vocab_size": model.vocabulary,
        "hidden_size": model.hidden,
        "intermediate_size": model.intermediate or 4 * model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": model.kv_heads or heads,
        "head_dim": model.hidden // heads,
        "max_position_embeddings": work.longest + work.answer,
        "tie_word_embeddings": False,
    }
    lengths = Lengths(work.longest, work.answer, padded=work.shortest < work.longest)
    settings = profile(work)
    return fullest(moments(shape_of(config, settings), settings, lengths, device)[shape.phase]).total / 1e6


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| phase | shape | plan, MB | measured, MB | plan over measured |", "|---|---|---|---|---|"]
    for found in rows:
        lines.append(
            f"| {found['phase']} | {found['shape']} | {found['planned_mb']:.0f} | {found['measured_mb']:.0f} "
            f"| {found['ratio']:.3f} |"
        )
    return "\n".join(lines)


def profile(work: Work) -> Profile:
    """A work as the profile that a user would write for it."""
    rows: dict[str, Any] = {
        "per_device_train_batch_size": work.micro_batch,
        "gradient_accumulation_steps": work.batch // work.micro_batch,
        "learning_rate": work.learning_rate,
        "gradient_checkpointing": work.gradient_checkpointing,
    }
    return Profile(
        "bench",
        model=ModelSettings(
            quantization=work.model.quantization, dtype=work.model.dtype, max_length=work.longest + work.answer
        ),
        lora=LoraSettings(r=work.lora_rank, lora_alpha=2 * work.lora_rank),
        sft=SFTSettings(max_steps=work.updates, **rows),
        reward=RewardSettings(max_steps=work.updates, **rows),
        ppo=PPOSettings(
            **rows,
            total_episodes=work.batch * work.updates,
            num_ppo_epochs=work.epochs,
            local_rollout_forward_batch_size=work.rollout_batch or work.batch,
            response_length=work.answer,
            value=work.value,
            dense_rollout=work.dense_rollout,
            num_sample_generations=0,
            judge=False,
        ),
        evaluate=EvaluateSettings(batch_size=work.batch),
    )


# What runs in the process that is measured.


def plan(work: Work, folder: Path, phase: str) -> dict[str, Any]:
    """The peak of one phase, in MB above what the process held before the model was loaded."""
    from benchmarks.work import TOY

    give_back_freed_memory()
    model = dataclasses.replace(TOY.model, quantization=work.model.quantization, dtype=work.model.dtype)
    build(dataclasses.replace(TOY, model=model), folder / "toy", phase)()  # what the libraries load at their first use
    save(work, folder / "model")
    settle()
    before = reset_peak()
    run = build(work, folder / "model", phase)
    reset_peak()
    found = run()
    return {"peak_mb": (found or peak()) - before}


def give_back_freed_memory() -> None:
    """Lets glibc map every block of 64 KB or more on its own, and unmap it when it is freed (`mallopt(3)`)."""
    mmap_threshold, trim_threshold = -3, -1
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 1 << 16)
    libc.mallopt(trim_threshold, 1 << 16)


def save(work: Work, folder: Path) -> None:
    """A random checkpoint with its tokenizer."""
    from benchmarks import models

    plain = dataclasses.replace(work, model=dataclasses.replace(work.model, quantization="none"))
    if not folder.exists():
        models.causal(plain).save_pretrained(folder)
        models.tokenizer(work.model).save_pretrained(folder)


def build(work: Work, folder: Path, phase: str) -> Callable[[], float | None]:
    """The phase, ready to run; it returns its own peak in MB if that is not the whole run's."""
    from benchmarks import models, ours
    from rlrecipes.model.loading import load_causal
    from rlrecipes.run.resume import training_arguments

    save(work, folder)
    tokenizer, settings = models.tokenizer(work.model), profile(work)
    if phase.startswith("ppo"):
        base = out_of_file(load_causal(str(folder), settings.model, tokenizer))
        return _watched(
            ours.build(work, tokenizer, folder, base), {"ppo rollout": "roll_out", "ppo update": "update"}[phase]
        )
    if phase == "answers":
        base = out_of_file(load_causal(str(folder), settings.model, tokenizer))
        return lambda: _evaluated(work, ours.adapters(work, base), tokenizer)

    from datasets import Dataset
    from trl import RewardConfig, SFTConfig

    from rlrecipes.model.adapters import add_lora
    from rlrecipes.model.loading import load_scorer
    from rlrecipes.policy.sft_trainer import ResumableSFTTrainer
    from rlrecipes.reward.model import as_policy
    from rlrecipes.reward.trainers import ResumableRewardTrainer
    from rlrecipes.run.resume import lora_in_float32

    rows = [ids + [2] * work.answer for ids in prompts(work)]
    rows[:: work.micro_batch] = [[2] * (work.longest + work.answer)] * len(rows[:: work.micro_batch])
    if phase == "sft":
        base = out_of_file(load_causal(str(folder), settings.model, tokenizer))
        model = add_lora(base, settings.lora, "CAUSAL_LM")
        masks = [[0] * (len(ids) - work.answer) + [1] * work.answer for ids in rows]
        trainer: Any = ResumableSFTTrainer(
            model,
            SFTConfig(
                **training_arguments(SFTConfig, settings.sft, folder, 0), max_length=None, completion_only_loss=True
            ),
            train_dataset=Dataset.from_dict({"input_ids": rows, "completion_mask": masks}),
            processing_class=tokenizer,
        )
    else:
        base = out_of_file(load_scorer(str(folder), settings.model, tokenizer))
        model = add_lora(base, settings.lora, "SEQ_CLS")
        trainer = ResumableRewardTrainer(
            model,
            RewardConfig(
                **training_arguments(RewardConfig, settings.reward, folder, 0), max_length=None, disable_dropout=False
            ),
            train_dataset=Dataset.from_dict({"chosen_ids": rows, "rejected_ids": rows}),
            processing_class=tokenizer,
        )
    lora_in_float32(model)

    def train() -> None:
        trainer.train()
        if phase == "reward":
            scored = [{"input_ids": ids} for ids in rows]
            as_policy(model, tokenizer, settings.model.max_length).scores(scored, 2 * work.micro_batch)

    return train


def _evaluated(work: Work, model: Any, tokenizer: Any) -> None:
    """One batch of the evaluation: the policy answers, and the reward adapter scores the answers."""
    import torch

    from rlrecipes.model.adapters import adapter
    from rlrecipes.model.forward import states_at
    from rlrecipes.model.sampling import sample
    from rlrecipes.model.tokens import pad_left, pad_right

    ids, pad = prompts(work)[: work.batch], tokenizer.pad_token_id
    with adapter(model, "policy"):
        answers = sample(model, pad_left(ids, pad), pad, (tokenizer.eos_token_id,), work.answer, temperature=1.0).tokens
    whole = [prompt + answer.tolist() for prompt, answer in zip(ids, answers, strict=True)]
    with torch.no_grad(), adapter(model, "reward"):
        states_at(model, pad_right(whole, pad), torch.tensor([[len(row) - 1] for row in whole]))


def out_of_file(model: Any) -> Any:
    """The model with its tensors in memory of their own: some lie in the mapped checkpoint file, which then counts whole."""
    for parameter in model.parameters():
        if not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.clone()
    return model


def _watched(trainer: Any, step: str) -> Callable[[], float]:
    """The whole run, of which one step's peak counts."""
    inner, peaks = getattr(trainer, step), []

    def watched(*arguments: Any) -> Any:
        reset_peak()
        result = inner(*arguments)
        peaks.append(peak())
        return result

    def run() -> float:
        trainer.train()
        return max(peaks)

    setattr(trainer, step, watched)
    return run


if __name__ == "__main__":
    sys.exit(main())
