"""Every setting of every table changed once: it changes what comes out, or it is refused; none is taken in silence.

sft.weight_decay=0.5  ->  changed: 14 files, such as runs/road/translation/sft/adapter/adapter_model.safetensors
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path

from conftest import import_all, sentences, write_rows
from kills import ROAD, results

from faults.attempt import Outcome, command, fault_of, forked
from rlrecipes.profile import load_profile

SECONDS = 300
OTHER: dict[str, str | tuple[str, ...]] = {
    "model.name": "nobody/nothing",
    "model.max_length": "32",
    "model.device": "1",
    "lora.target_modules": "q_proj,v_proj",
    "lora.lora_dropout": "0.3",
    "base.vocab_size": "600",
    "base.hidden_size": "128",
    "base.num_attention_heads": "4",
    "base.max_position_embeddings": "64",
    "sft.optim": "sgd",
    "reward.optim": "sgd",
    "ppo.optim": "sgd",
    "reward.model": "nobody/nothing",
    "reward.center_rewards_coefficient": "0.1",
    "sft.num_train_epochs": "2",
    "reward.num_train_epochs": "2",
    "ppo.gamma": "0.9",
    "ppo.lam": "0.5",
    "ppo.response_length": "3",
    "ppo.num_mini_batches": "2",
    "ppo.local_rollout_forward_batch_size": "4",
    "ppo.num_sample_generations": "2",
    "ppo.kl_stop": "0.001",
    "ppo.reward_clip": "0.01",
    **{
        f"{table}.{key}": value
        for table in ("rloo", "grpo")
        for key, value in {
            "optim": "sgd",
            "num_generations": "8",
            "steps_per_generation": "3",
            "local_rollout_forward_batch_size": "4",
            "num_sample_generations": "2",
            "epsilon": "0.01",
            "epsilon_high": "0.01",
            "kl_stop": "0.001",
            "reward_clip": "0.01",
            "anyway": "false",
            "total_episodes": "40",
            "per_device_train_batch_size": "4",
        }.items()
    },
    **{
        f"dpo.{key}": value
        for key, value in {
            "optim": "sgd",
            "num_train_epochs": "2",
            "loss_type": ("hinge", "ipo", "sigmoid,sft"),
            "loss_weights": "0.5",
            "label_smoothing": "0.2",
            "logging_steps": "2",
            "max_grad_norm": "0.01",  # its gradients are small
        }.items()
    },
    **{
        f"distill.{key}": value
        for key, value in {"optim": "sgd", "num_train_epochs": "2", "anyway": "false", "limit": "40"}.items()
    },
    "run.algorithms": ("ppo,rloo", "ppo,grpo", "ppo,dpo", "ppo,distill"),
    "run.start": ("nowhere", "base"),
    "reward.function": ("nowhere.py:nothing", "rewards.py:short"),
    "evaluate.limit": "4",
    "evaluate.policies": "base,sft",
    "evaluate.judge": "none",
    "evaluate.judge_url": "http://127.0.0.1:9/v1",
    "evaluate.judge_model": "nothing",
    "evaluate.bertscore": "nothing",
    "evaluate.comet": "nothing",
    "track.project": "other",
    "memory.card": "24",
}
"""Values that no rule for their type gives. The others are half as much again, every other choice, the other switch."""
FUNCTION = "def short(prompt, answer, example):\n    return -len(answer) / 9\n"
BESIDE = {
    "model.name": ("base.", ()),
    "run.start": (("sft.", "evaluate.policies="), ("evaluate.policies=base,ppo",)),
    "reward.model": ("reward.", ()),
    "evaluate.judge_url": ("evaluate.judge_", ("evaluate.judge_model=nothing",)),
    "sft.num_train_epochs": ("sft.max_steps=", ("sft.max_steps=-1",)),
    "reward.num_train_epochs": ("reward.max_steps=", ("reward.max_steps=-1",)),
    "ppo.anyway": ("reward.learning_rate=", ("reward.learning_rate=1e-9",)),  # of a reward model at chance
    "ppo.keep": ("ppo.learning_rate=", ("ppo.learning_rate=0.05",)),  # so that the last policy is not the best
}
"""What else a change needs: the settings of the road that go, by their start, and those that come. The road without the
change has them too."""
AS_AUTO = {
    *("model.attention=sdpa", "reward.objective=pairwise"),
    *(f"{table}.dense_rollout=never" for table in ("ppo", "rloo", "grpo")),
}
"""Choices that are what `auto` chooses on the road."""
LEARNT = (
    *("base.max_steps=40", "base.learning_rate=0.005", "sft.max_steps=60", "sft.learning_rate=0.01"),
    *("sft.per_device_train_batch_size=16", "sft.gradient_accumulation_steps=1", "reward.seeds=1", "evaluate.limit=3"),
)
"""An SFT policy whose answers to `numbers` end, each at a length of its own."""
OWN = {
    table: (
        *(f"run.algorithms={table}", "ppo.response_length=6", f"evaluate.policies=base,sft,{table}", *LEARNT),
        *(f"{table}.{setting}" for setting in settings),
    )
    for table, settings in {
        **dict.fromkeys(
            ("rloo", "grpo"),
            (
                *("anyway=true", "total_episodes=72", "per_device_train_batch_size=8", "learning_rate=0.01"),
                *("gradient_accumulation_steps=1", "steps_per_generation=2"),  # a pass is two steps over unlike lengths
                "keep=last",  # the best may be the one that it began with
            ),
        ),
        "dpo": ("max_steps=12", "per_device_train_batch_size=8", "learning_rate=0.01", "keep=last"),
        "distill": (
            *("anyway=true", "max_steps=12", "per_device_train_batch_size=8", "learning_rate=0.01"),
            *("num_generations=3", "limit=220"),
        ),
    }.items()
}
"""What stands in PPO's place on the road of a change to another algorithm's table."""
UNSEEN = {
    *("checkpoint.seconds", "memory.halve_on_oom", "memory.card", "limits.term_seconds", "ppo.judge"),
    "run.deterministic",
    *(
        f"{stage}.{key}"
        for stage in ("sft", "reward", "ppo", "rloo", "grpo")
        for key in ("gradient_checkpointing", "patience")
    ),
    *("distill.gradient_checkpointing", "distill.patience"),
    "dpo.patience",  # with checkpoints, the last network runs on more states, and products of other shapes round otherwise
    *(f"{table}.judge" for table in ("rloo", "grpo")),
}
"""Settings that must not change what comes out: how often to save, the memory there is, what fits it, how long to wait, and
a judge, for which the road has too few rows."""


def changes() -> list[str]:
    """`table.key=value` for every key, and for each choice of a key that has a few."""
    profile = load_profile("tiny", [word for word in ROAD if "=" in word])
    tables = {f.name: getattr(profile, f.name) for f in dataclasses.fields(profile) if callable(f.default_factory)}
    found = []
    for name, table in tables.items():
        hints = typing.get_type_hints(type(table))
        for key, value in vars(table).items():
            if key.startswith("__"):
                continue
            named = OTHER.get(path := f"{name}.{key}")
            values = [named] if isinstance(named, str) else named or _others(hints[key], value)
            found += [f"{path}={other}" for other in values]
    return found


def _others(hint: object, value: object) -> list[str]:
    if choices := typing.get_args(hint):
        return [str(choice) for choice in choices if choice != value]
    if isinstance(value, bool):
        return [str(not value).lower()]
    if isinstance(value, int):
        return [str(value + max(1, value // 2))]
    if isinstance(value, float):
        return [str(value * 1.5 or 0.5)]
    raise ValueError(f"name another value than {value!r} in OTHER")


def outcomes(folder: Path, done: set[str]) -> Iterator[Outcome]:
    """Runs the road once as it is and once for each change."""
    import_all()  # so that the children inherit it
    plains: dict[tuple[str, ...], dict[str, object]] = {}
    for change in changes():
        if change in done:
            continue
        road = _beside(change)
        if road not in plains:
            plains[road] = _contents(folder, "plain", road)[1]
        plain = plains[road]
        ended, found = _contents(folder, "changed", _with(road, change))
        differing = [name for name in sorted(plain.keys() | found.keys()) if plain.get(name) != found.get(name)]
        key = change.partition("=")[0]
        if ended.status == 2:
            fault, result, detail = fault_of(ended), "told", ended.errors.strip().splitlines()[-1]
            if not fault and not {key, change.partition("=")[2]} & set(re.split(r"[\s=,;:']+", detail)):
                fault = f"another error: {detail}"
        elif ended.status:
            fault, result, detail = fault_of(ended), "fell", ""
        elif key in UNSEEN or change in AS_AUTO:
            fault, result, detail = f"it changed {differing[:3]}" if differing else None, "same", "same bytes"
        else:
            fault = None if differing else "taken in silence: every byte is the same"
            result, detail = "changed", f"{len(differing)} files, such as {differing[-1:]}"
        yield Outcome("settings", change, "fell" if fault else result, fault or detail, ended.seconds)


def _beside(change: str) -> tuple[str, ...]:
    """The road without a change, and with what the change needs beside it."""
    key = change.partition("=")[0]
    if (table := key.partition(".")[0]) in OWN:
        others = tuple(word for word in ROAD if not word.startswith("ppo."))
        needed = {
            "kl_horizon": (f"{table}.kl_target=1",),
            "keep": (f"{table}.learning_rate=0.05", f"{table}.keep=best"),
            "patience": (f"{table}.keep=best",),
            "num_train_epochs": (f"{table}.max_steps=-1", f"{table}.num_train_epochs=1"),
            "label_smoothing": (f"{table}.loss_type=robust", f"{table}.label_smoothing=0.1"),
        }
        return _joined(others, (*OWN[table], *needed.get(key.partition(".")[2], ())))
    gone, come = BESIDE.get(key, ("", ()))
    return (*(word for word in ROAD if not (gone and word.startswith(gone))), *come)


def _joined(road: tuple[str, ...], settings: tuple[str, ...]) -> tuple[str, ...]:
    for setting in settings:
        road = _with(road, setting)
    return road


def _with(road: tuple[str, ...], change: str) -> tuple[str, ...]:
    """The road with one setting changed; the same key's own value on the road goes."""
    key = change.partition("=")[0]
    return (*(word for word in road if not word.startswith(f"{key}=")), change)


def _contents(folder: Path, name: str, argv: tuple[str, ...]) -> tuple[typing.Any, dict[str, object]]:
    home = folder / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    grouped = {"run.algorithms=rloo", "run.algorithms=grpo"} & {*argv}
    write_rows(home / "pairs.jsonl", numbers(300) if grouped else sentences(300))
    (home / "rewards.py").write_text(FUNCTION)
    ended = forked(command(argv, home), folder / "output", SECONDS)
    results_of = {path: content for path, content in results(home).items() if Path(path).name != "settings.toml"}
    found = {path: _without_settings(content) for path, content in results_of.items()}
    return ended, {path: content for path, content in found.items() if "base" not in Path(path).parts[1:2]}


def numbers(count: int) -> list[dict[str, object]]:
    """Rows of short translations, whose lengths differ."""
    return [row | {"target": str(i)} for i, row in enumerate(sentences(count))]


def _without_settings(content: object) -> object:
    """A record without the settings that it repeats, which differ in any case."""
    if isinstance(content, dict) and "settings" in content:
        return json.dumps({key: value for key, value in content.items() if key != "settings"}, sort_keys=True)
    return content
