"""Whether a checkpoint's files hold all of the model that its configuration describes, and no more layers than it.

    missing    lm_head.weight                            random, other numbers at each loading
    unexpected model.layers.2.mlp.down_proj.weight       left out, where config.json has two layers

Transformers says so in its log alone and goes on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from rlrecipes.errors import UserError

LAYER = re.compile(r"(.*?\.)(\d+)\.(.+)")
"""A weight of a layer: `model.layers.`, `2`, `mlp.down_proj.weight`."""


def check_whole(name: str, model: Any, info: dict[str, Any]) -> None:
    """Refuses a causal model of which a weight is in no file; of one that also sees, the eyes are not read here.

    `info` is what `from_pretrained` tells of its loading: tied weights and buffers that nobody saves are not in it.

    Raises:
        UserError: with one weight and how many others lack, or as `check_layers`.
    """
    if absent := sorted(key for key in info["missing_keys"] if "vis" not in key):
        more = f" and {len(absent) - 1} more" if absent[1:] else ""
        raise UserError(
            f"the files of '{name}' lack the weights {absent[0]}{more} of the model in its config.json, so they would be "
            "random; fetch or save it anew, mend its config.json, or choose another model"
        )
    check_layers(name, model, info)


def check_layers(name: str, model: Any, info: dict[str, Any]) -> None:
    """Refuses a model of which the files hold a layer behind its last one.

    Heads, towers and buffers that the model has no place for are usual, and so are layers that predict further tokens.

    Raises:
        UserError: with the layer.
    """
    spare = getattr(model.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    if further := _further((key for key, _ in model.named_parameters()), info["unexpected_keys"], spare):
        raise UserError(
            f"the files of '{name}' hold the layer {further}, and the model in its config.json ends before it; "
            "correct the number of layers there (num_hidden_layers), fetch it anew, or choose another model"
        )


def _further(own: Iterable[str], unexpected: Collection[str], spare: int) -> str | None:
    """The first layer among the unexpected weights that is like the model's own, `spare` or more places behind the last."""
    last: dict[str, int] = {}
    known = set()
    for prefix, number, rest in _of_layers(own):
        last[prefix] = max(last.get(prefix, 0), number)
        known.add((prefix, rest))
    beyond = (
        (number, prefix)
        for prefix, number, rest in _of_layers(unexpected)
        if (prefix, rest) in known and number > last[prefix] + spare
    )
    first = min(beyond, default=None)
    return None if first is None else f"{first[1]}{first[0]}"


def _of_layers(keys: Iterable[str]) -> list[tuple[str, int, str]]:
    """The weights that stand in a layer, in three parts."""
    found = filter(None, map(LAYER.fullmatch, keys))
    return [(match[1], int(match[2]), match[3]) for match in found]
