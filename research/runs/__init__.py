"""The files of a run: where results, metrics and records of training are kept.

Imports `errors` only.
"""
