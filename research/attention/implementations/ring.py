"""Exact attention over a sequence sharded over devices, with memory linear in length / devices.

Every device holds the queries, keys and values of some positions. Either keys and values rotate
around the ring of devices, one hop per round, while each device computes with those it holds (Liu
et al. 2023, "Ring Attention with Blockwise Transformers", section 3); or each device gathers all of
them (Llama Team 2024, Llama 3, section 3.3.2), which is the implementation "gather". `rounds` plans
the blocks of scores that a device computes in each round; `flash` and `flash_backward` have the
loops over them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Integer

from research.attention.errors import Unsupported
from research.attention.implementations import (
    blockwise,
    flash,
    flash_backward,
    ring_schedule,
    sharding,
)
from research.attention.implementations.blocks import Visits, cut_into_blocks, join_blocks, take
from research.attention.implementations.ring_schedule import Layout, Rounds
from research.attention.implementations.sharding import CONTEXT, DATA, MODEL
from research.attention.parts.masks import Mask
from research.attention.parts.mechanism import PLAIN, Mechanism


def unsupported_part(mechanism: Mechanism) -> str:
    """Returns the part of the mechanism that a ring cannot compute; empty if none."""
    return "content-dependent parts" if mechanism.has_content else flash.unsupported_part(mechanism)


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: Mechanism = PLAIN,
    *,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
    block_size: int = 0,
    gathered: bool = False,
) -> Float[Array, "B T H Dv"]:
    """Computes the same as `dense.attend`, T and S sharded over the mesh axis "context".

    Arguments and errors are those of `blockwise.attend`, which runs if that axis has size 1 or
    there is no mesh. Lengths need not be multiples of the number of devices. The batch is sharded
    over "data" and the heads over "model" where they divide evenly.

    Args:
      q: as in `blockwise.attend`, like all arguments not described here.
      k: keys.
      v: values.
      mechanism: the attention mechanism; its float leaves get gradients.
      q_index: absolute positions of the queries; 0 .. T-1 if None.
      kv_index: absolute positions of the keys; 0 .. S-1 if None.
      block_size: queries and keys per block; 0 chooses. Does not affect the result.
      gathered: whether each device gathers all keys and values instead of passing them on.
    """
    if missing := unsupported_part(mechanism):
        raise Unsupported(f"ring attention lacks {missing}; use implementation 'gather'")
    shards = sharding.context_size()
    if shards == 1:
        at = {"q_index": q_index, "kv_index": kv_index}
        return blockwise.attend(q, k, v, mechanism, **at, block_size=block_size)
    (b, t, h, _), s, out_dtype = q.shape, k.shape[1], q.dtype
    q, k = mechanism.score.as_dot(q, k)  # ty: ignore[not-iterable]  # checked by unsupported_part()
    k, v = (sharding.repeat_key_heads(x, h) for x in (k, v))
    blocks = (block_size or flash.Q_BLOCK, block_size or flash.KV_BLOCK)
    found = ring_schedule.schedule(
        mechanism.mask, q_index, kv_index, (t, s), blocks, shards, gathered
    )
    parts, extra = flash.split_mechanism(mechanism, h)
    axes = _Axes(sharding.usable_axis(DATA, b), sharding.usable_axis(MODEL, h, k.shape[2]))
    plan = _Plan(found.rounds, found.queries, found.keys, axes, h)
    q = _lengthen(q, found.queries)
    k, v = (_lengthen(x, found.keys) for x in (k, v))
    tables = _Tables(*(jax.tree.map(jnp.asarray, x) for x in found[3:]))
    parts, mask = (jax.tree.map(jnp.asarray, x) for x in (parts, mechanism.mask))
    return _core(plan, q, k, v, parts, extra, mask, tables)[:, :t].astype(out_dtype)


class _Axes(NamedTuple):
    """The mesh axes that batch and heads are sharded over, or None."""

    batch: str | None
    heads: str | None


class _Plan(NamedTuple):
    """The static part of the problem; `heads` is H over all devices together."""

    rounds: Rounds
    queries: Layout
    keys: Layout
    axes: _Axes
    heads: int


class _Tables(NamedTuple):
    """The tables of a `Schedule`, as JAX arrays."""

    rows: Array
    columns: Array
    real: Array
    by_row: Visits
    by_column: Visits


def _lengthen(x: Array, layout: Layout) -> Array:
    return jnp.pad(x, ((0, 0), (0, layout.length - x.shape[1]), (0, 0), (0, 0)))


def _specs(plan: _Plan, parts: flash.BlockFunctions, extra: Any, mask: Mask, batch: int):
    """Returns the partition specs of (B, N, H, D) arrays, of arrays in blocks, and of the rest."""
    batch_axis, heads_axis = plan.axes
    by_head = jax.tree.map(
        lambda x: PartitionSpec(heads_axis) if x.shape[:1] == (plan.heads,) else PartitionSpec(),
        (parts.normalizer, extra),
    )
    everywhere = jax.tree.map(lambda x: PartitionSpec(), parts.biases)
    split = tuple(axis for axis in plan.axes if axis)
    tokens = PartitionSpec(batch_axis, CONTEXT, heads_axis)
    blocks = PartitionSpec(CONTEXT, split or None)
    others = flash.BlockFunctions(everywhere, by_head[0]), by_head[1]
    return tokens, blocks, *others, sharding.mask_specs(mask, batch, batch_axis)


class _Device(NamedTuple):
    """One device's share: its index in the ring, the static shape, and the problem of a round."""

    number: Array
    shape: flash.Shape
    problem: Any


def _device(plan: _Plan, batch: int, heads: tuple[int, int], parts, mask, tables) -> _Device:
    number = lax.axis_index(CONTEXT)
    shape = flash.Shape(batch, *heads, plan.queries.block, plan.keys.block)
    first_head = 0 if plan.axes.heads is None else lax.axis_index(MODEL) * heads[0]
    head = first_head + jnp.arange(heads[0])[:, None, None]

    def problem(n):
        # Gathered keys have a single table, so the modulus is 1.
        source = (number - plan.rounds.first - n) % len(tables.columns)
        columns, real = take(tables.columns, source), take(tables.real, source)
        index = flash.Index(take(tables.rows, number), columns, real, head)
        return flash.Problem(parts, mask, index)

    return _Device(number, shape, problem)


def _visits(device: _Device, visits: Visits, n: Any) -> Visits:
    return Visits(*(take(take(x, n), device.number) for x in visits))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _core(plan, q, k, v, parts, extra, mask, tables):
    """Computes attention of (B, N, H, D) arrays, N padded to the lengths of the plan's layouts."""
    return _forward(plan, q, k, v, parts, extra, mask, tables)[0]


def _forward(plan, q, k, v, parts, extra, mask, tables):
    tokens, blocks, parts_spec, extra_spec, mask_spec = _specs(plan, parts, extra, mask, len(q))
    none = PartitionSpec()

    def local(q, k, v, parts, extra, mask, tables):
        (batch, length, heads, _), kv_heads = q.shape, k.shape[2]
        device = _device(plan, batch, (heads, kv_heads), parts, mask, tables)
        q = _cut(plan.queries, q, kv_heads)
        k, v = (_cut(plan.keys, x, kv_heads) for x in (k, v))

        def step(n, statistics, keys):
            visits = _visits(device, tables.by_row, n)
            return flash.forward(device.shape, q, *keys, device.problem(n), visits, statistics)

        statistics = _around(
            plan, step, flash.initial_statistics(device.shape, q, v, extra), (k, v)
        )
        out, log_sum_exp = flash.normalized_output(statistics, v.dtype)
        layout = plan.queries
        out = join_blocks(out, batch, heads, layout.block, length, layout.pieces)
        return _natural(layout, out), (q, k, v, log_sum_exp)

    specs = (tokens, tokens, tokens, parts_spec, extra_spec, mask_spec, none)
    run = sharding.shard_map_over_mesh(local, specs, (tokens, blocks))
    out, (*arrays, log_sum_exp) = run(q, k, v, parts, extra, mask, tables)
    out, log_sum_exp = flash.named((out, log_sum_exp))
    return out, (*arrays, parts, extra, mask, tables, out, log_sum_exp)


def _backward(plan, saved, grad):
    q, k, v, parts, extra, mask, tables, out, log_sum_exp = saved
    delta = jnp.sum(grad.astype(log_sum_exp.dtype) * out, -1, keepdims=True)
    tokens, blocks, parts_spec, extra_spec, mask_spec = _specs(plan, parts, extra, mask, len(grad))
    leaves, rebuild = flash_backward.float_leaves(parts)
    leaf_specs = jax.tree.leaves(parts_spec, is_leaf=lambda x: isinstance(x, PartitionSpec))
    is_float = [jnp.issubdtype(x.dtype, jnp.inexact) for x in jax.tree.leaves(parts)]
    leaf_specs = [spec for spec, yes in zip(leaf_specs, is_float, strict=True) if yes]
    none = PartitionSpec()

    def local(q, k, v, grad, log_sum_exp, delta, parts, extra, mask, tables):
        batch, length, heads, _ = grad.shape
        kv_heads = q.shape[1] // batch
        device = _device(plan, batch, (heads, kv_heads), parts, mask, tables)
        grad, delta = (_cut(plan.queries, x, kv_heads) for x in (grad, delta))
        rows = flash_backward.Rows(grad, log_sum_exp, delta[..., 0])

        def step(n, sums, keys):
            visits = _visits(device, tables.by_column, n)
            return flash_backward.backward(
                device.shape, q, *keys, device.problem(n), visits, rows, sums
            )

        sums, dk, dv = _around_and_back(plan, step, flash_backward.zero_gradients(q, parts), (k, v))
        dq = jnp.swapaxes(sums.q, -1, -2).astype(q.dtype)
        dq = _whole(plan.queries, dq, batch, heads, length)
        length = plan.keys.length // plan.keys.shards
        dk, dv = (
            _whole(plan.keys, dx.astype(x.dtype), batch, kv_heads, length)
            for dx, x in ((dk, k), (dv, v))
        )
        dextra = None if extra is None else flash_backward.extra_gradient(device.shape, extra, rows)
        return dq, dk, dv, *_summed(plan, sums.leaves, leaf_specs, dextra, extra_spec)

    specs = (*[blocks] * 3, tokens, blocks, tokens, parts_spec, extra_spec, mask_spec, none)
    run = sharding.shard_map_over_mesh(local, specs, (*[tokens] * 3, leaf_specs, extra_spec))
    dq, dk, dv, dleaves, dextra = run(q, k, v, grad, log_sum_exp, delta, parts, extra, mask, tables)
    dleaves = [g.astype(x.dtype) for g, x in zip(dleaves, leaves, strict=True)]
    dextra = None if extra is None else dextra.astype(extra.dtype)
    rest = jax.tree.map(flash_backward.zero_cotangent, (mask, tables))
    return dq, dk, dv, rebuild(dleaves, flash_backward.zero_cotangent), dextra, *rest


_core.defvjp(_forward, _backward)


def _summed(plan, dleaves, leaf_specs, dextra, extra_spec):
    """Sums gradients over the devices that hold copies of the same parameter."""
    used = (plan.axes.batch, CONTEXT, plan.axes.heads)

    def add(x, spec):
        return lax.psum(x, tuple(axis for axis in used if axis and axis not in spec))

    total = [add(x, spec) for x, spec in zip(dleaves, leaf_specs, strict=True)]
    return total, None if dextra is None else add(dextra, extra_spec)


def _around(plan: _Plan, step: Any, carry: Any, keys: Any) -> Any:
    """Runs `carry = step(n, carry, keys)` for every round n, passing the keys on in between."""

    def one(state, n):
        carry, keys = state
        # Sent before the step, which does not depend on it, so that the transfer can overlap.
        following = [_shifted(plan, x, 1) for x in keys]
        return (step(n, carry, keys), following), None

    keys, last = [_fetched(plan, x) for x in keys], plan.rounds.count - 1
    if last:
        (carry, keys), _ = lax.scan(one, (carry, keys), jnp.arange(last))
    return step(last, carry, keys)


def _around_and_back(plan: _Plan, step: Any, sums: Any, keys: Any) -> Any:
    """Runs `_around` with gradients of the keys, which travel with the keys and return at the end.

    `step(n, sums, keys)` returns the new sums and the increments of the keys' gradients.
    """

    def one(n, carry, keys):
        sums, moving = carry
        # The gradients accumulated so far, from the device that held these keys before. The step
        # does not depend on them, so this transfer can overlap too.
        moving = [_shifted(plan, x, 1) for x in moving]
        sums, *found = step(n, sums, keys)
        return sums, [x + y for x, y in zip(moving, found, strict=True)] if moving else found

    several, dtype = plan.rounds.count > 1, sums.q.dtype
    moving = [jnp.zeros(x.shape, dtype) for x in keys] if several else []
    sums, found = _around(plan, one, (sums, moving), keys)
    return sums, *(_returned(plan, x) for x in found)


def _fetched(plan: _Plan, x: Array) -> Array:
    """Returns the keys or values that this device uses in the first round."""
    if plan.rounds.gathered:
        return lax.all_gather(x, CONTEXT, axis=0, tiled=True)
    return _shifted(plan, x, plan.rounds.first)


def _returned(plan: _Plan, x: Array) -> Array:
    """Sends gradients after the last round back to the devices that own the keys."""
    if plan.rounds.gathered:
        return lax.psum_scatter(x, CONTEXT, scatter_dimension=0, tiled=True)
    return _shifted(plan, x, -(plan.rounds.first + plan.rounds.count - 1))


def _shifted(plan: _Plan, x: Array, distance: int) -> Array:
    """Sends each device's x to the device `distance` further along the ring."""
    shards = plan.queries.shards
    if distance % shards == 0:
        return x
    return lax.ppermute(x, CONTEXT, [(i, (i + distance) % shards) for i in range(shards)])


def _cut(layout: Layout, x: Array, kv_heads: int) -> Array:
    """Cuts x, in natural order, into blocks in the order of the layout."""
    return cut_into_blocks(_traded(layout, x), kv_heads, layout.block, layout.pieces)


def _whole(layout: Layout, x: Array, batch: int, heads: int, length: int) -> Array:
    """Inverts `_cut`."""
    x = join_blocks(x, batch, heads, layout.block, length, layout.pieces)
    return _natural(layout, x)


def _trades(layout: Layout) -> list[list[tuple[int, int]]]:
    """Returns the (source, destination) pairs of the first and of the second half of each piece.

    Device i holds halves 2 i and 2 i + 1 of the 2 n halves of a sequence, and needs halves i and
    2 n - 1 - i. One of these is even, hence a first half, and the other is odd.
    """
    owner = {int(half): i for i, halves in enumerate(layout.shard_pieces) for half in halves}
    return [[(i, owner[2 * i + odd]) for i in range(layout.shards)] for odd in (0, 1)]


def _traded(layout: Layout, x: Array) -> Array:
    """Permutes (B, N, ...) from natural to zigzag order."""
    if layout.pieces == 1:
        return x
    halves = zip(jnp.split(x, 2, axis=1), _trades(layout), strict=True)
    even, odd = (lax.ppermute(half, CONTEXT, trade) for half, trade in halves)
    return jnp.concatenate(_swapped(even, odd), axis=1)


def _natural(layout: Layout, x: Array) -> Array:
    """Inverts `_traded`."""
    if layout.pieces == 1:
        return x
    halves = zip(_swapped(*jnp.split(x, 2, axis=1)), _trades(layout), strict=True)
    back = [lax.ppermute(half, CONTEXT, [(j, i) for i, j in trade]) for half, trade in halves]
    return jnp.concatenate(back, axis=1)


def _swapped(first: Array, second: Array) -> tuple[Array, Array]:
    """Swaps the two halves on devices of odd index, whose earlier half is the odd one."""
    odd = lax.axis_index(CONTEXT) % 2 == 1
    return jnp.where(odd, second, first), jnp.where(odd, first, second)
