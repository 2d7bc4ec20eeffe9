"""One step function, the loop around it, and what a run records."""
