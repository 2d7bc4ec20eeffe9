"""The projections between the model's width and the heads."""

from collections.abc import Collection
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.parameters import Parameter, matrix_axes, matrix_init, vector_axes

NORM_EPSILON = 1e-5
"""What is added to the mean square in the norms of models, by default."""

ZERO_CENTERED = "zero_centered_rms"
"""The norm of queries and keys whose gain is 1 + its parameter."""


@runtime_checkable
class Normalized(Protocol):
    """The attributes of a mixer that `normalize_heads` needs; see `SelfAttention`."""

    @property
    def qk_norm(self) -> str: ...
    @property
    def norm_epsilon(self) -> float: ...


@runtime_checkable
class Projected(Protocol):
    """The attributes of a mixer that `projections` needs; see `SelfAttention` for their meaning."""

    @property
    def width(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def use_bias(self) -> bool: ...
    @property
    def init_stddev(self) -> float: ...
    @property
    def out_scale(self) -> float: ...


def projections(
    mixer: Projected, names: Collection[str] = ("query", "key", "value"), qkv_bias: bool = False
) -> dict[str, Parameter]:
    """Returns projections (M, H, D), "out" (H, D, M), and biases "query_bias" ... if any.

    Args:
      mixer: provides the sizes.
      names: the projections to include, of "query", "key" and "value".
      qkv_bias: whether these have biases even if "out" has none.
    """
    width, num_heads, head_width = mixer.width, mixer.num_heads, mixer.head_width
    heads, kv_heads = ("heads", "head_width"), ("kv_heads", "head_width")
    query, key = (num_heads, head_width), (mixer.num_kv_heads, head_width)
    inward = matrix_init(mixer.init_stddev, width)
    outward = matrix_init(mixer.init_stddev, num_heads * head_width, mixer.out_scale)
    shapes = {"query": (query, heads), "key": (key, kv_heads), "value": (key, kv_heads)}
    shapes = {name: shapes[name] for name in shapes if name in names}
    found = {
        n: Parameter((width, *s), inward, matrix_axes("width", *axes))
        for n, (s, axes) in shapes.items()
    }
    found["out"] = Parameter((*query, width), outward, matrix_axes(*heads, "width", roles="iio"))
    zeros = jax.nn.initializers.zeros
    if mixer.use_bias or qkv_bias:
        found |= {
            f"{name}_bias": Parameter(s, zeros, vector_axes(*axes))
            for name, (s, axes) in shapes.items()
        }
    if mixer.use_bias:
        found["out_bias"] = Parameter((width,), zeros, vector_axes("width"))
    return found


def split_heads(
    params: dict[str, Array], name: str, x: Float[Array, "B T M"]
) -> Float[Array, "B T H D"]:
    """Projects x by `params[name]` (M, H, D), plus `params[name + "_bias"]` if there is one."""
    y = jnp.einsum("btm,mhd->bthd", x, params[name].astype(x.dtype))
    bias = params.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(x.dtype)


def norm_scales(head_width: int, qk_norm: str) -> dict[str, Parameter]:
    """Returns "query_scale" and "key_scale" (D,), the gains by which `normalize_heads` acts."""
    of_gain = jax.nn.initializers
    init = of_gain.zeros if qk_norm == ZERO_CENTERED else of_gain.ones
    names = ("query_scale", "key_scale")
    return {name: Parameter((head_width,), init, vector_axes("")) for name in names}


def normalize_heads(
    mixer: Normalized, params: dict[str, Array], name: str, y: Float[Array, "B T H D"]
) -> Float[Array, "B T H D"]:
    """Returns RMSNorm of y over the channels of each head, or y if it has no gain in `params`.

    The gain is `params[name + "_scale"]` (D,), shared by the heads, plus 1 if it is zero-centered.
    """
    scale = params.get(f"{name}_scale")
    if scale is None:
        return y
    gain = 1 + scale if mixer.qk_norm == ZERO_CENTERED else scale
    return rms_norm(y, gain, mixer.norm_epsilon)


def rms_norm(y: Float[Array, "*B D"], gain: Float[Array, " D"], epsilon: float) -> Array:
    """Returns y over the root of its mean square in the last axis, times the gain.

    Statistics are float32 or wider; the result has the dtype of y. Source: Zhang and Sennrich 2019,
    equation 4.
    """
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + epsilon)
    return (wide * gain).astype(y.dtype)


def merge_heads(params: dict[str, Array], y: Float[Array, "B T H D"]) -> Float[Array, "B T M"]:
    """Projects the heads' outputs by `params["out"]` (H, D, M), plus `"out_bias"` if any."""
    x = jnp.einsum("bthd,hdm->btm", y, params["out"].astype(y.dtype))
    bias = params.get("out_bias")
    return x if bias is None else x + bias.astype(x.dtype)
