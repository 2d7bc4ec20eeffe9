"""Losses that are more than an expression: connectionist temporal classification."""
