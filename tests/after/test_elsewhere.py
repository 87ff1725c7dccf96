"""Programs that know Transformers 4's names read an export, and so does Transformers 5."""

import json
import os

import pytest
from transformers import AutoConfig, AutoTokenizer, Gemma3TextConfig, LlamaConfig

from rlrecipes.after.elsewhere import make_readable

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 1e6}), {"rope_theta": 1e6}),
        (
            LlamaConfig(rope_parameters=LLAMA3),
            {"rope_theta": 5e5, "rope_scaling": {name: LLAMA3[name] for name in LLAMA3 if name != "rope_theta"}},
        ),
        (
            Gemma3TextConfig(
                rope_parameters={
                    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                    "sliding_attention": LOCAL,
                }
            ),
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
    ],
    ids=["theta", "llama3", "gemma3"],
)
def test_positions_and_precision_have_their_older_names_too(tmp_path, config, expected):
    config.dtype = "bfloat16"
    config.save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path)
    make_readable(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {name: written.get(name) for name in expected} == expected
    assert ("rope_scaling" in written) == ("rope_scaling" in expected)
    assert written["torch_dtype"] == written["dtype"] == "bfloat16"
    after = AutoConfig.from_pretrained(tmp_path)
    assert after.rope_parameters == before.rope_parameters
    assert after.dtype == before.dtype


def test_tokenizers_have_the_older_name_of_their_class(checkpoint, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.model)
    tokenizer.save_pretrained(tmp_path / "merged")
    config = tmp_path / "merged" / "tokenizer_config.json"
    assert json.loads(config.read_text())["tokenizer_class"] == "TokenizersBackend"
    make_readable(tmp_path)
    written = json.loads(config.read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["model_input_names"] == ["input_ids", "attention_mask"]
    again = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert again("Hi there")["input_ids"] == tokenizer("Hi there")["input_ids"]
    assert again.chat_template == tokenizer.chat_template


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_whoever_may_read_a_new_file_may_read_an_exports(tmp_path, mask, mode):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "model.safetensors").touch(0o600)
    before = os.umask(mask)
    try:
        make_readable(tmp_path)
    finally:
        os.umask(before)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.stat().st_mode & 0o777 == mode
