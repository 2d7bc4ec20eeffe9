"""Where attention runs: the platform, and the sharding of arrays over the active device mesh.

The mesh axes are those of the whole project: "data" shards the batch, "context" the sequence and
"model" the heads. `jax.set_mesh` activates a mesh; an axis that it lacks has size 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

DATA, CONTEXT, MODEL = "data", "context", "model"


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": that of `jax.default_device` if set, else JAX's default.

    It is what is known while tracing.
    """
    device = jax.config.jax_default_device  # ty: ignore[missing-attribute]
    if device is None:
        return jax.default_backend()
    name = device if isinstance(device, str) else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def axis_sizes() -> dict[str, int]:
    """Returns the sizes of the active mesh's axes that are not manual (inside `shard_map`) yet."""
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    }


def context_size() -> int:
    """Returns the number of devices that the sequence is sharded over."""
    return axis_sizes().get(CONTEXT, 1)


def is_sharded() -> bool:
    """Returns whether any axis of the mesh has more than one device."""
    return any(size > 1 for size in axis_sizes().values())


def usable_axis(axis: str, *counts: int) -> str | None:
    """Returns the axis if it has several devices and divides all counts evenly, else None."""
    size = axis_sizes().get(axis, 1)
    return axis if size > 1 and all(count % size == 0 for count in counts) else None


def shard_map_over_mesh(
    function: Callable[..., Any], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Wraps a function in `jax.shard_map` over the whole active mesh.

    `check_vma` is off: outputs are trusted to be replicated as `out_specs` says.
    """
    axes = set(axis_sizes())
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False
    )


def repeat_key_heads(x: Array, heads: int) -> Array:
    """Repeats key heads (B, S, K, D) until each device of the axis "model" has one.

    Copies of a head are adjacent, so each of the `heads` query heads is still grouped with its own
    key head. Returns x unchanged where repeating would not allow the heads to be sharded.
    """
    size = axis_sizes().get(MODEL, 1)
    if heads % size or size % x.shape[2]:
        return x
    return jnp.repeat(x, size // x.shape[2], axis=2)


def mask_specs(mask: Any, batch: int, axis: str | None) -> Any:
    """Returns partition specs of a mask's arrays: only the batch is sharded, over `axis`."""
    return jax.tree.map(
        lambda x: PartitionSpec(axis if x.ndim and x.shape[0] == batch else None), mask
    )
