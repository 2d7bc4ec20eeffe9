"""From a trained model to sequences: sampling, beam search, CTC prefix search, streaming."""
