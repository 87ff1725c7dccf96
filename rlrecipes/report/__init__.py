"""One page on what came out of a run."""
