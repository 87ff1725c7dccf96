"""Small models of other families than the embedded base's."""

import torch
from conftest import tiny_tokenizer
from transformers import GPT2Config, GPT2ForSequenceClassification

LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**LLAMA, "num_key_value_heads": 1}
FAMILIES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    },
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "mistral": {**GROUPED, "sliding_window": 8},
    "gemma": {**GROUPED, "head_dim": 16},
    "gemma2": {**GROUPED, "head_dim": 16, "sliding_window": 8},
    "phi": LLAMA,
    "phi3": GROUPED,
    "gpt_neox": LLAMA,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
}
"""A sliding window of 8 is shorter than the prompts, so that it matters."""


def gpt2(folder, **special):
    """A classifier with another architecture, tokenizer and chat template than the policy's."""
    tokenizer = tiny_tokenizer(**special)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(1)
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
