"""Families of pretrained models: a file each maps config.json and tensors to ours."""
