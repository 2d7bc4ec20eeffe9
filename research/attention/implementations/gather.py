"""Attention over a sharded sequence in which each device gathers all keys and values.

Source: Llama Team 2024, Llama 3, section 3.3.2. With few key heads, gathering the keys is cheap
compared to the computation, and every device can apply any mask locally. Memory is linear in the
length of the keys; queries, outputs and scores are sharded.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Integer

from research.attention.implementations import dense, flash, ring, sharding
from research.attention.implementations.sharding import CONTEXT
from research.attention.parts.mechanism import PLAIN, Mechanism


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: Mechanism = PLAIN,
    *,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
    block_size: int = 0,
) -> Float[Array, "B T H Dv"]:
    """Computes the same as `dense.attend`, with queries sharded over the mesh axis "context".

    Arguments and result are those of `dense.attend`. Mechanisms that `ring` supports are computed
    in blocks of `block_size`; for others each device materializes all scores of its queries.
    """
    at: dict[str, Any] = {"q_index": q_index, "kv_index": kv_index}
    if not ring.unsupported_part(mechanism):
        return ring.attend(q, k, v, mechanism, **at, block_size=block_size, gathered=True)
    shards = sharding.context_size()
    if shards == 1 or q.shape[1] % shards or k.shape[1] % shards:
        return flash.named(dense.attend(q, k, v, mechanism, **at))
    # A sharding constraint on the queries is enough: the compiler propagates it through any
    # mechanism, without specs for the mechanism's arrays.
    split = functools.partial(jax.lax.with_sharding_constraint, shardings=_along(CONTEXT))
    out = dense.attend(split(q), _gathered(k), _gathered(v), mechanism, **at)
    return flash.named(split(out))


def _along(axis: str | None) -> PartitionSpec:
    """Returns the spec of (B, N, H, D) with N sharded over `axis` and the rest unconstrained."""
    free = PartitionSpec.UNCONSTRAINED
    return PartitionSpec(free, axis, free, free)


@jax.custom_vjp
def _gathered(x: Array) -> Array:
    """Replicates x over "context"; its gradient is reduce-scattered.

    The transpose of a sharding constraint is the same constraint, which would all-reduce the
    gradient on every device. The custom vjp constrains the gradient to be sharded instead.
    """
    return jax.lax.with_sharding_constraint(x, _along(None))


_gathered.defvjp(
    lambda x: (_gathered(x), None),
    lambda _, grad: (jax.lax.with_sharding_constraint(grad, _along(CONTEXT)),),
)
