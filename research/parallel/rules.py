"""Which logical axis of an array lies on which axis of the mesh: one table for all models.

Models and mixers name the axes of their parameters; nothing here knows what they are for.
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
"""Logical axis -> mesh axis. Axes that are not named here are on every device."""

FSDP = {"width": "data"}
"""What parameters with at least two such axes have in addition under fsdp."""


def spec(
    axes: Sequence[str], shape: Sequence[int], sizes: dict[str, int], fsdp: bool = False
) -> PartitionSpec:
    """Returns where an array lies.

    An axis whose size the mesh does not divide stays whole, and so does the second of two that
    would lie on the same mesh axis.

    Args:
      axes: a logical name for each axis.
      shape: its shape.
      sizes: {mesh axis: number of devices}.
      fsdp: adds the rules of `FSDP`.
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
    """Returns x, laid out over the active mesh by the rules; without one, x as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    # pmap and shard_map run with axes of their own, on arrays that are one device's already.
    if mesh.axis_names != AXES or AxisType.Manual in mesh.axis_types or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, dict(mesh.shape)))
