"""What softmax attention is composed of: scores, masks, biases, normalizers, positions."""
