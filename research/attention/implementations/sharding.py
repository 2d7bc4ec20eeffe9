"""How attention's arrays lie on the active mesh of devices, as far as attention has to know.

The axes are those of the whole project: "data" splits the batch, "context" the sequence, "model"
the heads. A mesh is active through `jax.set_mesh`; an axis that it lacks has size 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

DATA, CONTEXT, MODEL = "data", "context", "model"


def axis_sizes() -> dict[str, int]:
    """The axes of the active mesh that can still be split over, with their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    }


def context_size() -> int:
    """Over how many devices the sequence is split."""
    return axis_sizes().get(CONTEXT, 1)


def several() -> bool:
    """Whether there is anything to split over."""
    return any(size > 1 for size in axis_sizes().values())


def splits(axis: str, *counts: int) -> str | None:
    """The axis if it has several devices that divide each of the counts, else None."""
    size = axis_sizes().get(axis, 1)
    return axis if size > 1 and all(count % size == 0 for count in counts) else None


def manual(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`jax.shard_map` over the whole active mesh, of what replicates as its specs say it does."""
    axes = set(axis_sizes())
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False
    )


def enough_heads(x: Array, heads: int) -> Array:
    """Key heads (B, S, K, D) repeated as often as it takes to have one on every device of "model".

    The `heads` query heads find those that they share as before: the copies of one are
    neighbours. Nothing is repeated if that would not let the heads be split.
    """
    size = axis_sizes().get(MODEL, 1)
    if heads % size or size % x.shape[2]:
        return x
    return jnp.repeat(x, size // x.shape[2], axis=2)


def mask_specs(mask: Any, batch: int, axis: str | None) -> Any:
    """Specs of a mask's arrays: rows of the batch are split over `axis`, positions are not."""
    return jax.tree.map(
        lambda x: PartitionSpec(axis if x.ndim and x.shape[0] == batch else None), mask
    )
