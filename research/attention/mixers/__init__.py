"""What maps a sequence to a sequence, mixing over positions."""
