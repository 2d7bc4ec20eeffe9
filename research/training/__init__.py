"""Training: the step function, the loop around it, and the records of a run."""
