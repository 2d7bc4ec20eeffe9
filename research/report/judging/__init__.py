"""Tests claims on the runs: evidence, quantities, verdicts, their wording, power.

Imports `stats` and `ablation`, but nothing that draws.
"""
