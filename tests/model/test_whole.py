"""A base whose files and config.json do not fit is refused before training: weights would be random or left out."""

import shutil

import pytest
import torch
from conftest import SHORTEST, changed, main
from families import FAMILIES
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rlrecipes.errors import UserError
from rlrecipes.model.loading import load_causal, load_scorer
from rlrecipes.model.tokens import load_tokenizer
from rlrecipes.profile import ModelSettings

PLAIN = ModelSettings(quantization="none")


@pytest.fixture
def own(checkpoint, tmp_path):
    """A model's folder of one's own; called with a change, its weights are saved again as that returns them."""
    folder = shutil.copytree(checkpoint.model, tmp_path / "own")

    def saved(change=dict):
        weights = load_file(folder / "model.safetensors")
        save_file(change(weights), folder / "model.safetensors", {"format": "pt"})
        return folder

    return saved


def loaded(folder, load=load_causal, settings=PLAIN):
    return load(str(folder), settings, load_tokenizer(folder))


def without(*parts):
    """A change that leaves out the weights whose names hold a part."""
    return lambda weights: {key: weight for key, weight in weights.items() if not any(part in key for part in parts)}


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize(
    ("change", "lack"),
    [
        (without("lm_head"), "lm_head.weight of"),
        (without("embed_tokens"), "model.embed_tokens.weight of"),
        (without("model.norm"), "model.norm.weight of"),
        (without("layers.1."), "model.layers.1.input_layernorm.weight and 8 more of"),
        (without("layers.1.mlp.down"), "model.layers.1.mlp.down_proj.weight of"),
        (lambda weights: {f"x.{key}": weight for key, weight in weights.items()}, "lm_head.weight and 20 more of"),
    ],
    ids=["head", "embeddings", "norm", "layer", "matrix", "prefix"],
)
def test_weights_that_no_file_has_are_told(own, change, lack, quantization):
    with pytest.raises(
        UserError, match=f"lack the weights {lack} the model in its config.json, so they would be random"
    ):
        loaded(own(change), settings=ModelSettings(quantization=quantization))


def test_more_layers_than_the_files_have_are_told(own):
    changed(own() / "config.json", num_hidden_layers=3)
    with pytest.raises(UserError, match=r"lack the weights model\.layers\.2\.input_layernorm\.weight and 8 more"):
        loaded(own())


@pytest.mark.parametrize("load", [load_causal, load_scorer])
def test_fewer_layers_than_the_files_have_are_told(own, load):
    changed(own() / "config.json", num_hidden_layers=1)
    with pytest.raises(
        UserError, match=r"hold the layer model\.layers\.1, and the model in its config\.json ends before"
    ):
        loaded(own(), load)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_a_whole_model_loads_and_one_that_ends_too_early_does_not(own, family):
    folder = own()
    sizes = {"vocab_size": len(load_tokenizer(folder)), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = AutoConfig.for_model(family, **sizes, **FAMILIES[family])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    loaded(folder)
    layers = next(key for key in ("num_hidden_layers", "n_layer") if key in FAMILIES[family])
    more = {"layer_types": config.layer_types[:1]} if getattr(config, "layer_types", None) else {}
    changed(folder / "config.json", **{layers: 1}, **more)
    with pytest.raises(UserError, match=r"hold the layer .*\.1, and"):
        loaded(folder)


def test_tied_weights_are_no_missing_ones(own):
    folder = own(without("lm_head"))
    changed(folder / "config.json", tie_word_embeddings=True)
    model = loaded(folder)
    assert torch.equal(model.lm_head.weight, load_file(folder / "model.safetensors")["model.embed_tokens.weight"])


def test_what_a_base_has_no_place_for_is_no_matter(own):
    """Heads, towers, buffers that older files hold, and layers that predict further tokens."""
    layer = {f"model.layers.2.{part}.weight": torch.ones(64) for part in ("input_layernorm", "eh_proj")}
    more = {
        "score.weight": torch.ones(1, 64),
        "v_head.summary.weight": torch.ones(1, 64),
        "vision_tower.layers.7.mlp.down_proj.weight": torch.ones(4, 4),
        "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(16),
        "model.layers.9.self_attn.masked_bias": torch.ones(1),
        **layer,
    }
    folder = own(lambda weights: {**weights, **more})
    changed(folder / "config.json", num_nextn_predict_layers=1)
    loaded(folder)


def test_a_base_that_is_not_whole_is_refused_in_one_line_and_leaves_nothing(own, home, capsys):
    folder = own(without("lm_head"))
    arguments = ["sft", "translation", "--run", "not-whole", "--data", "pairs.jsonl", "--model", str(folder)]
    assert main([*arguments, *SHORTEST]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: the files of ")
    assert "lm_head.weight" in error
    assert error.endswith("or choose another model")
    assert not (home / "runs" / "not-whole" / "translation" / "sft").exists()
