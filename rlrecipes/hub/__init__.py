"""The Hugging Face hub: reach it, fetch rows from it, push exports to it."""
