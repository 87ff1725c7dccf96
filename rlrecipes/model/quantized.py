"""Checkpoints whose weights are quantized already: which of them a run can stand on, and how they are held then.

    {"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4", …}

Transformers holds such weights as the checkpoint says, whatever the caller asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rlrecipes.errors import UserError

PLAIN = "choose the checkpoint with plain weights"


def check_quantization(name: str, config: Any, quantization: str) -> None:
    """Refuses a checkpoint that is quantized in another way than `model.quantization`, wherever its configuration says so.

    Raises:
        UserError: the sentence says how it is quantized, and what to set or to choose.
    """
    for found in _found(config):
        kind = _kind(found)
        advice = PLAIN
        if not found.get("quant_method"):
            advice += ", or, if these are plain, take quantization_config out of its config.json"
        if kind != "bitsandbytes, nf4":
            raise UserError(
                f"'{name}' is quantized already ({kind}), and LoRA here stands on plain weights or on bitsandbytes' nf4; "
                f"{advice}"
            )
        if quantization != "nf4":
            raise UserError(
                f"'{name}' is quantized already ({kind}), and model.quantization is {quantization}; "
                f"set model.quantization=nf4, or {advice}"
            )


def keep_heads(config: Any, heads: tuple[str, ...]) -> None:
    """Adds `heads`, which its writer did not know of, to the layers that a checkpoint's configuration leaves unquantized."""
    for found in _found(config):
        if (skipped := found.get("llm_int8_skip_modules")) is not None:
            found["llm_int8_skip_modules"] = [*skipped, *heads]


def compute_in(model: Any, name: str, dtype: torch.dtype) -> None:
    """Lets the 4-bit layers of a checkpoint compute in the run's type; they come with the type of who quantized them.

    Raises:
        UserError: the weights of one are plain, whatever the configuration says.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            state: Any = getattr(module.weight, "quant_state", None)
            if state is None:
                raise UserError(
                    f"the config.json of '{name}' says that its weights are in 4 bits, and they are plain; "
                    "take quantization_config out of that file, or choose another model"
                )
            module.compute_dtype = state.dtype = dtype


def is_quantized(config: Any) -> bool:
    """Whether a checkpoint's configuration says that its weights are quantized."""
    return any(True for _ in _found(config))


def _found(config: Any) -> Iterator[dict[str, Any]]:
    """The `quantization_config` of a configuration and of its parts, such as `text_config`."""
    if (found := getattr(config, "quantization_config", None)) is not None:
        yield found if isinstance(found, dict) else {}
    for part in getattr(config, "sub_configs", {}):
        yield from _found(getattr(config, part, None))


def _kind(found: Mapping[str, Any]) -> str:
    """How weights are quantized, in two words; 4 and 8 bits may come without a method's name, and are bitsandbytes' then."""
    method = found.get("quant_method")
    if method not in (None, "bitsandbytes"):
        return str(method)
    if found.get("load_in_4bit"):
        stored = found.get("bnb_4bit_quant_storage") or "uint8"
        kind = found.get("bnb_4bit_quant_type", "fp4")  # Transformers' default
        return f"bitsandbytes, {kind}" + f" stored as {stored}" * (stored != "uint8")
    if found.get("load_in_8bit"):
        return "bitsandbytes, 8-bit"
    return f"{method or 'no method'}, no number of bits"
