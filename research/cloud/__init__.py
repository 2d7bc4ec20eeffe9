"""Running on other machines: estimates of memory, time and cost, and launchers."""
