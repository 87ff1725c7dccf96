"""What an export's files need so that other programs read them: Transformers 4, vLLM, llama.cpp's converter.

Transformers 5 writes names that 4 does not know and reads 4's as well, so the files get both:

    tokenizer_config.json  "tokenizer_class": "PreTrainedTokenizerFast"          instead of "TokenizersBackend"
    config.json            "rope_theta": 1e6, "torch_dtype": "bfloat16"          beside "rope_parameters" and "dtype"
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlrecipes.run.checksums import files_in
from rlrecipes.run.folder import read_json, write_json


def make_readable(folder: Path) -> None:
    """Gives the names of Transformers 4 to the tokenizers and models in a folder, and its files to whoever may read it."""
    for path in files_in(folder):
        if path.name == "tokenizer_config.json":
            write_json(path, _tokenizer(read_json(path)))
        if path.name == "config.json":
            write_json(path, _model(read_json(path)))
    mode = _new_mode(folder)
    for path in files_in(folder):
        path.chmod(mode)


def _new_mode(folder: Path) -> int:
    """Who may read a new file here, as the user has it; those of safetensors are their owner's alone."""
    new = folder / ".new"
    new.touch()
    mode = new.stat().st_mode & 0o777
    new.unlink()
    return mode


def _tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without the names of inputs, 4 would give a decoder `token_type_ids`."""
    named = {**config}
    if named.get("tokenizer_class") == "TokenizersBackend":
        named["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(named.get("extra_special_tokens"), list):
        named["additional_special_tokens"] = named.pop("extra_special_tokens")
    return named | {"model_input_names": ["input_ids", "attention_mask"]}


def _model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without `rope_theta`, 4 takes a family's own, and a model then reads positions that it was never trained on."""
    text = config.get("text_config")
    known = {**config, "text_config": _model(text)} if isinstance(text, dict) else {**config}
    return {
        **_rope(config.get("rope_parameters")),
        **({"torch_dtype": config["dtype"]} if "dtype" in config else {}),
        **known,
    }


def _rope(parameters: Any) -> dict[str, Any]:
    """The parameters of rotary positions under the names of Transformers 4; Gemma 3 has two kinds."""
    if not isinstance(parameters, dict):
        return {}
    if isinstance(whole := parameters.get("full_attention"), dict):
        local = parameters.get("sliding_attention")
        theta = local.get("rope_theta") if isinstance(local, dict) else None
        return {**_rope(whole), **({"rope_local_base_freq": theta} if theta is not None else {})}
    apart = ("rope_theta", "partial_rotary_factor")
    named = {name: parameters[name] for name in apart if name in parameters}
    scaling = {name: value for name, value in parameters.items() if name not in apart}
    return {**named, **({"rope_scaling": scaling} if scaling.get("rope_type", "default") != "default" else {})}
