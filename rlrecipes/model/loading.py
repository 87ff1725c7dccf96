"""Loads the frozen base, quantized as the profile says: as a causal language model, or with a score head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)
from transformers.modeling_layers import GenericForSequenceClassification

from rlrecipes.errors import UserError, cannot, option
from rlrecipes.hub.reach import check_no_adapter, fetched_file, is_local
from rlrecipes.model.forward import device
from rlrecipes.model.quantized import check_quantization, compute_in, is_quantized, keep_heads
from rlrecipes.model.tokens import lacking
from rlrecipes.model.trial import check_parts
from rlrecipes.model.whole import check_layers, check_whole
from rlrecipes.profile import ModelSettings
from rlrecipes.run.device import is_devices
from rlrecipes.text import quoted

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

SCORE_HEADS = ("score", "classifier")
HEADS = ("lm_head", "embed_out", *SCORE_HEADS)
"""Ends of the names of layers that are never quantized."""


def check_model(name: str, settings: ModelSettings) -> None:
    """Refuses, before anything is trained, a model that cannot be read, is no decoder, or is no base for these settings.

    Raises:
        UserError: the folder holds no checkpoint, the hub id cannot be read, the model is an encoder-decoder or quantized
            otherwise than the settings say, or an adapter lies where the base should.
    """
    check_no_adapter(name, fetched_file)
    config = model_config(name)
    if config.is_encoder_decoder:
        raise UserError(
            f"'{name}' is an encoder-decoder ({config.model_type}); these recipes train decoder-only models"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"'{name}' ({config.model_type}) is no causal language model; choose one that continues text")
    check_quantization(name, config, settings.quantization)


def model_config(name: str) -> Any:
    """The model's configuration, as Transformers reads it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # each way in which a file is damaged has an error of its own
        choice = "mend its config.json, fetch it anew," if is_local(name) else "give a local checkpoint folder"
        choice += f" or choose another model ({option('model')})"
        raise cannot(f"cannot read the model '{name}'", error, choice) from None


def window(name: str, settings: ModelSettings) -> int:
    """The most tokens of a prompt and its answer: the profile's limit, or the model's own where that is lower.

    Raises:
        UserError: the model's configuration cannot be read.
    """
    config = model_config(name).get_text_config()
    max_tokens = getattr(config, "max_position_embeddings", None) or settings.max_length
    return min(settings.max_length, max_tokens)


def prompt_window(name: str, settings: ModelSettings, length: int) -> int:
    """The most tokens of a prompt that leaves room for an answer of `length` tokens.

    Raises:
        UserError: there is no room for any prompt, or the model's configuration cannot be read.
    """
    most = window(name, settings)
    room = most - length
    if room < 1:
        own = most < settings.max_length
        longer = "choose a model with a longer window" if own else "raise model.max_length"
        raise UserError(
            f"answers of {length} tokens leave no room for a prompt in {most}{' of the model itself' * own}; "
            f"lower ppo.response_length or {longer}"
        )
    return room


def load_causal(name: str, settings: ModelSettings, tokenizer: Any) -> Any:
    """The frozen base as a causal language model, quantized as the profile says.

    Raises:
        UserError: its weights cannot be read, some are in no file, or it fails `check_parts`.
    """
    model, info = _load(AutoModelForCausalLM, name, model_config(name), settings)
    check_whole(name, model, info)
    model = _prepare(model, tokenizer)
    check_parts(model, name, window(name, settings))
    return model


def load_scorer(name: str, settings: ModelSettings, tokenizer: Any, grow: bool = False) -> Any:
    """The frozen base as a sequence classifier with one output, its score head in full precision.

    With `grow` it gets embeddings for all of the tokenizer's tokens: an adapter from elsewhere may bring them.

    Raises:
        UserError: its weights cannot be read, some of its trunk are in no file, or it fails `check_layers`.
    """
    model, missing = load_scorer_with_missing(name, settings, tokenizer, grow)
    if absent := [key for key in missing if not key.startswith(HEADS)]:
        raise _no_score_head(name, model.config, absent[0])
    return model


def load_scorer_with_missing(
    name: str, settings: ModelSettings, tokenizer: Any, grow: bool = False
) -> tuple[Any, list[str]]:
    """`load_scorer`, and the names of the weights that no file has, which are random.

    Raises:
        UserError: as `load_scorer`.
    """
    config = model_config(name)
    config.num_labels = 1
    keep_heads(config, SCORE_HEADS)
    model, info = _load(scorer_class(config), name, config, settings)
    check_layers(name, model, info)
    # While it is trained the head is in float32, so hidden states are cast to the type of its weights.
    if hasattr(model, "score"):  # a decoder's head, the only one that is trained here
        model.score.register_forward_pre_hook(_to_weights_dtype)
    return _prepare(model, tokenizer, grow), sorted(info["missing_keys"])


def scorer_class(config: Any) -> Any:
    """The sequence classifier of a family; for a decoder whose family has none, Transformers' generic head on its trunk."""
    decoder = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or decoder is None:
        return AutoModelForSequenceClassification
    family = next(kind for kind in decoder.__mro__ if kind.__name__.endswith("PreTrainedModel"))
    name = f"{family.__name__.removesuffix('PreTrainedModel')}ForSequenceClassification"
    return type(name, (GenericForSequenceClassification, family), {"base_model_prefix": decoder.base_model_prefix})


def empty_scorer(config: Any) -> Any:
    """The sequence classifier of a configuration with one output, and no weights; its errors pass through."""
    config.num_labels = 1
    kind = scorer_class(config)
    with torch.device("meta"):
        return (kind.from_config if hasattr(kind, "from_config") else kind._from_config)(config)


def check_score_head(name: str) -> None:
    """Refuses a model that takes no score head before anything is trained; no weights are read.

    Raises:
        UserError: its family's classifier cannot be made, with the library's reason.
    """
    config = model_config(name)
    try:
        scorer = empty_scorer(config)
        with torch.device("meta"):
            trunk = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # each family fails in a way of its own
        raise cannot(f"'{name}' takes no score head", error, "choose another model, or terms.learned=0") from None
    prefix = f"{trunk.base_model_prefix}."
    known = {key.removeprefix(prefix) for key in trunk.state_dict()}
    # A checkpoint that also sees may hold more than its language model.
    weights = [key for key in scorer.state_dict() if not key.startswith(HEADS) and "vis" not in key]
    if absent := [key for key in weights if key.removeprefix(prefix) not in known]:
        raise _no_score_head(name, config, absent[0])


def _no_score_head(name: str, config: Any, absent: str) -> UserError:
    return UserError(
        f"'{name}' ({config.model_type}) takes no score head: its weights {absent} would be random under it; "
        "choose another model, or terms.learned=0"
    )


def _load(kind: Any, name: str, config: Any, settings: ModelSettings) -> Any:
    """A model, and what Transformers tells of its loading."""
    check_quantization(name, config, settings.quantization)
    options = _load_options(settings)
    if quantized := is_quantized(config):
        options.pop("quantization_config")  # the checkpoint's own holds
    try:
        model, info = kind.from_pretrained(
            name, config=config, trust_remote_code=False, output_loading_info=True, **options
        )
    except Exception as error:  # each way in which a file is damaged has an error of its own
        if is_devices(error):
            raise
        raise cannot(f"cannot load the model '{name}'", error, "fetch it anew, or choose another model") from None
    if quantized:
        compute_in(model, name, DTYPES[settings.dtype])
    return model, info


def _to_weights_dtype(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    weight: Any = module.weight
    return (inputs[0].to(weight.dtype),)


def _load_options(settings: ModelSettings) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"dtype": DTYPES[settings.dtype]}
    if settings.attention != "auto":
        kwargs["attn_implementation"] = settings.attention
    if settings.quantization == "nf4":
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[settings.dtype],
            llm_int8_skip_modules=list(HEADS),
        )
        kwargs["device_map"] = {"": device()}
    return kwargs


def _check_embeddings(model: Any, tokenizer: Any) -> None:
    """Lets a model without an embedding for padding, which nothing ever looks at, read the first token's in its place.

    A new embedding would change the model's size: PEFT then saves all embeddings with each adapter.

    Raises:
        UserError: a token that chats are made of has no embedding, so each stage would draw it anew, or one that a text
            may become.
    """
    embeddings = model.get_input_embeddings()
    count, pad = embeddings.num_embeddings, tokenizer.pad_token_id
    if found := lacking(tokenizer, count):
        raise UserError(
            f"this model has no embedding for the token {quoted(found[0])} {found[1]}; "
            "add one with resize_token_embeddings, save the model and name that folder, or choose another model"
        )
    if pad is not None and pad >= count:
        embeddings.register_forward_pre_hook(
            lambda _, inputs: (inputs[0].masked_fill(inputs[0] == pad, 0), *inputs[1:])
        )


def _prepare(model: Any, tokenizer: Any, grow: bool = False) -> Any:
    if grow and len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    _check_embeddings(model, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.requires_grad_(False)
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes repacks a layer at its first evaluation: its scales are rounded to bfloat16,
        # so the model that evaluates is not the one that trained, and widths that are no multiple of 64 fail.
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
    return model.to(device()) if not getattr(model, "is_quantized", False) else model
