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
from rlrecipes.text import shortened


@dataclass(frozen=True)
class Input:
    """A state of a token that linear layers of one block read."""

    width: int
    """Its numbers."""
    adapted: int
    """Layers that read it and have an adapter."""


@dataclass(frozen=True)
class Network:
    """A feed-forward network: a block's MLP, or the experts of a mixture."""

    middle: int
    """Numbers of a token between the two halves, in one expert."""
    gated: bool
    """Whether the first half is two products, of which one gates the other."""
    inputs: tuple[Input, ...] = ()
    experts: int = 0
    """Experts that each token goes through; 0 where it is no mixture."""
    stack: int = 0
    """Weights of all experts where they have an adapter, else 0: PEFT adds it to the weights anew in every pass."""


@dataclass(frozen=True)
class Block:
    """One layer of the decoder; sizes are numbers of a token."""

    queries: int
    cached: int
    """Keys and values."""
    normed: bool
    """Whether queries and keys are normalised (Qwen3, Gemma 3)."""
    inputs: tuple[Input, ...]
    """What attention's linear layers read, except the last."""
    out: Input
    """What the last one reads: attention's own output."""
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
    """All other numbers: embeddings, output layer, norms, biases, and a mixture's experts. They are not quantized."""
    head: int
    """The output layer's share of `other`, which a reward model lacks; 0 where it is tied to the embeddings."""
    largest: int
    """Weights of the largest layer that bitsandbytes quantizes."""
    adapter: int
    """Numbers in one adapter."""
    eager: bool
    """Whether attention keeps its weights: the profile says so, or the model has no other attention."""
    blocks: tuple[Block, ...]
    shares: bool = False
    """Whether several answers to a prompt may stand in one row (`model.shared.may_share`)."""
    beside: Shape | None = None
    """A reward model that is no adapter of this base."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest row."""

    prompt: int
    answer: int
    padded: bool = True
    """Whether rows differ in length, so that attention needs a mask."""

    @property
    def whole(self) -> int:
        return self.prompt + self.answer


def lengths(shape: Shape, profile: Profile) -> Lengths:
    """The longest rows that the profile allows. Where it leaves the answers' length to the data, an answer is half a row.

    Raises:
        UserError: there is no room for a prompt and an answer.
    """
    window = min(profile.model.max_length, shape.positions)
    if window < 2:
        limit = "model.max_length" if profile.model.max_length < 2 else "the model's max_position_embeddings"
        raise UserError(f"{limit} is {window}, which leaves no room for a prompt and an answer; take 2 at least")
    answer = min(profile.ppo.response_length or window // 2, window - 1)
    return Lengths(window - answer, answer)


def read_shape(profile: Profile, learned: bool = True) -> Shape:
    """The shape of the profile's model, and of the reward model beside it if there is one.

    Raises:
        UserError: a model cannot be read or built, or lacks the layers that `lora.target_modules` names.
    """
    config, name = read_config(profile), model_beside(profile) if learned else None
    if name is None:
        return shape_of(config, profile)
    own = dataclasses.replace(profile, model=dataclasses.replace(profile.model, name=name))
    beside = shape_of(read_config(own), own, scorer=True)
    return dataclasses.replace(shape_of(config, profile), beside=beside)


def read_size(profile: Profile) -> tuple[int, int]:
    """The parameters of the profile's model, and its hidden size.

    Raises:
        UserError: it cannot be read or built.
    """
    model = _meta_model(read_config(profile), profile.model.name)
    return sum(weight.numel() for weight in model.parameters()), model.config.get_text_config().hidden_size


def shape_of(config: Mapping[str, Any], profile: Profile, scorer: bool = False) -> Shape:
    """The shape that a `config.json` describes; with `scorer`, as a sequence classifier without an adapter.

    Raises:
        UserError: it cannot be built, is no decoder, or lacks the layers that `lora.target_modules` names.
    """
    name, attention = profile.model.name, profile.model.attention
    model = _meta_model(config, name, scorer)
    kind = model.config.model_type
    text, output = model.config.get_text_config(), model.get_output_embeddings()
    head = 0 if output is None or output.weight is model.get_input_embeddings().weight else output.weight.numel()
    layers = _linears(model)
    if not any("att" in path for path in layers):
        raise UserError(
            f"cannot plan for '{name}' ({kind}): its layers have no attention that can be counted; choose another model"
        )
    linear = [width * out for path, (width, out) in layers.items() if _quantized(model, path)]
    adapted, adapter = (set[str](), 0) if scorer else _adapter(_meta_model(config, name), model, profile)
    try:
        hidden, heads, vocabulary = text.hidden_size, text.num_attention_heads, text.vocab_size
    except AttributeError as error:  # it has several, or none of its own
        raise UserError(f"cannot plan for '{name}' ({kind}): {first_line(error)}; choose another model") from None
    from rlrecipes.model.shared import may_share

    implementation = model.config._attn_implementation if attention == "auto" else attention
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
        eager=implementation == "eager",
        blocks=blocks,
        shares=may_share(text, implementation),
    )


# The model without its weights.


def _meta_model(config: Mapping[str, Any], name: str, scorer: bool = False) -> Any:
    """The model on the meta device: sizes without memory."""
    kind = checked_kind(config, name)
    quiet()
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

    if kind not in CONFIG_MAPPING:
        raise UserError(f"cannot plan for '{name}': Transformers knows no model_type '{kind}'; choose another model")
    try:
        known = {key: value for key, value in config.items() if key != "auto_map"}  # which names a stranger's code
        settings = CONFIG_MAPPING[kind].from_dict(known, **({"num_labels": 1} if scorer else {}))
        auto = AutoModelForSequenceClassification if scorer else AutoModelForCausalLM
        with torch.device("meta"):
            return auto.from_config(settings, trust_remote_code=False)
    except Exception as error:  # each way in which a configuration is damaged has an error of its own
        reason = shortened(str(error).rpartition("Error: ")[2], 120).rstrip(". ")
        raise UserError(
            f"cannot plan for '{name}': its config.json makes no {kind} ({reason}); mend it, or choose another model"
        ) from None


def _linears(module: Any) -> dict[str, tuple[int, int]]:
    """Input and output width of each linear layer, by path."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    widths = {}
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            widths[path] = (layer.in_features, layer.out_features)
        elif isinstance(layer, Conv1D):
            widths[path] = (layer.nx, layer.nf)
    return widths


def _quantized(model: Any, path: str) -> bool:
    """Whether bitsandbytes would quantize a linear layer; it leaves layers of a model's own class (Falcon's)."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.quantizers_utils import should_convert_module

    from rlrecipes.model.loading import HEADS

    exceptions = [*HEADS, *(model._keep_in_fp32_modules or ())]
    return type(model.get_submodule(path)) in (nn.Linear, Conv1D) and bool(should_convert_module(path, exceptions))


def _adapter(model: Any, bare: Any, profile: Profile) -> tuple[set[str], int]:
    """Paths of the layers that PEFT adapts, and the numbers in one adapter."""
    import torch
    from peft.tuners.lora.layer import LoraLayer

    from rlrecipes.model.adapters import add_lora
    from rlrecipes.model.loading import HEADS

    names = dict.fromkeys(path.rpartition(".")[2] for path in _linears(bare))
    layers = [name for name in names if name not in HEADS]
    choices = ["all-linear", *layers]
    for name in [name.strip() for name in profile.lora.target_modules.split(",")]:
        if name not in choices and not _mixtures(bare):  # PEFT also takes names of experts, which are no layers
            others = f"there are {', '.join(layers)}"
            raise UserError(f"lora.target_modules: {unknown('linear layer', name, choices, others)}")
    with torch.device("meta"):
        adapted = add_lora(model, profile.lora, "CAUSAL_LM")
    numbers = sum(weight.numel() for path, weight in adapted.named_parameters() if "lora_" in path)
    return {path for path, layer in adapted.get_base_model().named_modules() if isinstance(layer, LoraLayer)}, numbers


def _mixtures(module: Any) -> dict[str, list[Any]]:
    """A mixture's experts, all in one tensor `[experts, …, …]` for each half, by path."""
    tensors = {
        path: [weight for weight in layer.parameters(recurse=False) if weight.ndim == 3]
        for path, layer in module.named_modules()
        if "expert" in path
    }
    return {path: weights for path, weights in tensors.items() if weights}


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
    """Attention is every linear layer under a name with `att` in it; other linear layers under one parent are a network."""
    parts: dict[str, dict[str, tuple[int, int]]] = {"att": {}}
    for inner, widths in _linears(block).items():
        parent = inner.rpartition(".")[0]
        parts.setdefault("att" if "att" in parent else parent, {})[f"{path}.{inner}"] = widths
    inputs, width, out = _halves(parts.pop("att"), adapted, text.hidden_size)
    names = [inner.rpartition(".")[2] for inner, _ in block.named_modules() if "att" in inner]
    networks = [_halves(part, adapted, text.hidden_size) for part in parts.values()]
    return Block(
        queries=out.width,
        cached=max(0, width - out.width),
        normed=any(name.startswith("q") and "norm" in name for name in names),
        inputs=inputs,
        out=out,
        networks=(
            *(Network(down.width, width >= 2 * down.width, (*reads, down)) for reads, width, down in networks),
            *(_mixture(path, inner, block, adapted, text) for inner in _mixtures(block)),
        ),
    )


def _halves(layers: dict[str, tuple[int, int]], adapted: set[str], hidden: int) -> tuple[tuple[Input, ...], int, Input]:
    """Of linear layers under one parent: what all but the last read, the sum of their output widths, and what the last reads.

    The last is the one whose output is a state `[H]`. Where several have that width, it is the last in order; Phi-3 defines
    it first.
    """
    last = next((path for path, (_, output) in reversed(layers.items()) if output == hidden), None)
    first = {path: widths for path, widths in layers.items() if path != last}
    inputs = (
        Input(width, sum(path in adapted for path, (size, _) in first.items() if size == width))
        for width in dict.fromkeys(size for size, _ in first.values())
    )
    down = Input(layers[last][0], int(last in adapted)) if last else Input(0, 0)
    return tuple(inputs), sum(output for _, output in first.values()), down


def _mixture(path: str, inner: str, block: Any, adapted: set[str], text: Any) -> Network:
    weights = _mixtures(block)[inner]
    count, numbers = len(weights[0]), [weight.numel() for weight in weights]
    limits = [module.top_k for module in block.modules() if isinstance(getattr(module, "top_k", None), int)]
    per_token = [*limits, getattr(text, "num_experts_per_tok", None) or count][0]
    every = not hasattr(block.get_submodule(inner), "has_gate")  # Llama 4 sends each token through all of them
    return Network(
        middle=min(numbers) // (count * text.hidden_size),
        gated=sum(numbers) > 2 * min(numbers),
        experts=count if every else per_token,
        stack=sum(numbers) if f"{path}.{inner}" in adapted else 0,
    )
