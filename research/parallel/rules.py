"""Sharding rules: one table for all models that maps logical axes of arrays to axes of the mesh.

Models and mixers name the axes of their parameters; the rules do not depend on their meaning.
"""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, PartitionSpec

from research.parallel.layout import AXES

RULES = {
    "member": "member",
    "batch": "data",
    "length": "context",
    "heads": "model",
    "kv_heads": "model",
    "feedforward": "model",
    "vocab": "model",
}
"""Logical axis -> mesh axis. Arrays are replicated along axes that are not listed."""

FSDP = {"width": "data"}
"""Additional rules under fsdp, for parameters with at least two axes besides member and layers."""


def partition_spec(
    axes: Sequence[str], shape: Sequence[int], sizes: dict[str, int], fsdp: bool = False
) -> PartitionSpec:
    """Returns the partition spec of an array.

    An axis is not split if the mesh axis does not divide its size, or if an earlier axis of the
    array already uses that mesh axis.

    Args:
      axes: logical name of each axis.
      shape: shape of the array.
      sizes: {mesh axis: number of devices}.
      fsdp: whether to add the rules of `FSDP`.
    """
    weights = [name for name in axes if name not in ("member", "layers")]
    rules = RULES | (FSDP if fsdp and len(weights) >= 2 else {})
    chosen: list[str | None] = []
    for name, size in zip(axes, shape, strict=True):
        axis = rules.get(name)
        free = axis is not None and axis not in chosen and sizes[axis] > 1
        chosen.append(axis if free and size % sizes[axis] == 0 else None)
    return PartitionSpec(*chosen)


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Returns x constrained to the sharding of the rules; unchanged without an active mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    # Inside pmap and shard_map, arrays are already local to one device and the axes differ.
    if mesh.axis_names != AXES or AxisType.Manual in mesh.axis_types or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, dict(mesh.shape)))
