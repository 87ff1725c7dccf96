"""The shape of a decoder, as its `config.json` gives it: what `plan` needs to know of a model.

{"model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, …}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlrecipes.errors import UserError, first_line
from rlrecipes.hub.reach import cached_file, reach_model, read_object
from rlrecipes.profile import Profile


@dataclass(frozen=True)
class Linears:
    """Linear layers that read the same input."""

    width: int
    """Of the input."""
    outputs: Mapping[str, int]
    """Name and output width of each."""


@dataclass(frozen=True)
class Decoder:
    """A decoder's shape, as its configuration gives it."""

    kind: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    positions: int
    tied: bool
    blocks: tuple[Linears, ...]
    """The linear layers of one block, in the order in which they are read; the last reads the MLP's middle."""
    gated: bool
    normed: bool
    """Queries and keys are normalised (Qwen3, Gemma 3)."""
    known: bool
    """Its linear layers are known to be these; else it is taken for a Llama."""

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linear(self) -> int:
        """Weights in one block's linear layers."""
        return sum(group.width * out for group in self.blocks for out in group.outputs.values())

    @property
    def largest(self) -> int:
        """Weights in the largest linear layer of a block."""
        return max(group.width * out for group in self.blocks for out in group.outputs.values())


_GATED = (
    *("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo", "olmo2"),
    *("olmo3", "granite", "smollm3", "stablelm", "cohere", "cohere2", "exaone4", "seed_oss", "ernie4_5"),
)
"""Kinds whose MLP has three matrices, as a Llama's."""


_PLAIN = ("gpt2", "gpt_neox", "opt", "phi", "starcoder2", "gptj", "gpt_bigcode", "bloom", "falcon")
"""Kinds whose MLP has two."""


_TIED = (
    *("gpt2", "gemma", "gemma2", "gemma3_text", "opt", "starcoder2", "gpt_bigcode", "bloom", "falcon"),
    *("cohere", "cohere2", "smollm3", "ernie4_5"),
)
"""Kinds whose configuration class ties the embeddings unless told otherwise."""


_NORMED = ("qwen3", "gemma3_text", "olmo2", "olmo3", "exaone4")


_ONE_KEY = ("gpt_bigcode", "falcon")
"""Kinds whose heads share one key and value, unless told otherwise."""


_SAME = {
    "hidden_size": ("n_embd", "n_embed"),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "num_key_value_heads": ("num_kv_heads",),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions",),
}
"""Older names of the same things."""


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def decoder(config: Mapping[str, Any], name: str) -> Decoder:
    """The shape that a `config.json` describes; `name` is for the sentence.

    Raises:
        UserError: it does not describe a decoder that we can plan for.
    """
    config = language_part(config, name)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(
            f"cannot plan for '{name}': its config.json has no model_type that is a text; choose another model"
        )
    if config.get("is_encoder_decoder"):
        raise UserError(f"'{name}' is an encoder-decoder ({kind}); these recipes train decoder-only models")
    if experts := next((key for key in _EXPERTS if config.get(key)), None):
        raise UserError(
            f"cannot plan for '{name}': it is a mixture of experts ({experts} {_quoted(config[experts])}), whose weights "
            "are not counted; choose another model"
        )
    if config.get("quantization_config"):
        raise UserError(
            f"cannot plan for '{name}': its weights are quantized already (quantization_config in its config.json); "
            "give the model that it was made from"
        )

    def read(key: str, default: int | None = None) -> int:
        found = whole_number(config, key, name) or default
        if not found:
            raise UserError(f"cannot plan for '{name}': its config.json has no {key}; choose another model")
        return found

    hidden, heads = read("hidden_size"), read("num_attention_heads")
    head_dim, intermediate = read("head_dim", hidden // heads), read("intermediate_size", 4 * hidden)
    one_key = kind in _ONE_KEY and config.get("multi_query", True) and not config.get("new_decoder_architecture")
    kv_heads = 1 if one_key else read("num_key_value_heads", heads)
    tied = config.get("tie_word_embeddings")
    return Decoder(
        kind=kind,
        hidden=hidden,
        layers=read("num_hidden_layers"),
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=read("vocab_size"),
        positions=read("max_position_embeddings", 1 << 30),
        tied=kind in _TIED if tied is None else tied is True,
        blocks=_blocks(kind, hidden, intermediate, heads * head_dim, kv_heads * head_dim),
        gated=kind not in _PLAIN,
        normed=kind in _NORMED,
        known=kind in (*_GATED, *_PLAIN),
    )


def language_part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with that of its language model, which models that see pictures too have apart, written over it.

    Raises:
        UserError: `text_config` is no object.
    """
    text = config.get("text_config") or {}
    if not isinstance(text, dict):
        raise UserError(f"the config.json of '{name}' has text_config {_quoted(text)} where an object belongs; mend it")
    return {**config, **text}


def whole_number(config: Mapping[str, Any], key: str, name: str) -> int | None:
    """What a configuration has under a key or an older name of it; None where it has nothing or null.

    Raises:
        UserError: that is no whole number above 0, or one beyond all models (2^40).
    """
    for written in (key, *_SAME.get(key, ())):
        value = config.get(written)
        if value is None:
            continue
        if type(value) is not int or not 0 < value <= 1 << 40:  # a truth value is an int as well
            raise UserError(
                f"the config.json of '{name}' has {written} {_quoted(value)} where a whole number above 0 belongs; mend it"
            )
        return value
    return None


def _quoted(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"


def _blocks(kind: str, hidden: int, middle: int, queries: int, keys: int) -> tuple[Linears, ...]:
    """The linear layers of one block under their names in Transformers."""
    apart, fused = {"q_proj": queries, "k_proj": keys, "v_proj": keys}, queries + 2 * keys
    attention, out, up, down = {
        "gpt2": ({"c_attn": fused}, "c_proj", {"c_fc": middle}, "c_proj"),
        "gpt_bigcode": ({"c_attn": fused}, "c_proj", {"c_fc": middle}, "c_proj"),
        "gpt_neox": ({"query_key_value": fused}, "dense", {"dense_h_to_4h": middle}, "dense_4h_to_h"),
        "bloom": ({"query_key_value": fused}, "dense", {"dense_h_to_4h": middle}, "dense_4h_to_h"),
        "falcon": ({"query_key_value": fused}, "dense", {"dense_h_to_4h": middle}, "dense_4h_to_h"),
        "gptj": (apart, "out_proj", {"fc_in": middle}, "fc_out"),
        "opt": (apart, "out_proj", {"fc1": middle}, "fc2"),
        "phi": (apart, "dense", {"fc1": middle}, "fc2"),
        "phi3": ({"qkv_proj": fused}, "o_proj", {"gate_up_proj": 2 * middle}, "down_proj"),
        "starcoder2": (apart, "o_proj", {"c_fc": middle}, "c_proj"),
    }.get(kind, (apart, "o_proj", {"gate_proj": middle, "up_proj": middle}, "down_proj"))
    return (
        Linears(hidden, attention),
        Linears(queries, {out: hidden}),
        Linears(hidden, up),
        Linears(middle, {down: hidden}),
    )


def _qwen3(hidden: int, layers: int, heads: int, middle: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": middle,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": tied,
    }


KNOWN = {
    "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "Qwen/Qwen3-4B-Instruct-2507": _qwen3(2560, 36, 32, 9728, tied=True) | {"max_position_embeddings": 262144},
    "Qwen/Qwen3-8B": _qwen3(4096, 36, 32, 12288, tied=False),
}
"""The published configurations of the profiles' models, so that planning for them needs no network."""


def read_config(profile: Profile) -> dict[str, Any]:
    """The `config.json` of the profile's model: the embedded base's settings, a local file, or the hub's.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    name = profile.model.name
    if name == "builtin":
        return {"model_type": "llama", **dataclasses.asdict(profile.base), "tie_word_embeddings": True}
    if name in KNOWN:
        return dict(KNOWN[name])
    return read_object(cached_file(name, "config.json") or _from_hub(name))


def _from_hub(name: str) -> Path:
    """The configuration, fetched; one that is to be had nowhere is told within two seconds."""
    from huggingface_hub import hf_hub_download

    reach_model(name)
    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # the hub's, the network's and the name's own errors have no class in common
        raise UserError(
            f"cannot read the model '{name}': {first_line(error)}; give a local checkpoint folder as MODEL=…"
        ) from None
