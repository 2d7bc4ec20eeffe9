"""Exact attention in blocks, in plain JAX, with memory linear in length in both passes.

Queries and keys are cut into blocks. `Mask.classify_blocks` classifies the grid of block pairs
while tracing: forbidden pairs are never visited, and pairs that are allowed entirely skip the mask.
Only the output and each row's log of summed exponentials are saved for the backward pass. `flash`
and `flash_backward` have the loops.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.errors import Unsupported
from research.attention.implementations import flash, flash_backward
from research.attention.implementations.blocks import (
    cut_into_blocks,
    index_blocks,
    join_blocks,
    plan,
)
from research.attention.implementations.flash import unsupported_part
from research.attention.parts.content_dependent import cut_tree_into_blocks
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
    """Computes the same as `dense.attend`, in memory linear in T and S.

    Args:
      q: as in `dense.attend`, like all arguments not described here.
      k: keys.
      v: values.
      mechanism: the attention mechanism; its float leaves get gradients.
      q_index: absolute positions of the queries; 0 .. T-1 if None. Blocks are skipped only where
        positions are known while tracing.
      kv_index: absolute positions of the keys; 0 .. S-1 if None.
      block_size: queries and keys per block; 0 chooses. Does not affect the result.

    Returns:
      (B, T, H, Dv) in the dtype of q. A query with no allowed key gets zeros. It can be
      differentiated once, in reverse mode.

    Raises:
      Unsupported: the score has no dot form, or the normalizer is neither of the softmax family
        nor element-wise.
    """
    if missing := unsupported_part(mechanism):
        raise Unsupported(f"blockwise attention lacks {missing}; use implementation 'dense'")
    if mechanism.has_content:
        mechanism = mechanism.evaluate(q, k, q_index, kv_index)
    (b, t, h, _), (s, kv_heads) = q.shape, k.shape[1:3]
    out_dtype = q.dtype
    q, k = mechanism.score.as_dot(q, k)  # ty: ignore[not-iterable]  # checked by unsupported_part()
    q_block, kv_block = min(block_size or flash.Q_BLOCK, t), min(block_size or flash.KV_BLOCK, s)
    shape = flash.Shape(b, h, kv_heads, q_block, kv_block)
    rows, columns = index_blocks(q_index, t, q_block), index_blocks(kv_index, s, kv_block)
    real = index_blocks(None, s, kv_block, pad=-1) >= 0
    visits = plan(mechanism.mask, rows, columns, real)
    heads = np.arange(h)[:, None, None]
    index = flash.Index(*(jnp.asarray(x) for x in (rows, columns, real, heads)))
    parts, extra = flash.split_mechanism(mechanism, h)
    parts, mask = cut_tree_into_blocks((parts, mechanism.mask), q_block, kv_block)
    problem = flash.Problem(parts, mask, index)
    blocks = (
        cut_into_blocks(q, kv_heads, q_block),
        *(cut_into_blocks(x, kv_heads, kv_block) for x in (k, v)),
    )
    out = _core(shape, *blocks, problem, extra, visits)
    return join_blocks(out, b, h, q_block, t).astype(out_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _core(shape, q, k, v, problem, extra, visits):
    """Computes attention of arrays in blocks; shapes as described in `flash`.

    The custom vjp recomputes scores block by block; differentiating the loops would store them all.
    """
    return _forward(shape, q, k, v, problem, extra, visits)[0]


def _forward(shape, q, k, v, problem, extra, visits):
    statistics = flash.initial_statistics(shape, q, v, extra)
    statistics = flash.forward(shape, q, k, v, problem, visits[0], statistics)
    out, log_sum_exp = flash.named(flash.normalized_output(statistics, v.dtype))
    return out, (q, k, v, problem, extra, visits, out, log_sum_exp)


def _backward(shape, saved, grad):
    q, k, v, problem, extra, visits, out, log_sum_exp = saved
    rows = flash_backward.Rows(grad, log_sum_exp, jnp.sum(grad.astype(log_sum_exp.dtype) * out, -1))
    leaves, rebuild = flash_backward.float_leaves(problem.parts)
    sums = flash_backward.zero_gradients(q, problem.parts)
    sums, dk, dv = flash_backward.backward(shape, q, k, v, problem, visits[1], rows, sums)
    dleaves = [g.astype(x.dtype) for g, x in zip(sums.leaves, leaves, strict=True)]
    dextra = None
    if extra is not None:
        dextra = flash_backward.extra_gradient(shape, extra, rows).astype(extra.dtype)
    rest = jax.tree.map(flash_backward.zero_cotangent, problem)
    dproblem = rest._replace(parts=rebuild(dleaves, flash_backward.zero_cotangent))
    dq = jnp.swapaxes(sums.q, -1, -2).astype(q.dtype)
    dvisits: Any = jax.tree.map(flash_backward.zero_cotangent, visits)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), dproblem, dextra, dvisits


_core.defvjp(_forward, _backward)
