"""Attention rollout and attention flow: attribution to the inputs through all layers.

Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers". Both methods model a layer as
a mixture of its attention weights and the identity of the residual connection.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from research.errors import UserError, check_name

_OVER_HEADS = {"mean": jnp.mean, "max": jnp.max, "min": jnp.min}

# scipy's maximum_flow needs int32 capacities; the capacities leaving a node sum to about this.
_SCALE = 2**24


@functools.partial(jax.jit, static_argnames=("residual", "heads"))
def layer_weights(
    weights: Float[Array, "*b H S S"], residual: float = 0.5, heads: str = "mean"
) -> Float[Array, "*b S S"]:
    """Returns one matrix per layer that combines its heads and residual connection; rows sum to 1.

    Abnar and Zuidema 2020, section 3: 0.5 W + 0.5 I, where W is the mean over heads. W is divided
    by its row sums first, which changes it for "max" and "min" over heads. A row without weight
    (all 0, or NaN because everything was masked) becomes a row of the identity.

    Args:
      weights: self-attention weights, from queries (second to last axis) to keys.
      residual: weight of the residual connection, 0 to 1.
      heads: how to reduce over heads, "mean", "max" or "min".

    Raises UserError for another residual or name.
    """
    check_name("heads", heads, _OVER_HEADS)
    if not 0 <= residual <= 1:
        raise UserError(f"residual={residual} must be from 0 to 1.")
    weights = jnp.nan_to_num(jnp.asarray(weights, jnp.float32))
    one = _OVER_HEADS[heads](weights, axis=-3)
    total = one.sum(-1, keepdims=True)
    own = jnp.eye(one.shape[-1], dtype=jnp.float32)
    # The inner where keeps the unused branch finite, so that its gradient is not NaN.
    read = jnp.where(total > 0, one / jnp.where(total > 0, total, 1), own)
    return (1 - residual) * read + residual * own


@functools.partial(jax.jit, static_argnames=("residual", "heads"))
def rollout(
    weights: Float[Array, "L B H S S"], residual: float = 0.5, heads: str = "mean"
) -> Float[Array, "L B S S"]:
    """Returns attention rollout up to each layer: weights from positions to inputs; rows sum to 1.

    The product of `layer_weights` over the layers up to it: Abnar and Zuidema 2020, eq. 1.

    Args:
      weights: self-attention weights, from the first layer to the last.
      residual: weight of the residual connection, 0 to 1.
      heads: how to reduce over the heads of a layer, "mean", "max" or "min".
    """
    layers = layer_weights(weights, residual, heads)

    def through(below: Array, layer: Array) -> tuple[Array, Array]:
        above = layer @ below
        return above, above

    start = jnp.broadcast_to(jnp.eye(layers.shape[-1], dtype=jnp.float32), layers.shape[1:])
    return jax.lax.scan(through, start, layers)[1]


def flow(
    weights: Float[np.ndarray, "L H S S"],
    residual: float = 0.5,
    heads: str = "mean",
    outputs: Sequence[int] | None = None,
    inputs: Sequence[int] | None = None,
) -> Float[np.ndarray, "O I"]:
    """Returns attention flow: the maximum flow between each output position and each input.

    The nodes of the graph are the positions of each layer, its capacities are `layer_weights`:
    Abnar and Zuidema 2020, section 3. Rows do not sum to 1, as the flow to each input is maximized
    separately. Each of the S^2 pairs of an example is a separate problem, solved by scipy's
    `maximum_flow` with capacities rounded to multiples of 2^-24.

    Args:
      weights: self-attention weights of one example, from the first layer to the last.
      residual: weight of the residual connection, 0 to 1.
      heads: how to reduce over the heads of a layer, "mean", "max" or "min".
      outputs: positions of the last layer, the rows of the result; None: all S.
      inputs: input positions, the columns of the result; None: all S.
    """
    layers = np.asarray(layer_weights(weights, residual, heads))
    positions = layers.shape[-1]
    graph = _graph(layers)
    top = len(layers) * positions
    outputs = range(positions) if outputs is None else outputs
    inputs = range(positions) if inputs is None else inputs
    found = np.zeros((len(outputs), len(inputs)), np.float32)
    for row, output in enumerate(outputs):
        for column, entry in enumerate(inputs):
            found[row, column] = maximum_flow(graph, top + output, entry).flow_value / _SCALE
    return found


def _graph(layers: Float[np.ndarray, "L S S"]) -> csr_array:
    """Returns capacities from node (l + 1) S + t to node l S + s; nodes 0 to S - 1 are the inputs.

    Node l S + s is position s after l layers.
    """
    count, positions, _ = layers.shape
    layer, t, s = np.nonzero(layers)
    capacity = np.round(layers[layer, t, s] * _SCALE).astype(np.int32)
    above, below = (layer + 1) * positions + t, layer * positions + s
    nodes = (count + 1) * positions
    return csr_array((capacity, (above, below)), shape=(nodes, nodes))
