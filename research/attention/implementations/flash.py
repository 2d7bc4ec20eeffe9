"""FlashAttention's forward loop over blocks of queries and keys, in plain JAX.

`blockwise` runs it once; `ring` runs it once per round, for the keys of each device. The online
softmax follows Milakov & Gimelshein 2018, algorithm 3; the loop follows Dao 2023
(FlashAttention-2), algorithm 1, and `flash_backward` has algorithm 2. Element-wise normalizers run
in the same loops without the running maximum and sum, and softpick with them.

Arrays in blocks: queries (rows, B*K, G*q_block, D) and keys (columns, B*K, kv_block, D), where the
G = H/K query heads of a group are rows of one matrix, so that their keys are not repeated.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from research.attention.implementations.blocks import Visits, take, visit
from research.attention.parts.biases import Bias, RowBias
from research.attention.parts.content_dependent import has_content, take_block
from research.attention.parts.masks import Mask, static
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.normalizers import (
    FORBIDDEN,
    Normalizer,
    Smoothed,
    Softmax,
    Softpick,
)

# The initial row maximum, above FORBIDDEN and below any real score. Forbidden keys then get weight
# exp(FORBIDDEN - LOWEST) = 0 even in rows without an allowed key, where FORBIDDEN as the maximum
# would give exp(0) = 1.
LOWEST = 0.1 * FORBIDDEN

# Measured on CPU: matrix products of this size run at full speed and their blocks fit the caches.
Q_BLOCK, KV_BLOCK = 256, 512


ATTENTION_OUT = "attention_out"
"""The name under which `jax.checkpoint` may keep what attention returns."""


class Shape(NamedTuple):
    """The static part of the problem."""

    batch: int
    heads: int
    kv_heads: int
    q_block: int
    kv_block: int


class Index(NamedTuple):
    """Positions of queries and keys, the keys that are not padding, and the heads' indices.

    Attributes:
      q: query positions, (rows, q_block).
      kv: key positions, (columns, kv_block).
      real: whether a key exists, (columns, kv_block); False for padding.
      head: index of each query head, (H, 1, 1).
    """

    q: Any
    kv: Any
    real: Any
    head: Any


class BlockFunctions(NamedTuple):
    """Functions applied to a block of raw scores: biases, then the normalizer.

    The normalizer is None for a softmax, otherwise `Softpick` or element-wise.
    """

    biases: tuple[Bias, ...]
    normalizer: Normalizer | None


class Problem(NamedTuple):
    """All inputs of the loops except queries, keys, values and visits."""

    parts: BlockFunctions
    mask: Mask
    index: Index


class Statistics(NamedTuple):
    """Running statistics of the online softmax, or softpick, over the keys visited so far.

    `row_max` and `row_sum` have no trailing axis of length 1, because a TPU would pad it to 128
    lanes.

    Attributes:
      row_max: running maximum of the scores, (rows, B*K, G*q_block).
      row_sum: sum of the divisor's summands over exp(row_max), of the same shape.
      out: values summed with their numerators over exp(row_max), (rows, B*K, G*q_block, Dv).
    """

    row_max: Array
    row_sum: Array
    out: Array


def unsupported_part(mechanism: Mechanism) -> str:
    """Returns the part of the mechanism that these loops cannot compute; empty if none."""
    if mechanism.focus is not None:
        return "a predicted window"
    summed = isinstance(mechanism.normalizer, (Softmax, Smoothed, Softpick))
    if not (summed or mechanism.normalizer.elementwise):
        return f"normalizer {mechanism.normalizer.name!r}"
    if not mechanism.score.has_dot_form:
        return f"score {type(mechanism.score).__name__} (it has no dot-product form)"
    if whole := [bias for bias in mechanism.biases if isinstance(bias, RowBias)]:
        return f"bias {type(whole[0]).__name__} (it needs whole rows of scores)"
    return ""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Sharpen(Bias):
    """score * by."""

    by: float = static()

    def __call__(self, score: Array, head: Any, q_index: Any, kv_index: Any) -> Array:
        return score * self.by


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _LogSigmoid(Bias):
    """log sigma(score); its softmax is sigma(score) normalized to a sum of 1."""

    def __call__(self, score: Array, head: Any, q_index: Any, kv_index: Any) -> Array:
        return jax.nn.log_sigmoid(score)


def split_mechanism(mechanism: Mechanism, heads: int) -> tuple[BlockFunctions, Array | None]:
    """Returns the `BlockFunctions` of a mechanism, and the normalizer's extra logit per head, (H,).

    The extra logit is None for a normalizer without one.
    """
    biases, normalizer = mechanism.biases, mechanism.normalizer
    extra = normalizer.extra_logit
    extra = None if extra is None else jnp.broadcast_to(extra, (heads,))
    if isinstance(normalizer, Softpick) or normalizer.elementwise:
        return BlockFunctions(biases, normalizer), extra
    if isinstance(normalizer, Smoothed):
        return BlockFunctions((*biases, _LogSigmoid()), None), extra
    if normalizer.sharpening != 1.0:  # ty: ignore[missing-attribute]  # it is a Softmax
        biases = (*biases, _Sharpen(normalizer.sharpening))  # ty: ignore[missing-attribute]
    return BlockFunctions(biases, None), extra


def numerator_and_summands(
    normalizer: Normalizer | None, scores: Array, shift: Array
) -> tuple[Array, Array]:
    """Returns the numerators of the weights and the divisor's summands, both over exp(shift)."""
    if isinstance(normalizer, Softpick):
        return normalizer.numerator_and_summands(scores, shift)
    weights = jnp.exp(scores - shift)
    return weights, weights


def dot(equation: str, x: Array, y: Array, dtype: Any) -> Array:
    """Returns the einsum of x and y, accumulated in this dtype."""
    return jnp.einsum(equation, x, y, preferred_element_type=dtype)


def finish_scores(shape, raw, problem, row, column, masked):
    """Applies biases, mask and element-wise normalizer to one block of raw scores (B*K, G*q, k).

    Returns the final scores, or the weights if the normalizer is element-wise.
    """
    (biases, normalizer), mask = take_block(problem[:2], row, column)
    index = problem.index
    elementwise = normalizer is not None and normalizer.elementwise
    if not biases and not masked and not elementwise:
        return raw
    scores = raw.reshape(shape.batch, shape.heads, shape.q_block, shape.kv_block)
    q_index, kv_index = take(index.q, row)[:, None], take(index.kv, column)[None, :]
    for bias in biases:
        scores = bias(scores, index.head, q_index, kv_index)
    allowed = mask(q_index, kv_index) & take(index.real, column) if masked else None
    if elementwise:
        scores, _ = normalizer.numerator_and_divisor(scores, allowed)
    elif allowed is not None:
        # Softpick gives a score of 0 neither weight nor a share of the divisor.
        scores = jnp.where(allowed, scores, 0 if isinstance(normalizer, Softpick) else FORBIDDEN)
    return scores.reshape(raw.shape)


def skip_empty(step, problem, place):
    """Wraps a step to skip blocks in which a content-dependent mask allows no pair.

    Such a mask is known only at run time, after the visits were planned. `place(i)` returns row and
    column of the visit i.
    """
    if not has_content(problem.mask):
        return step

    def careful(i, carry, masked):
        row, column = place(i)
        mask, index = take_block(problem.mask, row, column), problem.index
        allowed = mask(take(index.q, row)[:, None], take(index.kv, column)[None, :])
        return lax.cond(jnp.any(allowed), lambda c: step(i, c, masked), lambda c: c, carry)

    return careful


def extra_rows(shape: Shape, extra: Array) -> Array:
    """Returns the extra logit of each row of a block: (H,) -> (B*K, G*q_block)."""
    group = shape.heads // shape.kv_heads
    rows = jnp.broadcast_to(
        extra.reshape(shape.kv_heads, group, 1), (shape.batch, shape.kv_heads, group, shape.q_block)
    )
    return rows.reshape(shape.batch * shape.kv_heads, group * shape.q_block)


def named(out: Any) -> Any:
    """Returns arrays, under the name `ATTENTION_OUT`.

    A backward pass by hand reads the outputs and the logs of the softmax's sums, so keeping these
    spares all of the forward pass. Dense attention's reads the weights, and computes them again.
    """
    return checkpoint_name(out, ATTENTION_OUT)


def initial_statistics(shape: Shape, q: Array, v: Array, extra: Array | None) -> Statistics:
    """Returns the statistics before the first key.

    An extra logit counts as a key that was already visited, with a value vector of 0.
    """
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    zero = jnp.zeros(q.shape[:3], dtype)
    out = jnp.zeros((*q.shape[:3], v.shape[-1]), dtype)
    if extra is None:
        return Statistics(zero + LOWEST, zero, out)
    return Statistics(extra_rows(shape, extra) + zero, zero + 1, out)


def forward(
    shape: Shape,
    q: Array,
    k: Array,
    v: Array,
    problem: Problem,
    visits: Visits,
    statistics: Statistics,
) -> Statistics:
    """Runs FlashAttention-2, algorithm 1, row by row of blocks, and returns the statistics.

    `visits` lists the columns of each row; `statistics` are those of the keys visited before.
    """
    dtype = statistics.out.dtype

    def one_row(_, xs):
        row, query, before = xs

        def step(column, carry, masked):
            row_max, row_sum, out = carry
            scores = dot("nqd,nkd->nqk", query, take(k, column), dtype)
            scores = finish_scores(shape, scores, problem, row, column, masked)
            value = take(v, column)
            if problem.parts.normalizer is not None and problem.parts.normalizer.elementwise:
                out = out + dot("nqk,nkd->nqd", scores.astype(v.dtype), value, dtype)
                return Statistics(row_max, row_sum, out)
            # Sums so far are relative to the old maximum; `shrink` rescales them to the new one, so
            # that no exponential overflows.
            new_max = jnp.maximum(row_max, jnp.max(scores, -1))
            weights, summands = numerator_and_summands(
                problem.parts.normalizer, scores, new_max[..., None]
            )
            shrink = jnp.exp(row_max - new_max)
            row_sum = row_sum * shrink + jnp.sum(summands, -1)
            out = out * shrink[..., None] + dot(
                "nqk,nkd->nqd", weights.astype(v.dtype), value, dtype
            )
            return Statistics(new_max, row_sum, out)

        step = skip_empty(step, problem, lambda column: (row, column))
        return None, visit(visits, row, step, before)

    return lax.scan(one_row, None, (jnp.arange(q.shape[0]), q, statistics))[1]


def normalized_output(statistics: Statistics, dtype: Any) -> tuple[Array, Array]:
    """Returns the normalized output in this dtype, and the log of each row's divisor.

    Rows without an allowed key get zeros. The log is 0 for element-wise normalizers.
    """
    # Empty rows divide by 1, because 0 / 0 is NaN. Element-wise normalizers never add to `row_sum`,
    # so their output is left undivided by the same rule.
    empty = statistics.row_sum == 0
    row_sum = jnp.where(empty, 1, statistics.row_sum)
    out = (statistics.out / row_sum[..., None]).astype(dtype)
    return out, jnp.where(empty, 0, statistics.row_max + jnp.log(row_sum))
