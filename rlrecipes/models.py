"""One quantized base model, several LoRA adapters: loading, switching, scoring.

PPO needs a policy, a reference, a reward model and a value function. Here they are adapters of one frozen base:
`reference` is the SFT adapter, `policy` starts as its copy, `reward` comes with a score head, and the value head stands on
the policy's own trunk. PEFT switches `requires_grad` off for every adapter that is not active, so adapters are switched
under `no_grad` only, never between a forward pass and its backward pass.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from rlrecipes.access import ADAPTER, ADAPTER_WEIGHTS
from rlrecipes.encoding import encode, load_tokenizer, pad_right
from rlrecipes.ending import use_producible_eos
from rlrecipes.errors import UserError, first_line
from rlrecipes.profile import LoraSettings, ModelSettings
from rlrecipes.recipe import Prompt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_model(name: str) -> None:
    """Refuses a model that cannot be had, or one that is no decoder, before anything is trained.

    Raises:
        UserError: the folder holds no checkpoint, the hub id cannot be read, or the model is an encoder-decoder.
    """
    config = model_config(name)
    if config.is_encoder_decoder:
        raise UserError(
            f"'{name}' is an encoder-decoder ({config.model_type}); these recipes train decoder-only models"
        )


def model_config(name: str) -> Any:
    """The model's configuration, as Transformers reads it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as error:  # each way in which a file is damaged has an error of its own
        raise UserError(
            f"cannot read the model '{name}': {first_line(error)}; give a local checkpoint folder as MODEL=…"
        ) from None


def window(name: str, settings: ModelSettings) -> int:
    """The most tokens of a prompt and its answer: the profile's limit, or the model's own where that is lower."""
    longest = getattr(model_config(name), "max_position_embeddings", None) or settings.max_length
    return min(settings.max_length, longest)


def prompt_window(name: str, settings: ModelSettings, length: int) -> int:
    """The most tokens of a prompt that leaves room for an answer of `length` tokens.

    Raises:
        UserError: there is no room for any prompt.
    """
    room = window(name, settings) - length
    if room < 1:
        raise UserError(
            f"answers of {length} tokens leave no room for a prompt; lower ppo.response_length or raise model.max_length"
        )
    return room


def load_causal(name: str, settings: ModelSettings, tokenizer: Any) -> Any:
    """The frozen base as a causal language model, quantized as the profile says.

    Raises:
        UserError: its weights cannot be read, or its logits are not simply its output layer's of its last hidden states.
    """
    model = _prepared(_loaded(AutoModelForCausalLM, name, **_loading(settings)), tokenizer)
    _check_logits(model, name)
    return model


@torch.no_grad()
def _check_logits(model: Any, name: str) -> None:
    """PPO takes logits from hidden states, some at a time; a model that does more in between would be misread in silence."""
    ids = torch.arange(4, device=model.device)[None]
    expected = model.eval()(input_ids=ids).logits[:, 1:].float()
    found = next_token_logits(model, states_at(model, ids, ids[:, 1:]))
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item()):
        raise UserError(
            f"'{name}' ({model.config.model_type}) makes its logits in a way that PPO here does not know; "
            "choose another model"
        )


def load_scorer(name: str, settings: ModelSettings, tokenizer: Any) -> Any:
    """The frozen base as a sequence classifier with one output, its score head in full precision.

    Raises:
        UserError: its weights cannot be read.
    """
    model = _loaded(AutoModelForSequenceClassification, name, num_labels=1, **_loading(settings))
    # The head stays in float32 while it is trained, whatever the hidden states are in; where they are too, nothing is cast.
    if hasattr(model, "score"):  # a decoder's head, the only one that is trained here
        model.score.register_forward_pre_hook(_to_weights_dtype)
    return _prepared(model, tokenizer)


def _loaded(kind: Any, name: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each way in which a file is damaged has an error of its own
        raise UserError(
            f"cannot load the model '{name}': {first_line(error)}; fetch it anew, or choose another model"
        ) from None


def _to_weights_dtype(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    weight: Any = module.weight
    return (inputs[0].to(weight.dtype),)


def add_lora(model: Any, settings: LoraSettings, task_type: str) -> PeftModel:
    """The base wrapped with one fresh, trainable adapter.

    Raises:
        UserError: the modules are none of this model's, or the output layer is among them.
    """
    targets = [name.strip() for name in settings.target_modules.split(",")]
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type=task_type,
        modules_to_save=["score"] if task_type == "SEQ_CLS" else None,
    )
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"lora.target_modules={settings.target_modules} does not fit this model: {error}") from None
    if isinstance(causal(wrapped).get_output_embeddings(), LoraLayer):
        raise UserError(
            f"lora.target_modules={settings.target_modules} names the output layer, which PPO does not train; leave it out"
        )
    add_in_place(wrapped, "default")
    return wrapped


def load_adapter(model: Any, folder: Path, name: str) -> PeftModel:
    """Puts the LoRA part of a saved adapter onto the base under a role's name.

    `model` is the bare base for the first role and the wrapped one for the others.

    Raises:
        UserError: the saved tensors are damaged, or do not fit the base.
    """
    with _reading(folder / ADAPTER, folder.parent):
        config = LoraConfig.from_pretrained(folder)
    config.task_type, config.modules_to_save, config.inference_mode = None, None, False
    if isinstance(model, PeftModel):
        model.add_adapter(name, config)
    else:
        model = PeftModel(model, config, adapter_name=name)
    copy_lora(model, folder, name)
    add_in_place(model, name)
    return model


def copy_lora(model: PeftModel, folder: Path, name: str) -> None:
    """Sets the LoRA tensors of adapter `name` to those saved in `folder`; a score head that travels there is left aside.

    Raises:
        UserError: the saved tensors are damaged, or not those of the adapter.
    """
    with _reading(folder / ADAPTER_WEIGHTS, folder.parent):
        saved = load_file(folder / ADAPTER_WEIGHTS)
    weights = {_named(key, name): tensor for key, tensor in saved.items() if "lora_" in key}
    expected = {key for key in model.state_dict() if "lora_" in key and f".{name}." in key}
    if weights.keys() != expected:
        raise UserError(f"the adapter in {folder} does not fit the base model; make it again with FORCE=1")
    model.load_state_dict(weights, strict=False)


@contextmanager
def _reading(path: Path, stage: Path) -> Iterator[None]:
    """Inside, a file that the stage in a folder left behind is read."""
    try:
        yield
    except Exception as error:  # each way in which a file is damaged has an error of its own
        raise UserError(
            f"{path} is damaged ({first_line(error)}); delete the folder {stage} and make the stage again"
        ) from None


def _named(key: str, name: str) -> str:
    """PEFT saves `….lora_A.weight` and holds `….lora_A.<adapter>.weight`."""
    module, kind = key.rsplit(".", 1)
    return f"{module}.{name}.{kind}"


class _InPlace(LoraVariant):
    """Plain LoRA, added to the layer's output by one matrix product.

    PEFT multiplies, scales and adds: three passes over an output that is far larger than the adapter. The output is the
    layer's own and no gradient needs it, so it can be added to where it is.
    """

    @staticmethod
    def forward(module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any) -> torch.Tensor:
        low = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        up, scaling = module.lora_B[active_adapter], module.scaling[active_adapter]
        if low.dtype != result.dtype or up.bias is not None:
            added: torch.Tensor = result + up(low) * scaling
            return added
        sum_in_place: torch.Tensor = _AddProduct.apply(result, low, up.weight, scaling)
        return sum_in_place


class _AddProduct(torch.autograd.Function):
    """`result + scaling · low @ weight.T`, written into `result`; autograd would copy the gradient of a view written to.

    Shapes: `result` `[…, out]`, `low` `[…, r]`, `weight` `[out, r]`.
    """

    @staticmethod
    def forward(
        ctx: Any, result: torch.Tensor, low: torch.Tensor, weight: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        ctx.save_for_backward(low, weight)
        ctx.scaling = scaling
        ctx.mark_dirty(result)
        result.view(-1, result.shape[-1]).addmm_(low.reshape(-1, low.shape[-1]), weight.T, alpha=scaling)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        low, weight = ctx.saved_tensors
        (by_sum,) = gradients
        rows = by_sum.reshape(-1, by_sum.shape[-1])
        by_low = (rows @ (weight * ctx.scaling)).view_as(low)
        by_weight = (low.reshape(-1, low.shape[-1]) * ctx.scaling).T @ rows  # this way round it is twice as fast
        return by_sum, by_low, by_weight.T, None


def add_in_place(model: PeftModel, name: str) -> None:
    """Makes adapter `name` cheaper to run, by PEFT's own seam for variants of LoRA; nothing else about it changes."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            module.lora_variant[name] = _InPlace()


@contextmanager
def adapter(model: PeftModel, name: str | None) -> Iterator[None]:
    """The base under another role's adapter (None: bare) inside the block, without gradients, and back afterwards."""
    before = model.active_adapter
    with torch.no_grad():
        if name is None:
            with model.disable_adapter():
                yield
        else:
            model.set_adapter(name)
            try:
                yield
            finally:
                model.set_adapter(before)
    model.set_adapter(before)


def causal(model: Any) -> Any:
    """The causal language model itself, which a `PeftModel` wraps."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def trunk(model: Any) -> Any:
    """The transformer without its language-model head."""
    inner = causal(model)
    return getattr(inner, inner.base_model_prefix)


def hidden_states(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states `[batch, length, hidden]` of right-padded `ids` `[batch, length]`.

    No mask: a causal model never looks to the right, so what is padded there changes nothing before it.
    """
    states: torch.Tensor = trunk(model)(input_ids=ids, use_cache=False).last_hidden_state
    return states


def states_at(model: Any, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The last hidden states `[b, t, hidden]` of right-padded `ids` `[b, w]` at `places` `[b, t]`."""
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    wanted[rows, places] = True
    with read_at(model, wanted):
        states = hidden_states(model, ids)
    return states[rows, places]


@contextmanager
def read_at(model: Any, wanted: torch.Tensor) -> Iterator[None]:
    """Inside, the last hidden states are right where `wanted` `[b, w]` is true, and nothing else is promised.

    The last layer's feed-forward network then runs on those alone: in a shallow model that is a good part of all work. With
    activation checkpointing it runs on all, since the recomputation would no longer match.
    """
    block = _last_feed_forward(model)
    if block is None or (torch.is_grad_enabled() and trunk(model).is_gradient_checkpointing):
        yield
        return
    whole, own = block.forward, block.__dict__.get("forward")  # accelerate, too, puts its own there

    def forward(states: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = whole(states[wanted][None])[0]
        return made.new_zeros(states.shape).index_put((wanted,), made)

    block.forward = forward
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


def _last_feed_forward(model: Any) -> Any:
    """Nearly all families call it `mlp`; where none is called so, there is none to be found."""
    stacks = [child for child in trunk(model).children() if isinstance(child, nn.ModuleList)]
    return getattr(stacks[-1][-1], "mlp", None) if stacks else None


def next_token_logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    """Logits `[…, vocabulary]`, in float32 at least, of hidden states `[…, hidden]`; soft-capped where the model does so."""
    inner = causal(model)
    logits: torch.Tensor = inner.get_output_embeddings()(states)
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)  # Gemma 2
    return logits if cap is None else cap * torch.tanh(logits / cap)


@dataclass(frozen=True)
class ScoreHead:
    """The reward model's head and the scale of its scores over the demonstrations."""

    weight: torch.Tensor
    """`[1, hidden]`"""
    mean: float
    std: float

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Standardised scores `[batch]` of the last tokens' hidden states `[batch, hidden]`."""
        return (nn.functional.linear(states.float(), self.weight).squeeze(-1) - self.mean) / self.std


def load_score_head(folder: Path) -> ScoreHead:
    """The head beside a reward adapter, with its scale.

    Raises:
        UserError: either is damaged.
    """
    weights = folder / "adapter" / ADAPTER_WEIGHTS
    with _reading(weights, folder):
        (weight,) = (tensor for key, tensor in load_file(weights).items() if key.endswith("score.weight"))
    return ScoreHead(weight.float().to(device()), *load_scale(folder))


def load_scale(folder: Path) -> tuple[float, float]:
    """Mean and standard deviation of a reward model's scores over the demonstrations.

    Raises:
        UserError: the file that holds them is damaged.
    """
    path = folder / "scale.json"
    with _reading(path, folder):
        scale = json.loads(path.read_text(encoding="utf-8"))
        return float(scale["mean"]), float(scale["std"])


@torch.no_grad()
def score_answers(
    model: PeftModel,
    head: ScoreHead,
    tokenizer: Any,
    pairs: Sequence[tuple[Prompt, str]],
    batch_size: int,
) -> list[float]:
    """The reward model's standardised score of each (prompt, answer), read at the answer's EOS."""
    scores: list[float] = []
    with adapter(model, "reward"):
        for start in range(0, len(pairs), batch_size):
            ids = [encode(tokenizer, prompt, answer).ids for prompt, answer in pairs[start : start + batch_size]]
            batch = pad_right(ids, tokenizer.pad_token_id).to(device())
            last = torch.tensor([[len(row) - 1] for row in ids], device=batch.device)
            scores += head(states_at(model, batch, last).squeeze(1)).tolist()
    return scores


def open_tokenizer(name: str) -> Any:
    """`load_tokenizer`, with a missing tokenizer told as what it is, and an EOS token that the model can produce.

    Raises:
        UserError: there is no tokenizer, it is damaged, or it has no EOS token.
    """
    tokenizer = _read_tokenizer(name)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of '{name}' has no EOS token, so no answer could ever end; choose another model"
        )
    use_producible_eos(tokenizer, name)
    return tokenizer


def eos_note(name: str) -> str | None:
    """What `open_tokenizer` changed of the model's EOS token, in a sentence; None where the model can produce its own.

    Raises:
        UserError: there is no tokenizer, or it is damaged.
    """
    tokenizer = _read_tokenizer(name)
    return use_producible_eos(tokenizer, name) if tokenizer.eos_token_id is not None else None


def _read_tokenizer(name: str) -> Any:
    try:
        return load_tokenizer(name)
    except UserError:
        raise
    except Exception as error:  # each way in which a file is damaged has an error of its own
        raise UserError(
            f"cannot read the tokenizer of '{name}': {first_line(error)}; mend its files, or choose another model"
        ) from None


def _loading(settings: ModelSettings) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"dtype": DTYPES[settings.dtype]}
    if settings.attention != "auto":
        kwargs["attn_implementation"] = settings.attention
    if settings.quantization == "nf4":
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[settings.dtype],
            llm_int8_skip_modules=["lm_head", "embed_out", "score", "classifier"],  # heads stay in full precision
        )
        kwargs["device_map"] = {"": device()}
    return kwargs


def _prepared(model: Any, tokenizer: Any) -> Any:
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.requires_grad_(False)
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes repacks a layer at its first evaluation: its scales are rounded to bfloat16,
        # so the model that evaluates is not the one that trained, and widths that are no multiple of 64 fail.
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
    return model.to(device()) if not getattr(model, "is_quantized", False) else model
