"""Models of other libraries: reads Hugging Face checkpoints into runs, and writes them back."""
