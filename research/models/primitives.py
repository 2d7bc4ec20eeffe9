"""Primitives of all models: initial values, matrix products, lookups, activations, norms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.attention.implementations.sharding import platform
from research.attention.parts.positions import sinusoidal
from research.parallel.rules import constrain

MAX_PRODUCT_ROWS = 1024
"""Largest table, in rows, looked up by a product, whose cost is proportional to the rows."""
ZERO_CENTERED = "zero_centered_rmsnorm"
NORMS = ("rmsnorm", "layernorm", ZERO_CENTERED)


def matrix_init(stddev: float) -> nn.initializers.Initializer:
    """Returns an initializer: N(0, stddev^2), or N(0, 1 / fan in) if `stddev` is 0."""
    # `research.attention.parameters.matrix_init` differs in the last bit: it rounds fan_in**-0.5 to
    # float32, where Flax takes a square root in float32; and it multiplies a scale into stddev,
    # where `FeedForward` multiplies the drawn values. Sharing one would change initial values.
    if stddev:
        return nn.initializers.normal(stddev)
    return nn.initializers.variance_scaling(1.0, "fan_in", "normal")


@jax.custom_vjp
def linear(x: Float[Array, "*b M"], w: Float[Array, "M F"]) -> Float[Array, "*b F"]:
    """Returns x w, with ``w`` cast to the dtype of ``x``.

    The values equal ``x @ w``. The custom backward pass chooses which operand of the product for
    the gradient of ``w`` gets transposed (copied) in memory. On a CPU, transposing the wrong one,
    fused with the activation that produced it, takes longer than the product itself.
    """
    return x @ w.astype(x.dtype)


def _linear_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple]:
    # Not `linear` itself: policies of `jax.checkpoint` would not see that it is a product.
    return x @ w.astype(x.dtype), (x, w)


def _linear_backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    rows, grads = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    # A product that contracts over rows makes XLA copy its left operand transposed, and automatic
    # differentiation always puts `g` there. Put the narrower operand there: it is cheaper to copy.
    dw = rows.T @ grads if w.shape[0] <= w.shape[1] else (grads.T @ rows).T
    return g @ w.astype(g.dtype).T, dw.astype(w.dtype)


linear.defvjp(_linear_forward, _linear_backward)


def lookup(table: Float[Array, "V M"], tokens: Int[Array, "*b"]) -> Float[Array, "*b M"]:
    """Returns ``table[tokens]``.

    Its gradient is a scatter-add, and accelerators serialize the additions to the same row: for
    16,384 characters from a vocabulary of 65, an H100 spent 7 of the 18 ms of kernel time of a
    training step on it. When tokens outnumber the rows of a small table, the lookup is therefore a
    product with one-hot vectors (exact), and its gradient is a product too.
    """
    # Rows are unsharded even under FSDP: a gather needs the whole row on one device.
    table = constrain(table, "vocab", "")
    small = len(table) <= min(MAX_PRODUCT_ROWS, tokens.size)
    return one_hot_lookup(table, tokens) if small and platform() != "cpu" else table[tokens]


def one_hot_lookup(table: Float[Array, "V M"], tokens: Int[Array, "*b"]) -> Float[Array, "*b M"]:
    """Returns ``table[tokens]``, computed as a product with one-hot vectors."""
    chosen = jax.nn.one_hot(tokens, len(table), dtype=table.dtype)
    # Lower precisions (TF32, bfloat16 passes) would round the rows; the lookup must be exact.
    return jnp.matmul(chosen, table, precision=jax.lax.Precision.HIGHEST)


def sinusoids(
    length: int, width: int, embedding_stddev: float, embedding_scale: float = 1.0
) -> Float[np.ndarray, "T M"]:
    """Returns the float32 sines and cosines to add to embeddings; row t is position t.

    Vaswani et al. 2017 multiply embeddings by sqrt(width) and add sines of amplitude 1 (sections
    3.4 and 3.5). Here the factor is `embedding_scale`, usually 1, and the sines are that divided by
    sqrt(width), which is 1 with the paper's factor; or that multiplied by the initial standard
    deviation of the embeddings if it is larger. A smaller initial standard deviation does not
    shrink the sines, because embeddings grow in training and sines do not. (A character model of
    width 64 takes its table from 0.02 to 0.09 within 600 steps, and with sines of 0.02 it does no
    better than without positions.)

    Args:
      length: T.
      width: M.
      embedding_stddev: initial standard deviation of the embeddings.
      embedding_scale: the factor on embeddings.
    """
    size = max(embedding_stddev, width**-0.5) * embedding_scale
    return sinusoidal(length, width) * np.float32(size)


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba 2016), computed in float32.

    Attributes:
      kind: a name in `NORMS`. The gain of a zero-centered RMSNorm is 1 + "scale", whose initial
        values are zeros (Gemma Team 2024, in their code).
      use_bias: adds a bias.
      epsilon: added to the mean square.
    """

    kind: str
    use_bias: bool
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "... M"]) -> Float[Array, "... M"]:
        centered = self.kind == ZERO_CENTERED
        init = nn.initializers.zeros if centered else nn.initializers.ones
        scale = self.param("scale", init, (x.shape[-1],))
        gain = 1 + scale if centered else scale
        # Sums of squares of bfloat16 activations lose too many digits, so normalize in float32.
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon) * gain
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return y.astype(x.dtype)


@jax.custom_jvp
def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=False)


@gelu.defjvp
def _gelu_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    cdf = 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5))
    density = jnp.exp(-0.5 * jnp.square(x)) * (2 * jnp.pi) ** -0.5
    # The tangent is dx times one array, Phi + x phi, so that is the only residual the backward
    # pass stores. Differentiating jax.nn.gelu would store three.
    return x * cdf, (cdf + x * density) * dx


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swiglu": jax.nn.silu,
    "geglu": jax.nn.gelu,
}
GATED = ("swiglu", "geglu")
"""Activations that are multiplied by a second product, as GLUs are (Shazeer 2020). That of "geglu"
is GELU's tanh form, as in T5 1.1 and Gemma."""
