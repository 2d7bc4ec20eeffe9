"""FlashAttention's backward loop over blocks of queries and keys, in plain JAX.

It follows Dao 2023 (FlashAttention-2), algorithm 2. Arrays in blocks have the shapes described in
`flash`, whose forward loop saves what this one reads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from research.attention.implementations.blocks import Visits, take, visit
from research.attention.implementations.flash import (
    BlockFunctions,
    Problem,
    Shape,
    dot,
    extra_rows,
    finish_scores,
    numerator_and_summands,
    skip_empty,
)
from research.attention.parts.normalizers import Normalizer, Softpick


class Gradients(NamedTuple):
    """Gradients that accumulate over columns of keys and over backward passes.

    Attributes:
      q: of the queries, transposed: (rows, B*K, D, G*q_block).
      leaves: of the float leaves of the parts.
    """

    q: Array
    leaves: list[Array]


def zero_gradients(q: Array, parts: BlockFunctions) -> Gradients:
    """Returns zero gradients, float32 or wider, to start the first backward pass with."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    leaves = [
        jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in float_leaves(parts)[0]
    ]
    return Gradients(jnp.zeros(jnp.swapaxes(q, -1, -2).shape, dtype), leaves)


class Rows(NamedTuple):
    """Per-query inputs of a backward pass.

    Attributes:
      grad: gradient of the output, in blocks like q.
      log_sum_exp: log of the divisor from `normalized_output`, (rows, B*K, G*q_block).
      delta: dot products of grad and output, of the same shape.
    """

    grad: Array
    log_sum_exp: Array
    delta: Array


def backward(
    shape: Shape, q: Array, k: Array, v: Array, problem: Problem, visits: Visits, rows: Rows,
    sums: Gradients,
) -> tuple[Gradients, Array, Array]:  # fmt: skip
    """Runs FlashAttention-2, algorithm 2, column by column of blocks.

    `visits` lists the rows of each column. Returns `sums` plus the contribution of these keys, and
    the gradients of k and v, float32 or wider.
    """
    dtype = rows.log_sum_exp.dtype
    leaves, rebuild = float_leaves(problem.parts)

    def one_column(sums, column):
        key, value = take(k, column), take(v, column)
        key_transposed = jnp.swapaxes(key, -1, -2)

        def step(row, carry, masked):
            (dq, dleaves), dk, dv = carry

            def finish(raw, leaves):
                bound = problem._replace(parts=rebuild(leaves))
                raw = jnp.swapaxes(raw, 1, 2)
                scores = finish_scores(shape, raw, bound, row, column, masked)
                return jnp.swapaxes(scores, 1, 2)

            query, given = take(q, row), Rows(*(take(x, row) for x in rows))
            weights, draw, dleaf = _through_scores(
                query, key, value, given, finish, leaves, problem.parts.normalizer
            )
            dv = dv + dot("nkq,nqd->nkd", weights.astype(v.dtype), given.grad, dtype)
            dk = dk + dot("nkq,nqd->nkd", draw, query, dtype)
            dquery = take(dq, row) + dot("ndk,nkq->ndq", key_transposed, draw, dtype)
            dq = lax.dynamic_update_index_in_dim(dq, dquery, row, 0)
            dleaves = [total + part for total, part in zip(dleaves, dleaf, strict=True)]
            return Gradients(dq, dleaves), dk, dv

        step = skip_empty(step, problem, lambda row: (row, column))
        zeros = (jnp.zeros(key.shape, dtype), jnp.zeros(value.shape, dtype))
        sums, dk, dv = visit(visits, column, step, (sums, *zeros))
        return sums, (dk, dv)

    sums, (dk, dv) = lax.scan(one_column, sums, jnp.arange(k.shape[0]))
    return sums, dk, dv


def _through_scores(query, key, value, rows, finish, leaves, normalizer):
    """Returns the weights of a block and the gradients of its raw scores and of the leaves.

    Blocks of scores are transposed to (keys, queries). That way no product contracts the rows of
    its left operand, which XLA's CPU library computes at a third of its usual speed; the gradient
    of q is accumulated transposed for the same reason.
    """
    dtype = rows.log_sum_exp.dtype
    raw = dot("nkd,nqd->nkq", key, query, dtype)
    scores, pull = jax.vjp(finish, raw, leaves)
    dweights = dot("nkd,nqd->nkq", value, rows.grad, dtype)
    if normalizer is not None and normalizer.elementwise:
        weights, dscores = scores, dweights
    else:
        weights, dscores = _through_divisor(normalizer, scores, dweights, rows)
    draw, dleaves = pull(dscores)
    return weights, draw.astype(query.dtype), dleaves


def _through_divisor(
    normalizer: Normalizer | None, scores: Array, dweights: Array, rows: Rows
) -> tuple[Array, Array]:
    """Returns the weights of a block and the gradients of its scores, for what divides by a sum.

    Weights are recomputed from the saved logs of the divisors instead of stored. The Jacobian needs
    sum_k weights * dweights per row, which equals delta = grad . out.
    """
    log_sum, delta = rows.log_sum_exp[:, None], rows.delta[:, None]
    weights, _ = numerator_and_summands(normalizer, scores, log_sum)
    if not isinstance(normalizer, Softpick):
        return weights, weights * (dweights - delta)
    # Both max(exp(s) - 1, 0) and |exp(s) - 1| have slope exp(s) at s > 0; at s < 0, 0 and -exp(s).
    to_both = jnp.where(scores > 0, dweights, 0) - jnp.sign(scores) * delta
    return weights, jnp.exp(scores - log_sum) * to_both


def extra_gradient(shape: Shape, extra: Array, rows: Rows) -> Array:
    """Returns the gradient of the extra logits, (H,).

    An extra logit acts like a key whose value is 0, so dweights = 0 and each row contributes
    -weight * delta. Padding rows contribute nothing because their delta is 0.
    """
    weight = jnp.exp(extra_rows(shape, extra) - rows.log_sum_exp)
    group = shape.heads // shape.kv_heads
    by_row = (weight * rows.delta).reshape(-1, shape.batch, shape.kv_heads, group, shape.q_block)
    return -jnp.sum(by_row, (0, 1, 4)).reshape(extra.shape)


def float_leaves(tree: Any) -> tuple[list[Array], Callable[..., Any]]:
    """Returns the floating-point leaves of a tree, and a function that replaces them.

    `rebuild(new, rest)` returns the tree with these leaves replaced by `new`, and with `rest`
    applied to all other leaves.
    """
    leaves, structure = jax.tree.flatten(tree)
    at = [i for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]

    def rebuild(new: list[Array], rest: Callable[[Any], Any] = lambda x: x) -> Any:
        filled = dict(zip(at, new, strict=True))
        return structure.unflatten(
            [filled[i] if i in filled else rest(x) for i, x in enumerate(leaves)]
        )

    return [jnp.asarray(leaves[i]) for i in at], rebuild


def zero_cotangent(leaf: Any) -> Any:
    """Returns a zero cotangent for a leaf, as `custom_vjp` requires: float0 for integer leaves."""
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(jnp.shape(leaf), jax.dtypes.float0)
