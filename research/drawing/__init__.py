"""Charts and HTML that several kinds of pages are made of.

Knows nothing of runs or experiments.
"""
