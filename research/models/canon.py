"""Canon layers: short causal convolutions of the residual stream, beside those of mixers."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.mixers.linear import short_convolution
from research.models.primitives import GATED

TAPS = 4
POINTS = ("none", "a", "c", "d", "ac", "ad", "cd", "acd")
"""Places in a block, by the letters of their paper. Its "b", of queries, keys and values, is left
to mixers: `short_convolution`."""

Pasts = dict[str, Float[Array, "B P C"]]
"""{point: the last TAPS - 1 inputs there}."""


class Canon(nn.Module):
    """x plus a causal convolution of x per channel (Allen-Zhu 2025, section 4).

    Attributes:
      taps: the name of the parameter (TAPS, C), which says what the channels are.
    """

    taps: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T C"],
        past: Float[Array, "B P C"],
        places: Int[Array, "B T"] | None,
    ) -> tuple[Float[Array, "B T C"], Float[Array, "B P C"]]:
        """Returns the sum, and the last inputs; arguments as of `short_convolution.apply`."""
        declared = short_convolution.taps(TAPS, x.shape[-1])
        taps = self.param(self.taps, declared.init, declared.shape)
        y, past = short_convolution.apply(x, taps, past, places)
        return x + y, past


def empty_pasts(c: Any, batch: int, dtype: Any) -> Pasts:
    """Returns zeros for each point of a block; {} if it has no Canon layers.

    Args:
      c: a `TransformerConfig`.
      batch: B.
      dtype: of the activations.
    """
    hidden = c.feedforward * (2 if c.activation in GATED else 1)
    channels = {"a": c.width, "c": c.width, "d": hidden}
    points = "" if c.canon == "none" else c.canon
    return {point: jnp.zeros((batch, TAPS - 1, channels[point]), dtype) for point in points}
