"""Files that a run writes during training: checkpoints, metrics, events, environment."""
