"""Speech recognition: recordings, features, the task and its metrics."""
