"""Results of single test items: per-item sums of a task's metrics, and fingerprints of the items.

An item is a row of an evaluation batch: a sentence, a generated sequence, a window of a text. Items
that several runs share are a sample, and its error is part of the error of their results.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt

from research.tasks.task import Batch, Sums, Task


def sums_of_items(task: Task, outputs: Any, batch: Batch) -> dict[str, Sums]:
    """Returns the scalar metrics of each item, as sums (B,) that add up to those of the batch.

    Args:
      task: the task; its metrics are computed for batches of one item.
      outputs: the model's outputs; every leaf has a batch axis or is a scalar.
      batch: the batch.
    """

    def alone(tree: Any) -> Any:
        return jax.tree.map(lambda a: a[:, None] if a.ndim else a, tree)

    def one(outputs: Any, batch: Batch) -> dict[str, Sums]:
        sums = task.metrics(outputs, batch)
        return {name: s for name, s in sums.items() if s.total.ndim == 0}

    axes = jax.tree.map(lambda a: 0 if a.ndim else None, outputs)
    return jax.vmap(one, in_axes=(axes, 0))(alone(outputs), alone(batch))


def fingerprints(batch: Batch) -> UInt[Array, " B"]:
    """Returns a hash of the integers of each item, by which runs recognize items that they share.

    Padding (0 or -1) does not change it, so it does not depend on the bucket of an item.
    """
    found = jnp.zeros(len(batch["inputs"]), jnp.uint32)
    for index, name in enumerate(sorted(batch)):
        leaf = batch[name]
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            flat = leaf.reshape(len(leaf), -1)
            places = jnp.arange(1, flat.shape[1] + 1, dtype=jnp.uint32)
            mixed = _mix(flat.astype(jnp.uint32) ^ _mix(places + jnp.uint32(index << 20)))
            found += jnp.where(flat > 0, mixed, 0).sum(1, dtype=jnp.uint32)
    return found


def _mix(x: UInt[Array, "*b"]) -> UInt[Array, "*b"]:
    """Returns a bijective hash of 32 bits: the finalizer of MurmurHash3 (Appleby 2008)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
