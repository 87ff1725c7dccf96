"""The reward: programmatic terms and the reward model, from its source to its agreement with people."""
