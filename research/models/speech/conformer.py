"""Conformer blocks (Gulati et al. 2020, section 2): attention and a convolution module between two
half-step feed-forward layers.

LayerNorm replaces the paper's BatchNorm: it needs no running statistics, and the output of a
sequence depends neither on the rest of its batch nor on the amount of padding.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from research.attention.mixers.mixer import Mixer
from research.attention.parameters import table_axes, vector_axes
from research.attention.parts.masks import Mask
from research.models.block import (
    LAYERED,
    FeedForward,
    TransformerConfig,
    recomputed,
)
from research.models.mixer_layer import MixerLayer
from research.models.primitives import Norm, linear, matrix_init
from research.models.residual import HIDDEN
from research.parallel.rules import constrain

AXES = {
    "depthwise": table_axes("taps", "feedforward", roles="oo"),
    "depthwise_bias": vector_axes("feedforward"),
}
"""Axes of the parameters that a transformer does not have; for others see `transformer.AXES`."""


class Convolution(nn.Module):
    """The convolution module: GLU, depthwise convolution, norm, swish (Gulati 2020, figure 2)."""

    config: TransformerConfig
    taps: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S M"], valid: Bool[Array, "B S"]
    ) -> Float[Array, "B S M"]:
        c = self.config
        y = self.project("in", x) * jax.nn.sigmoid(self.project("gate", x))
        # Zero the padding: the filter extends to both sides, so it would leak into valid positions.
        y = jnp.where(valid[..., None], y, 0)
        init = nn.initializers.normal(self.taps**-0.5)
        y = depthwise(y, self.param("depthwise", init, (self.taps, c.width)))
        if c.use_bias:
            bias = self.param("depthwise_bias", nn.initializers.zeros, (c.width,))
            y = y + bias.astype(y.dtype)
        y = jax.nn.silu(Norm("layernorm", c.use_bias, c.norm_epsilon, name="norm")(y))
        return self.project("out", y, (2 * c.num_layers) ** -0.5)

    def project(
        self, name: str, x: Float[Array, "B S M"], scale: float = 1.0
    ) -> Float[Array, "B S M"]:
        """Returns x times the matrix `name`, whose initial values are multiplied by `scale`."""
        c, init = self.config, matrix_init(self.config.init_stddev)
        shape = (x.shape[-1], c.width)
        y = linear(x, self.param(name, lambda *args: init(*args) * scale, shape, jnp.float32))
        if c.use_bias:
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (c.width,))
            y = y + bias.astype(y.dtype)
        return y


@jax.custom_vjp
def depthwise(x: Float[Array, "B S M"], kernel: Float[Array, "N M"]) -> Float[Array, "B S M"]:
    """Returns y_s = sum_n kernel_n x_{s + n - N // 2}, zeros beyond the ends, in the dtype of x.

    Computed as a sum of shifted copies; N is odd. The custom backward pass avoids automatic
    differentiation, which would pad each of the N shifted gradients before adding them.
    """
    shifted = _shifted(x, len(kernel))
    return functools.reduce(jnp.add, map(jnp.multiply, shifted, kernel.astype(x.dtype)))


def _shifted(x: jax.Array, taps: int) -> list[jax.Array]:
    """Returns x_{s + n - N // 2} for n = 0 .. N - 1."""
    padded = jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0)))
    return [padded[:, n : n + x.shape[1]] for n in range(taps)]


def _depthwise_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return depthwise(x, kernel), (x, kernel)


def _depthwise_backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    products = [(near * g).sum((0, 1), dtype=kernel.dtype) for near in _shifted(x, len(kernel))]
    # The gradient of a convolution is the convolution of g with the reversed kernel.
    return depthwise(g, kernel[::-1]), jnp.stack(products)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class ConformerBlock(nn.Module):
    """Half-step feed-forward, mixer, convolution, half-step feed-forward, norm (equation 1).

    Every sublayer is pre-norm with a residual connection; the final norm is not residual.
    """

    config: TransformerConfig
    mixer: Mixer
    taps: int
    deterministic: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S M"], valid: Bool[Array, "B S"], mask: Mask | None
    ) -> tuple[Float[Array, "B S M"], None]:
        c = self.config
        drop = nn.Dropout(c.dropout, deterministic=self.deterministic)

        def norm(number: int) -> Norm:
            return Norm(c.norm, c.use_bias, c.norm_epsilon, name=f"norm{number}")

        def half(number: int, x: Array) -> Array:
            if not c.feedforward:
                return x
            y = FeedForward(c, name=f"feedforward{number}")(norm(number)(x))
            return constrain(x + 0.5 * drop(y), *HIDDEN)

        x = half(1, x)
        y, _, _ = MixerLayer(self.mixer, name="mixer")(norm(2)(x), None, mask)
        x = constrain(x + drop(y), *HIDDEN)
        y = Convolution(c, self.taps, name="convolution")(norm(3)(x), valid)
        x = constrain(x + drop(y), *HIDDEN)
        return norm(5)(half(4, x)), None


class ConformerStack(nn.Module):
    """A scan over Conformer blocks with stacked parameters; all use the first mixer of `config`.

    Attributes:
      config: config of the layers.
      taps: taps of the convolution over time, odd.
    """

    config: TransformerConfig
    taps: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S M"],
        valid: Bool[Array, "B S"],
        mask: Mask | None,
        deterministic: bool,
    ) -> Float[Array, "B S M"]:
        """Returns the output of the last block.

        Args:
          x: the sequence.
          valid: False at padding.
          mask: padding mask for a mixer that looks ahead; None for a causal one.
          deterministic: disables dropout.
        """
        c = self.config
        layers = nn.scan(
            recomputed(c, ConformerBlock),
            variable_axes=LAYERED,
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=c.num_layers,
        )(c, c.mixers[0], self.taps, deterministic, name="layers")
        return layers(x, valid, mask)[0]
