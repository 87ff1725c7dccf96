"""The Hugging Face hub: whether it can be reached, and what goes up to it."""
