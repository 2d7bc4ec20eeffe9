"""Thin Linen modules that own the parameters; what they compute is in `attention`."""
