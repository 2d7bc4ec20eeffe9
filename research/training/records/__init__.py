"""What a run leaves on the disk while it trains: checkpoints, metrics, events, environment."""
