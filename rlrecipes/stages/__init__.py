"""The stages of a recipe: sft, reward, ppo, evaluate, report. They never import each other; they meet on disk."""
