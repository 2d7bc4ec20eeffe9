"""Thin Linen modules that own the parameters; the mixers they call are in `research.attention`."""
