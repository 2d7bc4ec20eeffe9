"""Tasks of written language: language modeling, translation, classification; tokenizers."""
