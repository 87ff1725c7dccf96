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

from rlrecipes.access import cached_file, reach_model
from rlrecipes.errors import UserError
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


_TIED = ("gpt2", "gemma", "gemma2", "gemma3_text", "opt")
"""Kinds whose configuration class ties the embeddings unless told otherwise."""
_NORMED = ("qwen3", "gemma3_text", "olmo2")
_PLAIN = ("gpt2", "gpt_neox", "opt", "phi")
"""Kinds whose MLP has two matrices, not three."""
_SAME = {
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner", "ffn_dim"),
    "max_position_embeddings": ("n_positions",),
}
"""Older names of the same things."""


def decoder(config: Mapping[str, Any], name: str) -> Decoder:
    """The shape that a `config.json` describes; `name` is for the sentence.

    Raises:
        UserError: it does not describe a decoder that we can plan for.
    """
    config = {**config, **(config.get("text_config") or {})}
    kind = str(config.get("model_type", ""))
    if config.get("is_encoder_decoder"):
        raise UserError(f"'{name}' is an encoder-decoder ({kind}); these recipes train decoder-only models")

    def read(key: str, default: int | None = None) -> int:
        value = next((config[k] for k in (key, *_SAME.get(key, ())) if config.get(k) is not None), default)
        if not isinstance(value, int):
            raise UserError(f"cannot plan for '{name}': its config.json has no {key}; choose another model")
        return value

    hidden, heads = read("hidden_size"), read("num_attention_heads")
    head_dim, intermediate = read("head_dim", hidden // heads), read("intermediate_size", 4 * hidden)
    kv_heads = read("num_key_value_heads", heads)
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
        tied=bool(config.get("tie_word_embeddings", kind in _TIED)),
        blocks=_blocks(kind, hidden, intermediate, heads * head_dim, kv_heads * head_dim),
        gated=kind not in _PLAIN,
        normed=kind in _NORMED,
    )


def _blocks(kind: str, hidden: int, middle: int, queries: int, keys: int) -> tuple[Linears, ...]:
    """The linear layers of one block under their names in Transformers."""
    apart = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    attention, out, up, down = {
        "gpt2": ({"c_attn": 3 * queries}, "c_proj", {"c_fc": middle}, "c_proj"),
        "gpt_neox": ({"query_key_value": 3 * queries}, "dense", {"dense_h_to_4h": middle}, "dense_4h_to_h"),
        "opt": (apart, "out_proj", {"fc1": middle}, "fc2"),
        "phi": (apart, "dense", {"fc1": middle}, "fc2"),
        "phi3": ({"qkv_proj": queries + 2 * keys}, "o_proj", {"gate_up_proj": 2 * middle}, "down_proj"),
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
        return {"model_type": "llama", **dataclasses.asdict(profile.base), "tie_word_embeddings": False}
    if name in KNOWN:
        return dict(KNOWN[name])
    path = Path(name).expanduser() / "config.json"
    path = path if path.is_file() else _from_hub(name)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path} is not JSON; give another model as MODEL=…") from None


def _from_hub(name: str) -> Path:
    """The configuration in the hub's cache, or fetched; one that is to be had nowhere is told within two seconds."""
    from huggingface_hub import hf_hub_download

    if cached := cached_file(name, "config.json"):
        return cached
    reach_model(name)
    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # the hub's, the network's and the name's own errors have no class in common
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"cannot read the model '{name}': {reason}; give a local checkpoint folder as MODEL=…"
        ) from None
