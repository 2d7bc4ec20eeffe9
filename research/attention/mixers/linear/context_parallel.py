"""Runs a linear recurrence over a sequence sharded over the mesh axis "context".

Steps S -> A S + b compose, so all tokens of a device together are one such step. Each device
computes its own A and b from a zero state, gathers those of all devices, and applies the steps of
the devices before it to find the S before its first token. One all-gather of n small states is a
single exchange, whereas a scan in log n rounds has log n exchanges that wait for each other. A
state is as large as D keys of a head, which is small compared to the tokens of a device.
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
    """Runs `form(*tokens, memory)` on every device, with its share of the tokens.

    The batch is sharded over "data" and the heads over "model" where they divide evenly. Tokens are
    zero-padded to a multiple of the number of devices, so zeros must not change the recurrence.

    Args:
      form: returns S after the tokens of all devices, and the outputs of its own tokens; see
        `scan`.
      tokens: arrays (B, T, H, ...) or None; B and H can be 1.
      memory: S before the first token.
    """
    size, length = sharding.context_size(), tokens[0].shape[1]
    batch, heads = memory.shape[:2]
    batch_axis, heads_axis = sharding.usable_axis(DATA, batch), sharding.usable_axis(MODEL, heads)

    def spec(x):
        over_batch = batch_axis if x.shape[0] == batch else None
        return PartitionSpec(over_batch, CONTEXT, heads_axis if x.shape[2] == heads else None)

    def whole(x):
        return jnp.pad(x, ((0, 0), (0, -length % size), *[(0, 0)] * (x.ndim - 2)))

    tokens = jax.tree.map(whole, tokens)
    state = PartitionSpec(batch_axis, heads_axis)
    out = PartitionSpec(batch_axis, CONTEXT, heads_axis)
    run = sharding.shard_map_over_mesh(form, (*jax.tree.map(spec, tokens), state), (state, out))
    memory, y = run(*tokens, memory)
    return memory, y[:, :length]


def scan(
    step: Callable[..., Any],
    memory: Float[Array, "B H D Dv"],
    chunks: Any,
    decay: Any,
    apply_decay: Callable[[Any, Array], Array],
) -> tuple[Float[Array, "B H D Dv"], Any]:
    """Computes `lax.scan(step, memory, chunks)` over the concatenated chunks of all devices.

    Args:
      step: affine in S.
      memory: S before the first chunk of the first device.
      chunks: the chunks of this device.
      decay: A for all chunks of this device together.
      apply_decay: `apply(kept, memory)` returns A S.

    Returns:
      S after the last chunk of the last device, and the outputs of `step` for the chunks of this
      device.
    """
    added, _ = lax.scan(step, jnp.zeros_like(memory), chunks)
    gathered = jax.tree.map(_gathered, (decay, added))

    def pass_on(memory, device):
        decay, added = device
        return apply_decay(decay, memory) + added, memory

    last, before = lax.scan(pass_on, memory, gathered)
    mine = lax.dynamic_index_in_dim(before, lax.axis_index(CONTEXT), keepdims=False)
    return last, lax.scan(step, mine, chunks)[1]


def _gathered(x: Array) -> Array:
    """Gathers x from all n devices: (n, ...).

    It is tiled over an added axis, because JAX 0.10 cannot vmap the transpose of an all-gather that
    creates a new axis.
    """
    return lax.all_gather(x[None], CONTEXT, axis=0, tiled=True)
