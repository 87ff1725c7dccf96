"""A model's `config.json`: where it comes from, and the refusal of one that no decoder can be built from.

{"model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, …}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from rlrecipes.errors import UserError, option
from rlrecipes.hub.reach import cached_file, check_no_adapter, fetched_file, reach_model, read_object
from rlrecipes.profile import Profile

MOST_LAYERS = 1000
"""Published decoders have at most some 130. More than this is damage, and building it would take minutes."""


def checked_kind(config: Mapping[str, Any], name: str) -> str:
    """The `model_type` of a configuration that a decoder may be built from.

    Raises:
        UserError: it has no `model_type`, belongs to an encoder-decoder or to quantized weights, or has a size that is no
            whole number.
    """
    text, kind = language_part(config, name), config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(
            f"cannot plan for '{name}': its config.json has no model_type that is a text; choose another model"
        )
    if config.get("is_encoder_decoder"):
        raise UserError(f"'{name}' is an encoder-decoder ({kind}); these recipes train decoder-only models")
    if config.get("quantization_config"):
        raise UserError(
            f"cannot plan for '{name}': its weights are quantized already (quantization_config in its config.json); "
            "give the model that it was made from"
        )
    for key in _SAME:
        whole_number(text, key, name)
    if (layers := whole_number(text, "num_hidden_layers", name) or 0) > MOST_LAYERS:
        raise UserError(f"the config.json of '{name}' has {layers} layers, and {MOST_LAYERS} are the most; mend it")
    return kind


_SAME = {
    "hidden_size": ("n_embd", "n_embed"),
    "num_hidden_layers": ("n_layer", "n_layers"),
    "num_attention_heads": ("n_head",),
    "num_key_value_heads": ("num_kv_heads",),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions",),
    "head_dim": (),
    "vocab_size": (),
}
"""Sizes, and older names of the same."""


def language_part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration in which that of the language model takes precedence; models that also see pictures have it apart.

    Raises:
        UserError: `text_config` is no object.
    """
    text = config.get("text_config") or {}
    if not isinstance(text, dict):
        raise UserError(f"the config.json of '{name}' has text_config {_quoted(text)} where an object belongs; mend it")
    return {**config, **text}


def whole_number(config: Mapping[str, Any], key: str, name: str) -> int | None:
    """The value of a key or of an older name of it; None where it is missing or null.

    Raises:
        UserError: the value is no whole number above 0, or is beyond all models (2^40).
    """
    for alias in (key, *_SAME.get(key, ())):
        value = config.get(alias)
        if value is None:
            continue
        if type(value) is not int or not 0 < value <= 1 << 40:  # a truth value is an int as well
            raise UserError(
                f"the config.json of '{name}' has {alias} {_quoted(value)} where a whole number above 0 belongs; mend it"
            )
        return value
    return None


def _quoted(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"


def _qwen3(hidden: int, layers: int, heads: int, middle: int, positions: int, tied: bool) -> dict[str, Any]:
    return {
        **{"model_type": "qwen3", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads},
        **{"num_key_value_heads": 8, "head_dim": 128, "intermediate_size": middle, "vocab_size": 151936},
        **{"max_position_embeddings": positions, "tie_word_embeddings": tied},
    }


KNOWN = {
    "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, 40960, tied=True),
    "Qwen/Qwen3-4B-Instruct-2507": _qwen3(2560, 36, 32, 9728, 262144, tied=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 36, 32, 12288, 40960, tied=False),
}
"""The published configurations of the profiles' models, so that planning for them needs no network."""


def read_config(profile: Profile) -> dict[str, Any]:
    """The `config.json` of the profile's model: the embedded base's settings, a local file, or the hub's.

    Raises:
        UserError: there is none, or it cannot be read. The hub has two seconds to answer.
    """
    name = profile.model.name
    if name == "builtin":
        return {"model_type": "llama", **dataclasses.asdict(profile.base), "tie_word_embeddings": True}
    if name in KNOWN:
        return dict(KNOWN[name])
    path = cached_file(name, "config.json")
    if path is None:
        reach_model(name)
        path = fetched_file(name, "config.json")
    if path is None:
        check_no_adapter(name, fetched_file)
        raise UserError(
            f"cannot read the model '{name}': its config.json cannot be fetched; "
            f"give a local checkpoint folder as {option('model')}"
        )
    return read_object(path)
