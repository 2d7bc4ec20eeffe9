"""A linear recurrence over a sequence that is split over the axis "context" of the active mesh.

The recurrence S -> A S + b composes: the tokens of a device together are one such step. Each device
computes its own A and b, starting from nothing, gathers those of all, and runs the steps of the
devices before it to find the S that its first token meets. One gathering of n small states takes
one exchange where a scan in log n rounds takes as many that wait for each other; a state is as
large as the D keys of one head, so that it is small beside the tokens of a device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from research.attention.implementations import sharding
from research.attention.implementations.sharding import CONTEXT, DATA, MODEL


def over_context(
    form: Callable[..., Any], tokens: tuple[Any, ...], memory: Float[Array, "B H D Dv"]
) -> tuple[Float[Array, "B H D Dv"], Float[Array, "B T H Dv"]]:
    """`form(*tokens, memory)` on every device with the tokens that it has.

    The batch is split over "data" and the heads over "model" where they can be. Tokens of zeros,
    which have to leave the recurrence as it is, make the length a multiple of the devices.

    Args:
      form: returns S after the tokens of all devices, and the outputs of its own; see `scan`.
      tokens: arrays (B, T, H, ...) or None; B and H can be 1.
      memory: S before the first token.
    """
    size, length = sharding.context_size(), tokens[0].shape[1]
    batch, heads = memory.shape[:2]
    batch_axis, heads_axis = sharding.splits(DATA, batch), sharding.splits(MODEL, heads)

    def spec(x):
        over_batch = batch_axis if x.shape[0] == batch else None
        return PartitionSpec(over_batch, CONTEXT, heads_axis if x.shape[2] == heads else None)

    def whole(x):
        return jnp.pad(x, ((0, 0), (0, -length % size), *[(0, 0)] * (x.ndim - 2)))

    tokens = jax.tree.map(whole, tokens)
    state = PartitionSpec(batch_axis, heads_axis)
    out = PartitionSpec(batch_axis, CONTEXT, heads_axis)
    run = sharding.manual(form, (*jax.tree.map(spec, tokens), state), (state, out))
    memory, y = run(*tokens, memory)
    return memory, y[:, :length]


def scan(
    step: Callable[..., Any],
    memory: Float[Array, "B H D Dv"],
    chunks: Any,
    kept: Any,
    apply: Callable[[Any, Array], Array],
) -> tuple[Float[Array, "B H D Dv"], Any]:
    """`lax.scan(step, memory, chunks)` over the chunks of all devices, one after the other.

    Args:
      step: is affine in S.
      memory: S before the first chunk of the first device.
      chunks: of this device.
      kept: A of all of this device's chunks together.
      apply: `apply(kept, memory)` is A S.

    Returns:
      S after the last chunk of the last device, and what `step` gives for each chunk of this
      one.
    """
    added, _ = lax.scan(step, jnp.zeros_like(memory), chunks)
    gathered = jax.tree.map(_gathered, (kept, added))

    def pass_on(memory, device):
        kept, added = device
        return apply(kept, memory) + added, memory

    last, before = lax.scan(pass_on, memory, gathered)
    mine = lax.dynamic_index_in_dim(before, lax.axis_index(CONTEXT), keepdims=False)
    return last, lax.scan(step, mine, chunks)[1]


def _gathered(x: Array) -> Array:
    """Those of all devices, (n, ...).

    Tiled: JAX 0.10 cannot map the transpose of a gathering that makes a new axis.
    """
    return lax.all_gather(x[None], CONTEXT, axis=0, tiled=True)
