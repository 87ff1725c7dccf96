"""The policy: its answers to a batch of prompts, and PPO on them."""
