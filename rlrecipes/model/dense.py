"""The policy as plain matrices while it writes: a layer's weights and its adapter are one, in the model's own precision.

    with dense(model):
        sampled = sample(model, …)

A token step multiplies one token of each row. Its 4-bit weights take longer to unpack than to multiply, and each adapter is
three more operations to start. A copy that is made once for some hundred steps saves both, and takes the memory of the layers
in full precision meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from rlrecipes.model.forward import causal, other_forward


@contextmanager
def dense(model: PeftModel) -> Iterator[None]:
    """Inside, each linear layer with its active adapter is one matrix, made from the adapter's weights as they are now.

    Outputs differ by rounding from those that the adapter adds to. Experts that lie in one tensor keep their adapters.
    """
    with ExitStack() as stack, torch.no_grad():
        for layer in _layers(model):
            stack.enter_context(other_forward(layer, _product(layer, causal(model).dtype)))
        yield


def _layers(model: PeftModel) -> list[nn.Module]:
    """The linear layers that an adapter stands on, and the 4-bit ones without."""
    adapted = [
        module
        for module in model.modules()
        if isinstance(module, LoraLayer) and isinstance(module.get_base_layer(), nn.Linear | Conv1D)
    ]
    inside = {id(layer.get_base_layer()) for layer in adapted}
    plain = [module for module in model.modules() if isinstance(module, Linear4bit) and id(module) not in inside]
    return [*adapted, *plain]


def _product(layer: Any, dtype: torch.dtype) -> Any:
    """The layer's forward by its whole weights, which live as long as it does."""
    weight, bias = _whole(layer)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return lambda states, *_, **__: functional.linear(states.to(dtype), weight, bias)


def _whole(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weights `[out, in]` of a layer with its active adapter, and the bias, summed up in float32."""
    base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    weight, bias = base.weight.data, base.bias
    if isinstance(base, Linear4bit):
        weight = dequantize_4bit(weight, base.weight.quant_state)
    elif isinstance(base, Conv1D):
        weight = weight.T
    for name in layer.active_adapters if isinstance(layer, LoraLayer) and not layer.disable_adapters else ():
        if name in layer.lora_A:
            down, up, scaling = layer.lora_A[name].weight, layer.lora_B[name], layer.scaling[name]
            weight = torch.addmm(weight.float(), up.weight.float(), down.float(), alpha=scaling)
            if up.bias is not None:
                bias = scaling * up.bias.float() + (0 if bias is None else bias.float())
    return weight, bias
