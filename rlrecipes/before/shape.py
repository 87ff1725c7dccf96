"""The shape of a decoder, read off the model that Transformers builds from its `config.json` alone, without weights.

    read_shape(profile) -> Shape(kind="qwen3", hidden=4096, heads=32, linear=6_945_767_424, blocks=(Block(…), …), …)

On torch's meta device a tensor has a size and takes no memory. The adapter is the one that PEFT puts there in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlrecipes.before.config import checked_kind, read_config
from rlrecipes.errors import UserError, first_line
from rlrecipes.profile import Profile
from rlrecipes.recipe import unknown
from rlrecipes.reward.source import model_beside
from rlrecipes.run.console import quiet


@dataclass(frozen=True)
class Input:
    """What linear layers of one block read of a token."""

    width: int
    adapted: int
    """Layers that read it and have an adapter."""


@dataclass(frozen=True)
class Network:
    """A feed-forward network: a block's MLP, or the experts of a mixture."""

    middle: int
    """Numbers of a token, in one expert, between the two halves."""
    gated: bool
    """The first half is two products, of which one gates the other."""
    inputs: tuple[Input, ...] = ()
    experts: int = 0
    """Experts that each token goes through; 0: it is no mixture."""
    stack: int = 0
    """Weights of all experts if they are adapted: PEFT adds an adapter to those themselves, anew in every pass."""


@dataclass(frozen=True)
class Block:
    """One layer of the decoder; sizes are numbers of a token."""

    queries: int
    cached: int
    """Keys and values."""
    normed: bool
    """Queries and keys are normalised (Qwen3, Gemma 3)."""
    inputs: tuple[Input, ...]
    """What attention's linear layers read, but for the last."""
    out: Input
    """What that one reads: attention's own output."""
    networks: tuple[Network, ...]


@dataclass(frozen=True)
class Shape:
    """A decoder and one adapter."""

    kind: str
    """Its `model_type`."""
    hidden: int
    heads: int
    vocabulary: int
    positions: int
    linear: int
    """Weights of the layers that bitsandbytes quantizes."""
    other: int
    """All other numbers: embeddings, output layer, norms, biases, and a mixture's experts, which stay as they are."""
    head: int
    """Of these the output layer's, which a reward model lacks; 0 where it is the embeddings."""
    largest: int
    """Weights of the largest layer that bitsandbytes quantizes."""
    adapter: int
    """Numbers in one adapter."""
    eager: bool
    """Attention keeps its weights, since the profile says so or the model has no better."""
    blocks: tuple[Block, ...]
    beside: Shape | None = None
    """A reward model that is no adapter of this base."""


def read_shape(profile: Profile, learned: bool = True) -> Shape:
    """The shape of the profile's model, and of the reward model beside it if there is one.

    Raises:
        UserError: a model cannot be had or built, or has no such place for adapters.
    """
    config, name = read_config(profile), model_beside(profile) if learned else None
    if name is None:
        return shape_of(config, profile)
    own = dataclasses.replace(profile, model=dataclasses.replace(profile.model, name=name))
    beside = shape_of(read_config(own), own, scorer=True)
    return dataclasses.replace(shape_of(config, profile), beside=beside)


def shape_of(config: Mapping[str, Any], profile: Profile, scorer: bool = False) -> Shape:
    """The shape that a `config.json` describes; `scorer`: as a sequence classifier, without an adapter.

    Raises:
        UserError: it cannot be built, is no decoder, or has no such place for adapters.
    """
    name, attention = profile.model.name, profile.model.attention
    model = _built(config, name, scorer)
    kind = model.config.model_type
    text, output = model.config.get_text_config(), model.get_output_embeddings()
    head = 0 if output is None or output.weight is model.get_input_embeddings().weight else output.weight.numel()
    layers = _linears(model)
    if not any("att" in path for path in layers):
        raise UserError(
            f"cannot plan for '{name}' ({kind}): its layers have no attention that can be counted; choose another model"
        )
    linear = [width * out for path, (width, out) in layers.items() if _quantized(model, path)]
    adapted, adapter = (set[str](), 0) if scorer else _adapter(_built(config, name), model, profile)
    try:
        hidden, heads, vocabulary = text.hidden_size, text.num_attention_heads, text.vocab_size
    except AttributeError as error:  # it has several, or none of its own
        raise UserError(f"cannot plan for '{name}' ({kind}): {first_line(error)}; choose another model") from None
    blocks = tuple(_block(path, block, adapted, text) for path, block in _stack(model))
    return Shape(
        kind=kind,
        hidden=hidden,
        heads=heads,
        vocabulary=vocabulary,
        positions=getattr(text, "max_position_embeddings", None) or 1 << 30,
        linear=sum(linear),
        other=sum(weight.numel() for weight in model.parameters()) - sum(linear),
        head=head,
        largest=max(linear, default=0),
        adapter=adapter,
        eager=(model.config._attn_implementation if attention == "auto" else attention) == "eager",
        blocks=blocks,
    )


# The model without its weights.


def _built(config: Mapping[str, Any], name: str, scorer: bool = False) -> Any:
    """The model on the meta device."""
    kind = checked_kind(config, name)
    quiet()
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

    if kind not in CONFIG_MAPPING:
        raise UserError(f"cannot plan for '{name}': Transformers knows no model_type '{kind}'; choose another model")
    try:
        settings = CONFIG_MAPPING[kind].from_dict(dict(config), **({"num_labels": 1} if scorer else {}))
        with torch.device("meta"):
            return (AutoModelForSequenceClassification if scorer else AutoModelForCausalLM).from_config(settings)
    except Exception as error:  # each way in which a configuration is damaged has an error of its own
        said = " ".join(str(error).split())[:200].rstrip(". ")
        raise UserError(
            f"cannot plan for '{name}': its config.json makes no {kind} ({said}); mend it, or choose another model"
        ) from None


def _linears(module: Any) -> dict[str, tuple[int, int]]:
    """The widths that each linear layer reads and makes of a token, by path."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found = {}
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            found[path] = (layer.in_features, layer.out_features)
        elif isinstance(layer, Conv1D):
            found[path] = (layer.nx, layer.nf)
    return found


def _quantized(model: Any, path: str) -> bool:
    """Whether bitsandbytes would quantize a linear layer, if asked to; layers of a model's own kind (Falcon's) it leaves."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.quantizers_utils import should_convert_module

    from rlrecipes.model.loading import HEADS

    kept = [*HEADS, *(model._keep_in_fp32_modules or ())]
    return type(model.get_submodule(path)) in (nn.Linear, Conv1D) and bool(should_convert_module(path, kept))


def _adapter(model: Any, bare: Any, profile: Profile) -> tuple[set[str], int]:
    """Paths of what PEFT adapts, and the numbers in one adapter."""
    import torch
    from peft.tuners.lora.layer import LoraLayer

    from rlrecipes.model.adapters import add_lora
    from rlrecipes.model.loading import HEADS

    names = dict.fromkeys(path.rpartition(".")[2] for path in _linears(bare))
    layers = [name for name in names if name not in HEADS]
    known = ["all-linear", *layers]
    for name in [name.strip() for name in profile.lora.target_modules.split(",")]:
        if name not in known and not _mixtures(bare):  # for experts PEFT knows names that are no layers
            others = f"there are {', '.join(layers)}"
            raise UserError(f"lora.target_modules: {unknown('linear layer', name, known, others)}")
    with torch.device("meta"):
        adapted = add_lora(model, profile.lora, "CAUSAL_LM")
    numbers = sum(weight.numel() for path, weight in adapted.named_parameters() if "lora_" in path)
    return {path for path, layer in adapted.get_base_model().named_modules() if isinstance(layer, LoraLayer)}, numbers


def _mixtures(module: Any) -> dict[str, list[Any]]:
    """A mixture's experts, all in one tensor `[experts, …, …]` for each half, by path."""
    found = {
        path: [weight for weight in layer.parameters(recurse=False) if weight.ndim == 3]
        for path, layer in module.named_modules()
        if "expert" in path
    }
    return {path: weights for path, weights in found.items() if weights}


# Its blocks.


def _stack(model: Any) -> list[tuple[str, Any]]:
    """The decoder's blocks by path: the list of modules that holds most of the model."""
    from torch import nn

    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    path, blocks = max(
        lists, key=lambda item: sum(weight.numel() for weight in item[1].parameters()), default=("", nn.ModuleList())
    )
    return [(f"{path}.{place}", block) for place, block in enumerate(blocks)]


def _block(path: str, block: Any, adapted: set[str], text: Any) -> Block:
    """Attention is what lies under a name with `att` in it; other linear layers that lie together are a network."""
    parts: dict[str, dict[str, tuple[int, int]]] = {"att": {}}
    for inner, widths in _linears(block).items():
        parent = inner.rpartition(".")[0]
        parts.setdefault("att" if "att" in parent else parent, {})[f"{path}.{inner}"] = widths
    inputs, made, out = _halves(parts.pop("att"), adapted, text.hidden_size)
    names = [inner.rpartition(".")[2] for inner, _ in block.named_modules() if "att" in inner]
    networks = [_halves(part, adapted, text.hidden_size) for part in parts.values()]
    return Block(
        queries=out.width,
        cached=max(0, made - out.width),
        normed=any(name.startswith("q") and "norm" in name for name in names),
        inputs=inputs,
        out=out,
        networks=(
            *(Network(down.width, made >= 2 * down.width, (*reads, down)) for reads, made, down in networks),
            *(_mixture(path, inner, block, adapted, text) for inner in _mixtures(block)),
        ),
    )


def _halves(layers: dict[str, tuple[int, int]], adapted: set[str], hidden: int) -> tuple[tuple[Input, ...], int, Input]:
    """What linear layers read that lie together, how wide all that they make of it is, and what their last one reads.

    The last is the one that makes a state: of those of that width the last in order, since Phi-3 has it first.
    """
    last = next((path for path, (_, made) in reversed(layers.items()) if made == hidden), None)
    first = {path: widths for path, widths in layers.items() if path != last}
    inputs = (
        Input(width, sum(path in adapted for path, (read, _) in first.items() if read == width))
        for width in dict.fromkeys(read for read, _ in first.values())
    )
    down = Input(layers[last][0], int(last in adapted)) if last else Input(0, 0)
    return tuple(inputs), sum(made for _, made in first.values()), down


def _mixture(path: str, inner: str, block: Any, adapted: set[str], text: Any) -> Network:
    weights = _mixtures(block)[inner]
    count, numbers = len(weights[0]), [weight.numel() for weight in weights]
    routed = [module.top_k for module in block.modules() if isinstance(getattr(module, "top_k", None), int)]
    chosen = [*routed, getattr(text, "num_experts_per_tok", None) or count][0]
    every = not hasattr(block.get_submodule(inner), "has_gate")  # Llama 4 sends each token through all of them
    return Network(
        middle=min(numbers) // (count * text.hidden_size),
        gated=sum(numbers) > 2 * min(numbers),
        experts=count if every else chosen,
        stack=sum(numbers) if f"{path}.{inner}" in adapted else 0,
    )
