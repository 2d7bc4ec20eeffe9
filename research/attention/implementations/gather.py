"""Attention over a sequence that is split over devices, each of which gathers all keys and values.

Llama Team 2024, Llama 3, section 3.3.2: with few key heads the keys are small beside the work, and
any mask is a matter of one device. Memory is linear in the length of the keys; queries, outputs and
scores are split.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Integer

from research.attention.implementations import dense, ring, sharding
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
    """The same function as `dense.attend`, of queries split over the axis "context" of the mesh.

    Arguments and result are those of `dense.attend`. What can be computed in blocks is, in blocks
    of `block_size`; of the rest each device has all scores of its queries.
    """
    at: dict[str, Any] = {"q_index": q_index, "kv_index": kv_index}
    if not ring.lacks(mechanism):
        return ring.attend(q, k, v, mechanism, **at, block_size=block_size, gathered=True)
    shards = sharding.context_size()
    if shards == 1 or q.shape[1] % shards or k.shape[1] % shards:
        return dense.attend(q, k, v, mechanism, **at)
    # The compiler follows the queries: any mechanism, and no list of what its arrays are.
    split = functools.partial(jax.lax.with_sharding_constraint, shardings=_along(CONTEXT))
    return split(dense.attend(split(q), _gathered(k), _gathered(v), mechanism, **at))


def _along(axis: str | None) -> PartitionSpec:
    """The sequence of (B, N, H, D) over this axis, the rest as it comes."""
    free = PartitionSpec.UNCONSTRAINED
    return PartitionSpec(free, axis, free, free)


@jax.custom_vjp
def _gathered(x: Array) -> Array:
    """x on every device of "context"; its gradient is added up and split in one go.

    The transpose of a constraint is the same constraint, which would add it up everywhere.
    """
    return jax.lax.with_sharding_constraint(x, _along(None))


_gathered.defvjp(
    lambda x: (_gathered(x), None),
    lambda _, grad: (jax.lax.with_sharding_constraint(grad, _along(CONTEXT)),),
)
