"""Synthetic tasks, generated on the device inside the training step."""
