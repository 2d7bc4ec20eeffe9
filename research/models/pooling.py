"""Pooling of the states of a sequence into one vector."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from research.models.primitives import linear, matrix_init

CLASS_TOKEN, ATTENTION, MEAN, LAST = "class_token", "attention", "mean", "last"
POOLINGS = (CLASS_TOKEN, ATTENTION, MEAN, LAST)


class Pool(nn.Module):
    """Pools the states of a sequence into one vector.

    attention: sum_s a_s h_s with a = softmax(v^T tanh(W h_s + b)) (Bahdanau et al. 2015, appendix
      A.1.2, without a query; Jain and Wallace 2019, section 2).
    mean: the same with equal weights.
    last: the last state; for a bidirectional body, the forward half of the last state and the
      backward half of the first.
    class_token: the state of the learned token prepended to the sequence.

    Attributes:
      kind: one of `POOLINGS`.
      width: N, width of the states.
      init_stddev: initial standard deviation of the matrix; 0: 1 / sqrt(N).
      bidirectional: whether the states are those of a bidirectional network.
    """

    kind: str
    width: int
    init_stddev: float
    bidirectional: bool

    def setup(self) -> None:
        if self.kind == ATTENTION:
            n, init = self.width, matrix_init(self.init_stddev)
            self.matrix = self.param("matrix", init, (n, n))
            self.bias = self.param("matrix_bias", nn.initializers.zeros, (n,))
            self.vector = self.param("vector", nn.initializers.normal(n**-0.5), (n,))

    def __call__(
        self, states: Float[Array, "B T N"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B N"]:
        """Returns one vector per sequence; `valid` is False at padding."""
        if self.kind == CLASS_TOKEN:
            return states[:, 0]
        if self.kind == LAST:
            return self._ends(states, valid)
        return self.weighted_sum(self.weights(states, valid), states)

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
