"""What other libraries call our settings, so that a name that somebody knows is answered with the one that counts here.

ppo.lr=1e-6    ->  there is no setting 'ppo.lr'; did you mean 'ppo.learning_rate'?
"""

from __future__ import annotations

from collections.abc import Sequence

OTHER = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "per_device_batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps",
    "mini_batch_size": "ppo.num_mini_batches",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "ppo_epochs": "ppo.num_ppo_epochs",
    "steps": "max_steps",
    "num_steps": "max_steps",
    "episodes": "ppo.total_episodes",
    "warmup_ratio": "warmup_steps",
    "warmup": "warmup_steps",
    "scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "clip_grad": "max_grad_norm",
    "beta": "ppo.kl_coef",
    "init_kl_coef": "ppo.kl_coef",
    "kl_penalty": "ppo.kl_coef",
    "kl": "ppo.kl_coef",
    "target_kl": "ppo.kl_target",
    "clip_range": "ppo.cliprange",
    "epsilon": "ppo.cliprange",
    "gae_lambda": "ppo.lam",
    "max_new_tokens": "ppo.response_length",
    "max_completion_length": "ppo.response_length",
    "max_tokens": "ppo.response_length",
    "max_seq_length": "model.max_length",
    "max_seq_len": "model.max_length",
    "context_length": "model.max_length",
    "bf16": "model.dtype=bfloat16",
    "fp32": "model.dtype=float32",
    "torch_dtype": "model.dtype",
    "precision": "model.dtype",
    "load_in_4bit": "model.quantization=nf4",
    "load_in_8bit": "model.quantization=nf4",
    "use_qlora": "model.quantization=nf4",
    "attn_implementation": "model.attention",
    "flash_attention": "model.attention",
    "rank": "lora.r",
    "lora_r": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "modules": "lora.target_modules",
    "report_to": "track.wandb",
    "wandb": "track.wandb",
    "save_steps": "checkpoint.seconds",
    "full_determinism": "run.deterministic",
    "max_eval_samples": "evaluate.limit",
}
"""Our names by others': with the table where there is one alone, with the value where the name asked for one."""
_OF_PPO = {
    "epochs": "num_ppo_epochs",
    "num_epochs": "num_ppo_epochs",
    "steps": "total_episodes",
    "num_steps": "total_episodes",
}
_OF_GROUPS = {
    **dict.fromkeys(("kl_coef", "init_kl_coef", "kl_penalty", "kl"), "beta"),
    **dict.fromkeys(("num_ppo_epochs", "ppo_epochs", "epochs", "num_epochs"), "num_iterations"),
    **dict.fromkeys(("cliprange", "clip_range", "epsilon_low"), "epsilon"),
    **dict.fromkeys(("rloo_k", "group_size", "num_samples", "num_return_sequences"), "num_generations"),
    **dict.fromkeys(("num_mini_batches", "mini_batch_size"), "steps_per_generation"),
    **dict.fromkeys(("steps", "num_steps", "episodes"), "total_episodes"),
    "filter_groups": "dynamic_sampling",
}
_OF_DPO = {
    **dict.fromkeys(("kl_coef", "init_kl_coef", "kl_penalty", "kl", "tau"), "beta"),
    **dict.fromkeys(("loss", "objective"), "loss_type"),
    "smoothing": "label_smoothing",
}
_OF_DISTILL = {
    **dict.fromkeys(
        ("best_of_n", "best_of", "n", "group_size", "num_samples", "num_return_sequences"), "num_generations"
    ),
    **dict.fromkeys(("total_episodes", "episodes", "num_prompts"), "limit"),
}
OF_TABLES = {"ppo": _OF_PPO, "rloo": _OF_GROUPS, "grpo": _OF_GROUPS, "dpo": _OF_DPO, "distill": _OF_DISTILL}
"""Likewise, of one table alone."""


def ours(table: str, key: str, known: Sequence[str]) -> list[str]:
    """The settings that somebody means by `table.key`, or by `key` where `table` is empty, among all those that are known."""
    if key in OF_TABLES.get(table, {}):
        return [f"{table}.{OF_TABLES[table][key]}"]
    name = OTHER.get(key, key)
    if "." in name:
        return [name]
    everywhere = [path for path in known if path.partition(".")[2] == name]
    own = [path for path in everywhere if path == f"{table}.{name}"]
    return own or [path for path in everywhere if not path.startswith("base.")]


def meant(names: Sequence[str]) -> str:
    """The question after one of several names: `did you mean 'sft.max_steps' or 'reward.max_steps'?`"""
    *others, last = [f"'{name}'" for name in names]
    return f"did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
