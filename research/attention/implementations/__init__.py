"""Implementations of attention, and `attend`, which dispatches to them."""
