"""Pooling of the states of a sequence into one vector."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from research.models.primitives import linear, matrix_init

CLASS_TOKEN, ATTENTION, MEAN, LAST = "class_token", "attention", "mean", "last"
FIRST = "first"
POOLINGS = (CLASS_TOKEN, ATTENTION, MEAN, LAST, FIRST)
OF_FIRST_STATE = (CLASS_TOKEN, FIRST)
"""Poolings that take the first state, which has to see the others."""


class Pool(nn.Module):
    """Pools the states of a sequence into one vector.

    attention: sum_s a_s h_s with a = softmax(v^T tanh(W h_s + b)) (Bahdanau et al. 2015, appendix
      A.1.2, without a query; Jain and Wallace 2019, section 2).
    mean: the same with equal weights.
    last: the last state; for a bidirectional body, the forward half of the last state and the
      backward half of the first.
    class_token: the state of the learned token prepended to the sequence.
    first: the state of the sequence's own first token, such as BERT's [CLS].

    Attributes:
      kind: one of `POOLINGS`.
      width: N, width of the states.
      init_stddev: initial standard deviation of the matrix; 0: 1 / sqrt(N).
      bidirectional: whether the states are those of a bidirectional network.
      pooler: whether the vector then goes through tanh(W h + b), as in BERT's code.
    """

    kind: str
    width: int
    init_stddev: float
    bidirectional: bool
    pooler: bool = False

    def setup(self) -> None:
        if self.kind == ATTENTION:
            n, init = self.width, matrix_init(self.init_stddev)
            self.matrix = self.param("matrix", init, (n, n))
            self.bias = self.param("matrix_bias", nn.initializers.zeros, (n,))
            self.vector = self.param("vector", nn.initializers.normal(n**-0.5), (n,))
        if self.pooler:
            n, init = self.width, matrix_init(self.init_stddev)
            self.layer = self.param("pooler", init, (n, n))
            self.layer_bias = self.param("pooler_bias", nn.initializers.zeros, (n,))

    def __call__(
        self, states: Float[Array, "B T N"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B N"]:
        """Returns one vector per sequence; `valid` is False at padding."""
        if self.kind in OF_FIRST_STATE:
            return self.transformed(states[:, 0])
        if self.kind == LAST:
            return self.transformed(self._ends(states, valid))
        return self.transformed(self.weighted_sum(self.weights(states, valid), states))

    def transformed(self, pooled: Float[Array, "B N"]) -> Float[Array, "B N"]:
        """Returns what is classified of a pooled vector: the vector itself without a pooler."""
        if not self.pooler:
            return pooled
        return jnp.tanh(linear(pooled, self.layer) + self.layer_bias.astype(pooled.dtype))

    def weights(
        self, states: Float[Array, "B T N"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T"]:
        """Returns the float32 weights of attention or mean pooling, zero at padding."""
        if self.kind == MEAN:
            return valid / valid.sum(-1, keepdims=True, dtype=jnp.float32)
        # The scores stay float32: the softmax over a whole sequence is sensitive to rounding.
        hidden = linear(states, self.matrix).astype(jnp.float32) + self.bias
        scores = (jnp.tanh(hidden) * self.vector).sum(-1)
        return jax.nn.softmax(jnp.where(valid, scores, -jnp.inf), axis=-1)

    def weighted_sum(
        self, weights: Float[Array, "B T"], states: Float[Array, "B T N"]
    ) -> Float[Array, "B N"]:
        """Returns the sum of the states weighted by `weights`, in the dtype of the states."""
        return jnp.einsum("bt,btn->bn", weights.astype(states.dtype), states)

    def _ends(self, states: Array, valid: Array) -> Array:
        last = valid.sum(-1) - 1
        found = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
        if not self.bidirectional:
            return found
        half = self.width // 2
        return jnp.concatenate([found[:, :half], states[:, 0, half:]], axis=-1)
