"""Recipes that fine-tune a language model with a reward on one GPU."""
