"""Ablations as data: experiments, claims, and the sweep that trains their runs.

Reading an experiment needs no jax.
"""
