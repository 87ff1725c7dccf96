"""The project's PPO against plain TRL's, side by side, on random models: `python -m benchmarks`."""
