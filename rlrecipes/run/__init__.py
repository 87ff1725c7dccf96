"""A run on the disk: its folder, checkpoints and exact resume, what it tells, and how it ends."""
