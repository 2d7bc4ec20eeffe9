"""What the runs say of the claims: evidence, quantities, verdicts, their sentences, power.

Imports `stats` and `ablation`, nothing that draws.
"""
