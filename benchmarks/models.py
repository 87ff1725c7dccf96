"""Random models, adapters and a tokenizer for a `Work`: equal in both arms, from its seed alone.

The base is a causal model. The policy starts as the bare base (an adapter that does nothing yet), which is the reference
too. The reward model is the base under a random adapter with a random score head, and so is the value model at the start.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from trl.experimental.ppo import PPOConfig

from benchmarks.work import EOS, PAD, Model, Work

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KL_WEIGHT = 0.05
ROLE_STD = 0.02
"""Of the random half of the reward's adapter that would start at 0."""


def config(model: Model, longest: int) -> PretrainedConfig:
    """The configuration of a decoder with room for `longest` tokens."""
    heads = model.heads or max(1, model.hidden // 32)
    kind = {"llama": LlamaConfig, "qwen3": Qwen3Config}[model.family]
    return kind(
        vocab_size=model.vocabulary,
        hidden_size=model.hidden,
        intermediate_size=model.intermediate or 4 * model.hidden,
        num_hidden_layers=model.layers,
        num_attention_heads=heads,
        num_key_value_heads=model.kv_heads or heads,
        head_dim=model.hidden // heads,
        max_position_embeddings=longest,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        initializer_range=model.initializer_range,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        dtype=DTYPES[model.dtype],
    )


def tokenizer(model: Model) -> Any:
    """Every token id is a word of its own, `w17`, but for the pad and the stop token."""
    words = {"<pad>": PAD, "<end>": EOS} | {f"w{i}": i for i in range(EOS + 1, model.vocabulary)}
    made = Tokenizer(models.WordLevel(words))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<end>", padding_side="left", model_max_length=10**6
    )


def causal(work: Work, device: str = "cpu") -> Any:
    """The base: a causal model with random weights; in 4-bit it is built and quantized layer by layer."""
    torch.manual_seed(work.seed)
    shape = config(work.model, work.longest + work.answer)
    model = _quantized(shape, device) if work.model.quantization == "nf4" else AutoModelForCausalLM.from_config(shape)
    _never_pad(model)
    return model


def _never_pad(model: Any) -> None:
    """Gives the head a bias that keeps the pad token from being drawn, as no trained model draws it."""
    head = model.get_output_embeddings()
    head.bias = nn.Parameter(torch.zeros(head.out_features, device=head.weight.device, dtype=head.weight.dtype))
    head.bias.data[PAD] = -1e4


def _quantized(shape: PretrainedConfig, device: str) -> Any:
    """A model whose linear layers are NF4 with double quantization; never more than one layer is there in full."""
    count, shape.num_hidden_layers = shape.num_hidden_layers, 1
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape)
        layers: Any = trunk(model).layers
        make = type(layers[0])
        shape.num_hidden_layers = count
        if getattr(shape, "layer_types", None):
            shape.layer_types = ["full_attention"] * count
        default = torch.get_default_dtype()
        torch.set_default_dtype(shape.dtype)
        try:
            for place in range(count):
                layer = layers[0] if place == 0 else make(shape, place)
                if place:
                    layer.apply(model._init_weights)
                    layers.append(layer)
                _quantize(layer, shape.dtype)
        finally:
            torch.set_default_dtype(default)
    model.is_loaded_in_4bit = True  # PEFT looks here
    return model


def _quantize(layer: nn.Module, dtype: torch.dtype) -> None:
    """Replaces the linear layers by 4-bit ones of the same weights."""
    for name, linear in [(name, child) for name, child in layer.named_modules() if isinstance(child, nn.Linear)]:
        small = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
        small.weight = weight.to(linear.weight.device)  # quantizes
        small.support_avx512bf16_for_cpu = False  # as rlrecipes.models does it: repacking changes the numbers
        parent, _, attribute = name.rpartition(".")
        setattr(layer.get_submodule(parent), attribute, small)


def scorer(work: Work, base: Any) -> Any:
    """The reward model as plain TRL takes it: whole, the adapter merged into weights of its own, all of them trainable."""
    return adapted_scorer(work, base).merge_and_unload().requires_grad_(True)


def frozen_scorer(work: Work, base: Any) -> Any:
    """The reward model where nothing of it is trained: merged, and on a 4-bit base, which merging would round, adapted."""
    if work.model.quantization == "none":
        return adapted_scorer(work, base).merge_and_unload().requires_grad_(False).eval()
    return adapted_scorer(work, base).requires_grad_(False).eval()


def adapted_scorer(work: Work, base: Any) -> PeftModel:
    """The same with its adapter in place (and trainable, as is its head)."""
    shape = copy.deepcopy(base.config)
    shape.num_labels = 1
    made = AutoModelForSequenceClassification.from_config(shape)
    if work.model.quantization == "nf4":
        setattr(made, made.base_model_prefix, copy.deepcopy(trunk(base)))
    else:
        trunk(made).load_state_dict(trunk(base).state_dict())
    made.requires_grad_(False)
    wrapped = get_peft_model(made, lora(work))
    fill(wrapped, "default", work.seed + 1)
    made.score.weight.data.copy_(head(work))
    made.score.requires_grad_(True)
    return wrapped


def head(work: Work) -> torch.Tensor:
    """The score head's weight `[1, hidden]`, with standard deviation 1/sqrt(hidden + 1) (arXiv 2403.17031)."""
    draw = torch.Generator().manual_seed(work.seed + 2)
    return torch.randn(1, work.model.hidden, generator=draw) / math.sqrt(work.model.hidden + 1)


def lora(work: Work) -> LoraConfig:
    """On every linear layer of the trunk; the language-model head stays as it is."""
    return LoraConfig(
        r=work.lora_rank,
        lora_alpha=2 * work.lora_rank,
        lora_dropout=0.0,
        target_modules=r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    )


def fill(model: nn.Module, role: str, seed: int, works: bool = True) -> None:
    """Random numbers for adapter `role`; without `works` its second half is 0, so that it does nothing yet."""
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if f".lora_A.{role}." in name:
            weight.data.copy_(torch.randn(weight.shape, generator=draw) / math.sqrt(weight.shape[1]))
        elif f".lora_B.{role}." in name:
            # Drawn in any case, so that the first halves are the same with and without.
            sample_by_hash = torch.randn(weight.shape, generator=draw) * ROLE_STD
            weight.data.copy_(sample_by_hash if works else torch.zeros_like(sample_by_hash))


def trunk(model: Any) -> nn.Module:
    """The transformer without its head."""
    found: nn.Module = getattr(model, model.base_model_prefix)
    return found


def arguments(work: Work, folder: Path) -> PPOConfig:
    """TRL's own settings, the same for both arms: no samples, no saving, no reporting."""
    return PPOConfig(
        output_dir=str(folder),
        seed=work.seed,
        total_episodes=work.batch * work.updates,
        per_device_train_batch_size=work.micro_batch,
        gradient_accumulation_steps=work.batch // work.micro_batch,
        num_mini_batches=1,
        num_ppo_epochs=work.epochs,
        local_rollout_forward_batch_size=work.rollout_batch or work.batch,
        response_length=work.answer,
        temperature=1.0,
        stop_token="eos",
        missing_eos_penalty=work.missing_eos_penalty or None,
        learning_rate=work.learning_rate,
        lr_scheduler_type=work.schedule,
        adam_epsilon=1e-5,
        weight_decay=0.0,
        max_grad_norm=work.max_grad_norm,
        kl_coef=KL_WEIGHT,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=work.gradient_checkpointing,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
