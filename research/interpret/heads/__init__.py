"""Analysis of attention heads: measures of their weights, ablation and pruning."""
