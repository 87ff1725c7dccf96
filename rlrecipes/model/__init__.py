"""The base model and its tokenizer: loading, adapters, forward passes, sampling, and the embedded base."""
