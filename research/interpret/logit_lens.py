"""What a model would predict if it stopped after each layer."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

Norm = Callable[[Float[Array, "*b M"]], Float[Array, "*b M"]]
Unembed = Callable[[Float[Array, "*b M"]], Float[Array, "*b V"]]


def logit_lens(
    residuals: Float[Array, "layers *b T M"], norm: Norm, unembed: Unembed
) -> Float[Array, "layers *b T V"]:
    """Returns the logits read off the residual stream, float32.

    nostalgebraist 2020, "interpreting GPT: the logit lens": the model's last normalization and
    unembedding applied to every layer. The last are the model's own logits.

    Args:
      residuals: the stream before the first layer and after each, L + 1 of them.
      norm: what the model does between its last layer and the unembedding, with its parameters.
      unembed: from the width to logits, with its parameters.
    """
    return unembed(norm(jnp.asarray(residuals))).astype(jnp.float32)
