"""One file a trainer: each translates between it and the `Selector`, checks its seam by name, and does nothing else."""
