"""`jax.nn.dot_product_attention` as an implementation: XLA on any device, cuDNN on GPUs.

Both refuse mechanisms that they cannot express exactly. cuDNN never gets a mask or bias as an
array: that would need T * S numbers in memory, which a fused kernel exists to avoid.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Integer

from research.attention.errors import Unsupported
from research.attention.implementations import sharding
from research.attention.implementations.sharding import DATA, MODEL, platform
from research.attention.parts.content_dependent import has_content
from research.attention.parts.masks import Mask, Window
from research.attention.parts.mechanism import PLAIN, Mechanism
from research.attention.parts.normalizers import Softmax

CUDNN_DTYPES = ("bfloat16", "float16")


def unsupported_by_xla(mechanism: Mechanism) -> str:
    """Returns the part of the mechanism that `attend_xla` cannot compute; empty if none."""
    for bias in mechanism.biases:
        if not bias.additive:
            return f"bias {type(bias).__name__} (it is not an additive bias)"
    if mechanism.focus is not None:
        return "a predicted window"
    if not mechanism.score.has_dot_form:
        return f"score {type(mechanism.score).__name__} (it has no dot-product form)"
    normalizer = mechanism.normalizer
    return "" if type(normalizer) is Softmax else f"normalizer {normalizer.name!r}"


def unsupported_by_cudnn(mechanism: Mechanism) -> str:
    """Returns the part of the mechanism that `attend_cudnn` cannot compute; empty if none."""
    if mechanism.biases:
        return f"bias {type(mechanism.biases[0]).__name__}"
    if mechanism.selection is not None:
        return "a selection of keys"
    if type(mechanism.mask) not in (Mask, Window):
        return f"mask {type(mechanism.mask).__name__} (it has full, causal and window)"
    return unsupported_by_xla(mechanism)


def attend_xla(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: Mechanism = PLAIN,
    *,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
) -> Float[Array, "B T H Dv"]:
    """Computes the same as `dense.attend` with `implementation="xla"`: softmax of dot forms.

    Biases have to be additive. Arguments and result are those of `dense.attend`.

    Raises:
      Unsupported: a part of the mechanism is missing, or q is float64 (its softmax is float32).
    """
    if missing := unsupported_by_xla(mechanism):
        raise Unsupported(f"jax_xla attention lacks {missing}; use implementation 'dense'")
    if q.dtype == jnp.float64:
        raise Unsupported("jax_xla attention has a float32 softmax; use 'dense' for float64")
    if mechanism.has_content:
        mechanism = mechanism.evaluate(q, k, q_index, kv_index)
    (t, h), s = q.shape[1:3], k.shape[1]
    q_index = (jnp.arange(t) if q_index is None else q_index)[:, None]
    kv_index = (jnp.arange(s) if kv_index is None else kv_index)[None, :]
    bias = _bias(mechanism, q.shape[0], h, q_index, kv_index)
    if type(mechanism.mask) is Mask:
        return _attention(q, k, v, mechanism, "xla", bias=bias)
    allowed = mechanism.mask(q_index, kv_index)
    allowed = jnp.broadcast_to(allowed, np.broadcast_shapes(allowed.shape, (1, 1, t, s)))
    out = _attention(q, k, v, mechanism, "xla", bias=bias, mask=allowed)
    # jax.nn returns the mean of all values for rows without an allowed key.
    some = jnp.swapaxes(jnp.any(allowed, axis=-1), 1, 2)[..., None]
    return jnp.where(some, out, 0)


def attend_cudnn(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: Mechanism = PLAIN,
    *,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
) -> Float[Array, "B T H Dv"]:
    """Computes the same as `dense.attend` with cuDNN's flash attention.

    Supports full, causal and window masks and no biases; arguments and result are those of
    `dense.attend`. Head widths are zero-padded to a multiple of 8. On a mesh, batch and heads are
    sharded where they divide evenly. Under vmap JAX requires q, k, v and the gradient of the result
    to be mapped together, and raises TypeError otherwise.

    Raises:
      Unsupported: a part of the mechanism is missing; q, k and v are not all bfloat16 or all
        float16; a mask other than full at positions that are not known while tracing or that do
        not begin together and count up; the mesh splits sequences; the device is no GPU; or
        cuDNN refuses (head widths above 128, or 256 from Hopper on).
    """
    if missing := unsupported_by_cudnn(mechanism):
        raise Unsupported(f"jax_cudnn attention lacks {missing}; use 'blockwise' or 'dense'")
    if q.dtype not in CUDNN_DTYPES or not q.dtype == k.dtype == v.dtype:
        message = f"jax_cudnn attention lacks {q.dtype} (it has {', '.join(CUDNN_DTYPES)})"
        raise Unsupported(f"{message}; use 'blockwise' or 'dense'")
    if platform() != "gpu":
        message = f"jax_cudnn attention needs an NVIDIA GPU, not a {platform()}"
        raise Unsupported(f"{message}; use 'blockwise' or 'dense'")
    if sharding.context_size() > 1:
        message = "jax_cudnn attention lacks sequences that are split over devices"
        raise Unsupported(f"{message}; use 'ring' or 'gather'")
    options = {}
    if isinstance(mechanism.mask, Window):
        options = _window(mechanism.mask, q.shape[1], k.shape[1], q_index, kv_index)
    try:
        return _attention(q, k, v, mechanism, "cudnn", multiple=8, **options)
    except (NotImplementedError, RuntimeError) as error:
        raise Unsupported(f"jax_cudnn attention: {error} Use 'blockwise' or 'dense'") from error


def _attention(q, k, v, mechanism, implementation, multiple=1, **options):
    """Calls `jax.nn.dot_product_attention` on the score's dot form.

    The score's own scale is in the queries already, so `scale` is only the softmax's sharpening.
    Heads of q, k and v are zero-padded to one width, a multiple of `multiple`.
    """
    out_dtype, out_width = q.dtype, v.shape[-1]
    q, k = mechanism.score.as_dot(q, k)
    width = -(-max(q.shape[-1], out_width) // multiple) * multiple
    q, k, v = (jnp.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])]) for x in (q, k, v))
    options |= {"scale": mechanism.normalizer.sharpening, "implementation": implementation}
    attention: Callable[..., Any] = functools.partial(jax.nn.dot_product_attention, **options)
    if implementation == "cudnn" and sharding.is_sharded():
        k, v = (sharding.repeat_key_heads(x, q.shape[2]) for x in (k, v))
        batch_axis = sharding.usable_axis(DATA, q.shape[0])
        heads_axis = sharding.usable_axis(MODEL, q.shape[2], k.shape[2])
        spec = PartitionSpec(batch_axis, None, heads_axis)
        attention = sharding.shard_map_over_mesh(attention, (spec, spec, spec), spec)
    return attention(q, k, v)[..., :out_width].astype(out_dtype)


def _bias(
    mechanism: Any, batch: int, heads: int, q_index: Any, kv_index: Any
) -> Float[Array, "_ H T S"] | None:
    """Returns the sum of the additive biases times the softmax's sharpening, or None.

    The shape is (1, H, T, S) if the biases depend on positions only, else (B, H, T, S).
    """
    if not mechanism.biases:
        return None
    batch = batch if has_content(mechanism.biases) else 1
    total = jnp.zeros((batch, heads, q_index.shape[0], kv_index.shape[1]))
    for bias in mechanism.biases:
        total = bias(total, jnp.arange(heads)[:, None, None], q_index, kv_index)
    return total * mechanism.normalizer.sharpening


def _window(mask: Window, t: int, s: int, q_index: Any, kv_index: Any) -> dict[str, Any]:
    """Returns a causal or window mask as arguments of `jax.nn`, whose positions start at 0."""
    if isinstance(q_index, Tracer) or isinstance(kv_index, Tracer):
        message = "jax_cudnn attention needs positions that are known while tracing"
        raise Unsupported(f"{message}; use 'blockwise' or 'dense'")
    first = 0 if q_index is None else int(q_index[0])
    q_index = np.arange(t) if q_index is None else np.asarray(q_index)
    kv_index = np.arange(s) if kv_index is None else np.asarray(kv_index)
    together = (q_index == first + np.arange(t)).all() and (kv_index == first + np.arange(s)).all()
    if not together or (mask.size is not None and t > s):
        message = "jax_cudnn attention needs queries and keys at the same consecutive positions"
        raise Unsupported(f"{message}; use 'blockwise' or 'dense'")
    if mask.size is None:
        return {"is_causal": True}
    return {"is_causal": True, "local_window_size": (mask.size - 1, 0)}
