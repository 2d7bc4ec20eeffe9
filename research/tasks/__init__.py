"""Tasks: data, losses and metrics. A batch is a function of seed and step."""
