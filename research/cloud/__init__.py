"""Machines that are not this one: what a run would cost on them, and how it is started there."""
