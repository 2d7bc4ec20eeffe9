"""Splash attention, JAX's Pallas kernel for TPUs, as an implementation.

The kernel skips blocks that the mask forbids, so the mask has to be known while tracing. Segments
and padding are exceptions, because the kernel compares segment ids at run time. On CPUs the kernel
is interpreted, which is correct but slow: good for tests only.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Integer

from research.attention.errors import Unsupported
from research.attention.implementations import sharding
from research.attention.implementations.flash import ATTENTION_OUT
from research.attention.implementations.sharding import CONTEXT, DATA, MODEL, platform
from research.attention.parts.biases import Softcap
from research.attention.parts.masks import Padding, conjuncts
from research.attention.parts.mechanism import PLAIN, Mechanism
from research.attention.parts.normalizers import Softmax
from research.attention.parts.segments import Segments

# Lengths are padded to a multiple of the smallest. Larger blocks reuse loaded data more often.
BLOCKS = (512, 256, 128)
DTYPES = ("bfloat16", "float32")


class SegmentIds(NamedTuple):
    """Segment ids that the kernel compares: (T,) and (S,) integers."""

    q: Any
    kv: Any


def unsupported_part(mechanism: Mechanism) -> str:
    """Returns the part of the mechanism that splash cannot compute; empty if none."""
    if mechanism.focus is not None:
        return "a predicted window"
    if mechanism.has_content:
        return "content-dependent parts"
    if not isinstance(mechanism.normalizer, Softmax):
        return f"normalizer {mechanism.normalizer.name!r}"
    if not mechanism.score.has_dot_form:
        return f"score {type(mechanism.score).__name__} (it has no dot-product form)"
    for bias in mechanism.biases:
        if type(bias) is not Softcap or len(mechanism.biases) > 1:
            return f"bias {type(bias).__name__} (it has one cap, and no other bias)"
        if not isinstance(bias.cap, int | float):
            return "a cap that is an array"
    arrays = [type(part) for part in conjuncts(mechanism.mask) if jax.tree.leaves(part)]
    if len(arrays) > 1 or any(kind not in (Segments, Padding) for kind in arrays):
        names = " & ".join(kind.__name__ for kind in arrays)
        return f"mask {names} (it has one of segments and padding, and masks without arrays)"
    return ""


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: Mechanism = PLAIN,
    *,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
) -> Float[Array, "B T H Dv"]:
    """Computes the same as `dense.attend` with the splash attention kernel.

    Arguments and result are those of `dense.attend`. Lengths that are not a multiple of 128 are
    padded with masked keys. It can be differentiated once and works under vmap. On a mesh, batch,
    heads and queries are sharded, and each device gathers the keys and values along the sequence.

    Raises:
      Unsupported: a part of the mechanism is missing, positions are not known while tracing, q is
        neither bfloat16 nor float32, or the device is a GPU.
    """
    from research.attention.implementations.splash_mask import kernel_mask

    _check(q, mechanism, q_index, kv_index)
    (t, h), s = q.shape[1:3], k.shape[1]
    rows, columns = _positions(q_index, t), _positions(kv_index, s)
    fixed = [part for part in conjuncts(mechanism.mask) if not jax.tree.leaves(part)]
    given = [part for part in conjuncts(mechanism.mask) if jax.tree.leaves(part)]
    static, filled = kernel_mask(fixed, rows, columns, sharding.context_size())
    lengths = static.shape
    q_, k_ = mechanism.score.as_dot(q, k)  # ty: ignore[not-iterable]  # checked by unsupported_part()
    k_, v = (sharding.repeat_key_heads(x, h) for x in (k_, v))
    kernel, sharpening, extra = _kernel(
        static, (h, k_.shape[2]), mechanism.biases, mechanism.normalizer
    )
    arrays = [_heads_first(q_ * sharpening, lengths[0])]
    arrays += [_heads_first(x, lengths[1]) for x in (k_, v)]
    segments = _segments(given, rows, columns, lengths, q.shape[0])
    run = _over_devices if sharding.is_sharded() else _batched
    out = run(kernel, *arrays, segments, extra)
    out = jnp.swapaxes(out, 1, 2)[:, :t].astype(q.dtype)
    if given:
        some = jnp.any(mechanism.mask(rows[:, None], columns[None, :]), axis=-1)[
            :, 0, :, None, None
        ]
        return jnp.where(some, out, 0)
    return jnp.where(filled[:, None, None], 0, out) if filled.any() else out


def _batched(kernel, q, k, v, segments, extra):
    return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, ids, extra))(q, k, v, segments)


def _over_devices(kernel, q, k, v, segments, extra):
    """Runs `_batched` under `shard_map`, because the compiler cannot partition a kernel itself."""
    batch_axis = sharding.usable_axis(DATA, q.shape[0])
    heads_axis = sharding.usable_axis(MODEL, q.shape[1], k.shape[1])
    rows_axis = CONTEXT if sharding.context_size() > 1 else None

    def local(kernel, q, k, v, segments, extra):
        if rows_axis:
            k, v = (lax.all_gather(x, rows_axis, axis=2, tiled=True) for x in (k, v))
        return _batched(kernel, q, k, v, segments, extra)

    rows = NamedSharding(jax.sharding.get_abstract_mesh(), P(None, rows_axis))
    arrays = P(batch_axis, heads_axis, rows_axis, None)
    ids = segments and SegmentIds(P(batch_axis, rows_axis), P(batch_axis, None))
    specs = (kernel.manual_sharding_spec(rows), arrays, arrays, arrays, ids, P(heads_axis))
    return sharding.shard_map_over_mesh(local, specs, arrays)(kernel, q, k, v, segments, extra)


def _kernel(mask, heads, biases, normalizer):
    """Returns one device's kernel for this mask, the scale of its queries, and the extra logits.

    `heads` are the numbers of query and key heads over all devices together.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    local = heads[0]
    if axis := sharding.usable_axis(MODEL, *heads):
        local //= sharding.axis_sizes()[axis]
    shards = sharding.context_size()
    rows, columns = mask.shape[0] // shards, mask.shape[1]
    size = next(n for n in BLOCKS if rows % n == 0 and columns % n == 0)
    kernel = kernels.make_splash_mha(
        kernels.MultiHeadMask([mask] * local),
        # The order of the fields: forward, gradients of keys and values, gradient of queries.
        block_sizes=kernels.BlockSizes(size, size, size, size, size, size, size, size),
        # The kernel gets scores a s, with the sharpening a in the queries. It should return
        # a cap tanh(s / cap), which is a cap of (a cap) on a s.
        attn_logits_soft_cap=normalizer.sharpening * biases[0].cap if biases else None,
        head_shards=1,
        q_seq_shards=shards,
        interpret=platform() == "cpu",
        residual_checkpoint_name=ATTENTION_OUT,
    )
    extra = normalizer.extra_logit
    if extra is not None:
        extra = jnp.broadcast_to(jnp.asarray(extra, jnp.float32), (heads[0],))
    return kernel, normalizer.sharpening, extra


def _check(q, mechanism, q_index, kv_index):
    instead = "use 'blockwise' or 'dense'"
    if missing := unsupported_part(mechanism):
        raise Unsupported(f"splash attention lacks {missing}; {instead}")
    if isinstance(q_index, Tracer) or isinstance(kv_index, Tracer):
        message = "splash attention needs positions that are known while tracing"
        raise Unsupported(f"{message}; {instead}")
    if q.dtype not in DTYPES:
        raise Unsupported(f"splash attention lacks {q.dtype}; {instead}")
    if platform() not in ("tpu", "cpu"):
        raise Unsupported(f"splash attention needs a TPU, not a {platform()}; {instead}")


def _positions(index: Any, length: int) -> np.ndarray:
    return np.arange(length, dtype=np.int32) if index is None else np.asarray(index)


def _heads_first(x: Array, length: int) -> Array:
    """Transposes (B, N, H, D) to (B, H, length, D), zero-padded at the end."""
    x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
    return jnp.swapaxes(x, 1, 2)


def _segments(given, rows, columns, lengths, batch):
    """Returns segment ids (B, padded length) that express the mask in `given`, or None.

    A padding mask puts all queries and valid keys into segment 0 and other keys into segment 1.
    """
    if not given:
        return None
    part = given[0]
    if isinstance(part, Segments):
        q = jnp.take(part.q_segments, rows, axis=1, mode="clip")
        kv = jnp.take(part.kv_segments, columns, axis=1, mode="clip")
    else:
        kv = jnp.where(jnp.take(part.valid, columns, axis=1, mode="clip"), 0, 1)
        q = jnp.zeros((kv.shape[0], len(rows)))
    ids = []
    for x, length in zip((q, kv), lengths, strict=True):
        x = jnp.broadcast_to(x.astype(jnp.int32), (batch, x.shape[1]))
        ids.append(jnp.pad(x, ((0, 0), (0, length - x.shape[1]))))
    return SegmentIds(*ids)
