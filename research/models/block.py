"""Transformer layers: thin Flax shells around the mixers of `research.attention`.

A block adds a mixer and then a feed-forward layer to its input, with norms where `norm_placement`
says (see `residual`; by default before each, x + mixer(norm(x)), Xiong 2020). The layers are a
scan over repeats of a pattern of blocks (usually one) with stacked parameters, so compile time does
not grow with depth. Parameters are float32; activations have `dtype`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.implementations.flash import ATTENTION_OUT
from research.attention.mixers.cross_attention import CrossAttention
from research.attention.mixers.mixer import Mixer
from research.attention.parts.masks import Mask
from research.models.primitives import ACTIVATIONS, GATED, Norm, linear, matrix_init
from research.parallel.rules import constrain

HIDDEN = ("batch", "length", "")
"""Logical axes of the residual stream."""

KEPT: dict[str, Any] = {
    "nothing": None,
    # Products of activations with each other, such as scores, have batch dimensions.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention_out": jax.checkpoint_policies.save_only_these_names(ATTENTION_OUT),
}
"""{name: policy of `jax.checkpoint`}."""

LAYERED: Mapping[Any, int] = {"params": 0, "captured": 0, "given": 0}
"""Flax collections that the scan over layers stacks: parameters, and the activations that
`research.interpret.capture` records ("captured") and patches ("given")."""


@dataclass(frozen=True)
class TransformerConfig:
    """Static description of a stack of transformer layers, with the keys of `config.model`.

    Layer i uses mixers[i % len(mixers)].
    """

    vocab_size: int
    length: int
    width: int
    num_layers: int
    feedforward: int
    activation: str
    norm: str
    norm_epsilon: float
    norm_placement: str
    use_bias: bool
    tie_embeddings: bool
    base_width: int
    output_cap: float
    loss_chunk: int
    dropout: float
    init_stddev: float
    embedding_stddev: float
    dtype: str
    remat: bool
    remat_keeps: str
    position: str
    mixers: tuple[Mixer, ...]
    implementation: str


class MixerLayer(nn.Module):
    """Owns the parameters that a mixer declares."""

    mixer: Mixer

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T M"], state: Any, mask: Mask | None = None
    ) -> tuple[Float[Array, "B T M"], Any]:
        params = {
            name: self.param(name, p.init, p.shape) for name, p in self.mixer.parameters().items()
        }
        if state is None:
            return self.mixer(params, x, mask=mask), None
        state, y = self.mixer.extend(params, state, x)
        return y, state


class FeedForward(nn.Module):
    """Two matrices and an activation (Vaswani 2017, eq. 2); GLUs have a gate (Shazeer 2020)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
        c = self.config
        y = ACTIVATIONS[c.activation](self.project("in", x, c.feedforward))
        if c.activation in GATED:
            y = y * self.project("gate", x, c.feedforward)
        # GPT-2 initialization: scale by 1 / sqrt(2 L), since 2 L sublayers add to the residual
        # stream (Radford et al. 2019, section 2.3), so its variance does not grow with depth.
        return self.project("out", y, c.width, (2 * c.num_layers) ** -0.5)

    def project(self, name: str, x: jax.Array, width: int, scale: float = 1.0) -> jax.Array:
        """Returns x times the matrix `name`, whose initial values are multiplied by `scale`."""
        init = matrix_init(self.config.init_stddev)
        kernel = self.param(
            name, lambda *args: init(*args) * scale, (x.shape[-1], width), jnp.float32
        )
        y = linear(x, kernel)
        if self.config.use_bias:
            y = y + self.param(f"{name}_bias", nn.initializers.zeros, (width,)).astype(x.dtype)
        return y


class Cross(nn.Module):
    """Cross-attention to a source.

    Owns no parameters: they are stacked outside the scan over layers, so that keys and values of
    all layers can be projected before it.
    """

    cross: CrossAttention

    def __call__(
        self,
        x: Float[Array, "B T M"],
        params: dict[str, Array],
        keys_values: dict[str, Float[Array, "B S K D"]],
        mask: Mask | None,
        q_index: Any,
    ) -> Float[Array, "B T M"]:
        return self.cross.attend(params, x, keys_values, mask=mask, q_index=q_index)


NORM_PLACEMENTS = ("pre", "post", "sandwich", "output")
"""Where norms are, relative to a sublayer; see `residual`."""


def residual(
    c: TransformerConfig,
    name: str,
    x: Float[Array, "B T M"],
    sublayer: Callable[[Array], Array],
) -> Float[Array, "B T M"]:
    """Returns the residual stream after a sublayer f, with norms by `norm_placement`.

    "pre": x + f(norm(x)) (Xiong et al. 2020). "post": norm(x + f(x)) (Vaswani et al. 2017, section
    3.1). "sandwich": x + norm(f(norm(x))) (Ding et al. 2021 (CogView), section 2.4; Gemma 2 and 3).
    "output": x + norm(f(x)) (Liu et al. 2022 (Swin V2), section 3.2; OLMo 2).

    Args:
      c: config of the layers.
      name: of the norm in the parameters; the second one of a sandwich is `name` + "_out".
      x: the residual stream.
      sublayer: f, called once, within the module that owns the norms.
    """

    def norm(name: str, y: Array) -> Array:
        return Norm(c.norm, c.use_bias, c.norm_epsilon, name=name)(y)

    place = c.norm_placement
    y = sublayer(norm(name, x) if place in ("pre", "sandwich") else x)
    if place in ("sandwich", "output"):
        y = norm(f"{name}_out" if place == "sandwich" else name, y)
    x = constrain(x + y, *HIDDEN)
    return constrain(norm(name, x), *HIDDEN) if place == "post" else x


def final_norm(c: TransformerConfig, x: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
    """Returns the norm "norm" of the last layer's output, which "post" layers have normalized."""
    if c.norm_placement == "post":
        return x
    return Norm(c.norm, c.use_bias, c.norm_epsilon, name="norm")(x)


class Block(nn.Module):
    """One transformer layer, on a whole sequence or, given a decoding state, on its continuation.

    Cross-attention, if any, comes between the mixer and the feed-forward layer.
    """

    config: TransformerConfig
    mixer: Mixer
    deterministic: bool
    cross: CrossAttention | None = None
    weights: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T M"],
        state: Any,
        source: tuple | None = None,
        mask: Mask | None = None,
        q_index: Any = None,
    ) -> tuple[Float[Array, "B T M"], tuple]:
        """Returns the layer's output, and a pair of the mixer's new state and the weights.

        The state is None without a decoding state, and the cross-attention weights are None unless
        requested.

        Args:
          x: the next T positions.
          state: decoding state of the mixer; None for a whole sequence.
          source: parameters of the cross-attention, and its projected keys and values.
          mask: padding of the source with cross-attention; otherwise segments of x, or its padding
            for a mixer that looks ahead.
          q_index: positions of x, for cross-attention; None: 0 .. T-1.
        """
        c = self.config
        drop = nn.Dropout(c.dropout, deterministic=self.deterministic)
        weights, own_mask = None, mask if self.cross is None else None

        def mix(y: Array) -> Array:
            nonlocal state
            y, state = MixerLayer(self.mixer, name="mixer")(y, state, own_mask)
            return drop(y)

        def attend_to_source(y: Array) -> Array:
            nonlocal weights
            assert self.cross is not None and source is not None
            params, keys_values = source
            if self.weights:
                weights = self.cross.attention_trace(
                    params, y, keys_values, mask=mask, q_index=q_index
                ).weights
            return drop(Cross(self.cross, name="cross")(y, params, keys_values, mask, q_index))

        x = residual(c, "norm1", x, mix)
        if self.cross is not None and source is not None:
            x = residual(c, "norm_cross", x, attend_to_source)
        if c.feedforward:
            x = residual(c, "norm2", x, lambda y: drop(FeedForward(c, name="feedforward")(y)))
        return x, (state, weights)


def recomputed(c: TransformerConfig, block: Any) -> Any:
    """Returns a class of layers, recomputed in the backward pass if the config says so."""
    if not c.remat:
        return block
    # The loop of the scan already keeps XLA from merging the recomputation with the forward pass,
    # so the barriers of prevent_cse would only cost time.
    return nn.remat(block, prevent_cse=False, policy=KEPT[c.remat_keeps])


class Pattern(nn.Module):
    """The blocks of one repeat of the pattern, named "0", "1", ..., each with its own mixer."""

    config: TransformerConfig
    deterministic: bool
    cross: CrossAttention | None = None
    weights: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T M"],
        states: tuple | None,
        sources: tuple | None,
        mask: Mask | None,
        q_index: Any,
    ) -> tuple[Float[Array, "B T M"], tuple]:
        c = self.config
        found = []
        block = recomputed(c, Block)
        for i, mixer in enumerate(c.mixers):
            layer = block(c, mixer, self.deterministic, self.cross, self.weights, name=str(i))
            old = None if states is None else states[i]
            source = jax.tree.map(lambda a, i=i: a[i], sources)
            x, new = layer(x, old, source, mask, q_index)
            found.append(new)
        new_states, weights = zip(*found, strict=True)
        new_states = None if states is None else new_states
        return x, (new_states, jnp.stack(weights) if self.weights else None)


def layers(
    c: TransformerConfig,
    deterministic: bool,
    cross: CrossAttention | None = None,
    weights: bool = False,
) -> nn.Module:
    """Returns all layers as a scan named "layers" over `Pattern`, which it is called like."""
    return nn.scan(
        Pattern,
        variable_axes=LAYERED,
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast),
        length=c.num_layers // len(c.mixers),
    )(c, deterministic, cross, weights, name="layers")
