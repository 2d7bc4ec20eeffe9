"""Text tasks (language modeling, translation, classification) and tokenizers."""
