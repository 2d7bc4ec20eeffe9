"""Positions that are added to the input of a transformer."""

import numpy as np
from jaxtyping import Float

from research.attention.parts.positions import sinusoidal


def sinusoids(length: int, width: int, embedding_stddev: float) -> Float[np.ndarray, "T M"]:
    """Returns the sines and cosines that are added to embeddings, row t for position t, float32.

    Vaswani et al. 2017 multiply embeddings by sqrt(width) and add sines of unit size (sections 3.4
    and 3.5); here embeddings are left as they are, so the sines are divided by sqrt(width). They
    are never smaller than that, however small embeddings start: embeddings grow and sines do not.
    (A character model of width 64 takes its table from 0.02 to 0.09 within 600 steps, and sines of
    0.02 beside it do no better than no positions.) Nor are they smaller than the embeddings.

    Args:
      length: T.
      width: M.
      embedding_stddev: standard deviation that the embeddings are drawn with.
    """
    return sinusoidal(length, width) * np.float32(max(embedding_stddev, width**-0.5))
