"""What attention heads do: measures of their weights, and what the model loses without them."""
