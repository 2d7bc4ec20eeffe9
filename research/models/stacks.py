"""Encoder and decoder stacks of an encoder-decoder transformer, pre-norm as in transformer.py."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from research.attention.mixers.cross_attention import CrossAttention
from research.attention.parts.masks import Mask, padding
from research.models.transformer import Norm, TransformerConfig, layers

Kept = dict[str, Float[Array, "L B S K D"]]


class EncoderStack(nn.Module):
    """Encoder layers followed by a norm."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S M"], mask: Mask | None, deterministic: bool
    ) -> Float[Array, "B S M"]:
        c = self.config
        x = layers(c, deterministic)(x, None, None, mask, None)[0]
        return Norm(c.norm, c.use_bias, name="norm")(x)


class DecoderStack(nn.Module):
    """Decoder layers (with cross-attention) followed by a norm."""

    config: TransformerConfig
    cross: CrossAttention

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T M"],
        state: Any,
        source: tuple[dict[str, Array], Kept],
        valid: Bool[Array, "B S"],
        deterministic: bool,
        weights: bool,
    ) -> tuple[Float[Array, "B T M"], Any, Float[Array, "B N T S"] | None]:
        """Returns the outputs, the new state, and the cross-attention weights of N = L H heads.

        Args:
          x: the next T positions.
          state: decoding state before them; None for a whole sequence.
          source: stacked parameters of the cross-attention, and its projected keys and values.
          valid: False at source padding.
          deterministic: disables dropout.
          weights: whether to return the weights (float32); None otherwise.
        """
        c, each = self.config, len(self.config.mixers)
        sources = jax.tree.map(lambda a: a.reshape(-1, each, *a.shape[1:]), source)
        q_index = old = None
        if state is not None:
            q_index = state["step"] + jnp.arange(x.shape[1], dtype=jnp.int32)
            old = state["layers"]
        blocks = layers(c, deterministic, self.cross, weights)
        x, (new, found) = blocks(x, old, sources, padding(valid), q_index)
        if state is not None:
            state = {"step": state["step"] + x.shape[1], "layers": new}
        if weights:
            # From (repeats, pattern, B, H, T, S) to (B, L H, T, S): merge repeats and pattern into
            # layers, then put layers next to heads to merge those.
            found = jnp.moveaxis(found.reshape(-1, *found.shape[2:]), 1, 0)
            found = found.reshape(found.shape[0], -1, *found.shape[3:]).astype(jnp.float32)
        return Norm(c.norm, c.use_bias, name="norm")(x), state, found
