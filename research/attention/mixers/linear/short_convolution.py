"""Short causal convolutions on projected queries, keys and values.

Recurrences with a fixed-size state are poor at comparing neighbouring tokens; a few taps per
channel let them compare a token with the ones just before it (Fu et al. 2023, H3, section 3.1, the
shift; Gu and Dao 2023, Mamba, figure 3).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from research.attention.implementations import sharding
from research.attention.implementations.sharding import CONTEXT, DATA, MODEL, context_size
from research.attention.parameters import Constant, Normal, Parameter, table_axes, vector_axes


def taps(length: int, channels: int, axis: str = "heads") -> Parameter:
    """Returns one filter per channel, (length, channels); its initialization keeps the variance.

    Args:
      length: N, the number of taps, at least 1.
      channels: C; for projected heads H D, with the heads outermost.
      axis: the logical axis of the channels.
    """
    return Parameter((length, channels), Normal(length**-0.5), table_axes("taps", axis, roles="oo"))


def apply(
    x: Float[Array, "B T C"],
    taps: Float[Array, "N C"],
    past: Float[Array, "B P C"],
    places: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B P C"]]:
    """Computes y[t] = sum_n taps[n] x[t - n] per channel, after P = N - 1 previous inputs.

    Args:
      x: the inputs.
      taps: the filters, newest input first; cast to the dtype of x.
      past: the inputs before x, oldest first; zeros before the first token.
      places: places of x in their segments, in which inputs of other segments count as zeros; None:
        all are one segment.

    Returns:
      y in the dtype of x, and the last P inputs in the dtype of `past`.

    Raises:
      ValueError: `past` does not hold N - 1 inputs.
    """
    count, length = taps.shape[0], x.shape[1]
    if past.shape[1] != count - 1:
        raise ValueError(f"past holds {past.shape[1]} inputs; {count} taps need {count - 1}")
    before, filters = past.astype(x.dtype), taps.astype(x.dtype)
    new = jnp.concatenate([before, x], axis=1)[:, length:].astype(past.dtype)
    devices = context_size()
    if devices > 1 and length % devices == 0 and count <= length // devices:
        return _over_context(x, filters, before, places), new
    return _filtered(x, filters, before, places), new


def _filtered(x, filters, before, places):
    count, length = filters.shape[0], x.shape[1]
    seen = jnp.concatenate([before, x], axis=1)

    def tap(n):
        y = filters[n] * lax.slice_in_dim(seen, count - 1 - n, count - 1 - n + length, axis=1)
        return y if places is None else jnp.where((places >= n)[..., None], y, 0)

    return functools.reduce(jnp.add, map(tap, range(count)))


def _over_context(x, filters, before, places):
    """Computes `_filtered` with each device receiving its previous inputs from its neighbour.

    Without `shard_map` the compiler moves whole sequences between devices for the gradient.
    """
    kept, devices = filters.shape[0] - 1, context_size()
    batch_axis = sharding.usable_axis(DATA, x.shape[0])
    channel_axis = sharding.usable_axis(MODEL, x.shape[2])

    def local(x, filters, before, places):
        last = lax.slice_in_dim(x, x.shape[1] - kept, x.shape[1], axis=1)
        last = lax.ppermute(last, CONTEXT, [(i, i + 1) for i in range(devices - 1)])
        before = jnp.where(lax.axis_index(CONTEXT) == 0, before, last)
        return _filtered(x, filters, before, places)

    tokens = P(batch_axis, CONTEXT, channel_axis)
    at = None if places is None else P(batch_axis, CONTEXT)
    specs = (tokens, P(None, channel_axis), P(batch_axis, None, channel_axis), at)
    return sharding.shard_map_over_mesh(local, specs, tokens)(x, filters, before, places)


def parameters(length: int, channels: dict[str, int]) -> dict[str, Parameter]:
    """Returns filters `{name}_taps` for each named projection; none if `length` is 0."""
    return {f"{name}_taps": taps(length, c) for name, c in channels.items() if length}


def biases(channels: dict[str, int]) -> dict[str, Parameter]:
    """Returns zeros `{name}_taps_bias` (C,), which `activate` adds to what the filters give."""
    return {
        f"{name}_taps_bias": Parameter((c,), Constant(0.0), vector_axes("heads"))
        for name, c in channels.items()
    }


def init_past(length: int, channels: dict[str, int], batch: int, dtype: Any) -> dict[str, Array]:
    """Returns zero inputs before the first token, (batch, length - 1, C) by name.

    There are none if `length` is 0.
    """
    return {
        name: jnp.zeros((batch, length - 1, c), dtype) for name, c in channels.items() if length
    }


def activate(
    params: dict[str, Array],
    past: dict[str, Array],
    heads: dict[str, Array],
    places: Int[Array, "B T"] | None = None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Applies convolution and SiLU to the named projections (Yang et al. 2024, DeltaNet, sec. 3.3).

    Args:
      params: contains `{name}_taps`, (N, H D), and `{name}_taps_bias`, (H D,), if there are biases.
      past: previous inputs by name, as from `init_past`. Heads not named in it pass unchanged.
      heads: projections by name, (B, T, H, D).
      places: places of the tokens in their segments; None: all are one segment.

    Returns:
      The heads and the new past.
    """
    new = {}
    for name, before in past.items():
        x = heads[name]
        flat, filters = x.reshape(*x.shape[:2], -1), params[f"{name}_taps"]
        y, new[name] = apply(flat, filters, before, places)
        bias = params.get(f"{name}_taps_bias")
        y = y if bias is None else y + bias.astype(y.dtype)
        heads = {**heads, name: jax.nn.silu(y).reshape(x.shape)}
    return heads, new
