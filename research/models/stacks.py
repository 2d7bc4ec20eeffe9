"""The two stacks of layers of an encoder-decoder transformer, pre-norm as in transformer.py."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from research.attention.mixers.cross_attention import CrossAttention
from research.attention.mixers.mixer import Mixer
from research.attention.parts.masks import Mask, padding
from research.models.transformer import (
    HIDDEN,
    LAYERED,
    FeedForward,
    Mix,
    Norm,
    Pattern,
    TransformerConfig,
)
from research.parallel.rules import constrain

Kept = dict[str, Float[Array, "L B S K D"]]


class EncoderStack(nn.Module):
    """The layers that read the source, and a norm."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S M"], mask: Mask | None, deterministic: bool
    ) -> Float[Array, "B S M"]:
        c = self.config
        layers = nn.scan(
            Pattern,
            variable_axes=LAYERED,
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=c.num_layers // len(c.mixers),
        )(c, deterministic, name="layers")
        return Norm(c.norm, c.use_bias, name="norm")(layers(x, None, mask)[0])


class Cross(nn.Module):
    """Reads the source; its parameters lie with those of all layers, in front of them."""

    cross: CrossAttention

    def __call__(
        self,
        x: Float[Array, "B T M"],
        params: dict[str, Array],
        kept: dict[str, Float[Array, "B S K D"]],
        mask: Mask,
        q_index: Any,
    ) -> Float[Array, "B T M"]:
        return self.cross.read(params, x, kept, mask=mask, q_index=q_index)


class DecoderBlock(nn.Module):
    """One layer of the decoder: as `Block`, and between its sublayers one that reads the source."""

    config: TransformerConfig
    mixer: Mixer
    cross: CrossAttention
    deterministic: bool
    weights: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T M"], state: Any, source: tuple, mask: Mask, q_index: Any
    ) -> tuple[Float[Array, "B T M"], tuple]:
        """Returns what follows x, the mixer's state and the weights, each None unless wanted.

        Args:
          x: the next T positions.
          state: of the mixer; None for a whole sequence.
          source: parameters of the cross-attention, and what it remembers of the source.
          mask: padding of the source.
          q_index: positions of x; None is 0 .. T-1.
        """
        c = self.config
        drop = nn.Dropout(c.dropout, deterministic=self.deterministic)
        y = Norm(c.norm, c.use_bias, name="norm1")(x)
        y, state = Mix(self.mixer, name="mixer")(y, state)
        x = constrain(x + drop(y), *HIDDEN)
        params, kept = source
        y = Norm(c.norm, c.use_bias, name="norm_cross")(x)
        at = {"mask": mask, "q_index": q_index}
        weights = self.cross.look(params, y, kept, **at).weights if self.weights else None
        y = Cross(self.cross, name="cross")(y, params, kept, mask, q_index)
        x = constrain(x + drop(y), *HIDDEN)
        if c.feedforward:
            y = FeedForward(c, name="feedforward")(Norm(c.norm, c.use_bias, name="norm2")(x))
            x = constrain(x + drop(y), *HIDDEN)
        return x, (state, weights)


class DecoderPattern(nn.Module):
    """One decoder block after the other, "0", "1"..., each with a mixer of its own."""

    config: TransformerConfig
    cross: CrossAttention
    deterministic: bool
    weights: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T M"],
        states: tuple | None,
        sources: tuple,
        mask: Mask,
        q_index: Any,
    ) -> tuple[Float[Array, "B T M"], tuple]:
        c = self.config
        found = []
        block = nn.remat(DecoderBlock, prevent_cse=False) if c.remat else DecoderBlock
        for i, mixer in enumerate(c.mixers):
            layer = block(c, mixer, self.cross, self.deterministic, self.weights, name=str(i))
            old = None if states is None else states[i]
            x, new = layer(x, old, jax.tree.map(lambda a, i=i: a[i], sources), mask, q_index)
            found.append(new)
        new_states, weights = zip(*found, strict=True)
        new_states = None if states is None else new_states
        return x, (new_states, jnp.stack(weights) if self.weights else None)


class DecoderStack(nn.Module):
    """The layers that write the target, and a norm."""

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
        """Returns what the layers make of x, the new state, and the weights of all N = L H heads.

        Args:
          x: the next T positions.
          state: before them; None for a whole sequence.
          source: stacked parameters of the cross-attention, and what it remembers of the source.
          valid: which positions of the source are no padding.
          deterministic: without dropout.
          weights: whether the weights are wanted.
        """
        c, each = self.config, len(self.config.mixers)
        layers = nn.scan(
            DecoderPattern,
            variable_axes=LAYERED,
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=c.num_layers // each,
        )(c, self.cross, deterministic, weights, name="layers")
        sources = jax.tree.map(lambda a: a.reshape(-1, each, *a.shape[1:]), source)
        q_index = old = None
        if state is not None:
            q_index = state["step"] + jnp.arange(x.shape[1], dtype=jnp.int32)
            old = state["layers"]
        x, (new, found) = layers(x, old, sources, padding(valid), q_index)
        if state is not None:
            state = {"step": state["step"] + x.shape[1], "layers": new}
        if weights:
            # (repeats, pattern, B, H, T, S): layers and heads next to each other.
            found = jnp.moveaxis(found.reshape(-1, *found.shape[2:]), 1, 0)
            found = found.reshape(found.shape[0], -1, *found.shape[3:]).astype(jnp.float32)
        return Norm(c.norm, c.use_bias, name="norm")(x), state, found
