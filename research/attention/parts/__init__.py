"""The parts of softmax attention: scores, masks, biases, normalizers, positions."""
