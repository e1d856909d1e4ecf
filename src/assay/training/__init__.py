"""Training: the configuration of a run, the loop, its directory and its checkpoints."""
