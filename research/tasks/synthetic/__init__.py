"""Tasks that are generated on the device inside the training step."""
