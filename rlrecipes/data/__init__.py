"""A recipe's data: records from files and public sets, split, derived, ready for training."""
