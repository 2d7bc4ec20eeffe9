"""Attention whose weights depend on previous weights, so that queries are sequential."""
