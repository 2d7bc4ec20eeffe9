"""Attention whose weights depend on the weights before, so that queries come one by one."""
