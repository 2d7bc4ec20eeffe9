"""Linformer: attention to a fixed number of learned mixtures of positions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from research.attention.errors import Unsupported
from research.attention.mixers.mixer import AttentionTrace, Mixer
from research.attention.mixers.mixer_options import (
    Context,
    HeadOptions,
    InputPositionOptions,
    build_from,
)
from research.attention.mixers.projections import merge_heads, projections, split_heads
from research.attention.parameters import Normal, Parameter, matrix_axes
from research.attention.parts.masks import And, FullMask, Mask, Padding
from research.attention.parts.part_options import size_option
from research.options import Joined, choice


def attend_projected(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H D"],
    key_projection: Float[Array, "R T"],
    value_projection: Float[Array, "R T"],
) -> Float[Array, "B T H D"]:
    """Returns softmax(Q (E K)^T / sqrt(D)) F V, with E and F shared by all heads.

    Source: Wang et al. 2020, equation 7.

    Args:
      q: queries.
      k: keys, zero at padding.
      v: values, zero at padding.
      key_projection: E.
      value_projection: F.

    Returns:
      The outputs in the dtype of q; the softmax is float32 or wider.
    """
    v = jnp.einsum("rs,bshd->brhd", value_projection, v)
    weights = mixture_weights(q, k, key_projection).astype(q.dtype)
    return jnp.einsum("bhtr,brhd->bthd", weights, v)


def mixture_weights(
    q: Float[Array, "B T H D"], k: Float[Array, "B T H D"], key_projection: Float[Array, "R T"]
) -> Float[Array, "B H T R"]:
    """Returns softmax(Q (E K)^T / sqrt(D)), float32 or wider; see `attend_projected`."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    k = jnp.einsum("rs,bshd->brhd", key_projection, k)
    scores = jnp.einsum("bthd,brhd->bhtr", q, k, preferred_element_type=wide)
    return jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1)


@dataclasses.dataclass(frozen=True)
class Linformer(Mixer):
    """Linformer attention (Wang et al. 2020, section 4), E and F shared by the heads of a layer.

    This is the paper's "headwise sharing". It is for encoders: each output sees all positions.

    Attributes:
      width: M.
      num_heads: H.
      head_width: D.
      max_length: the longest sequence. Shorter ones use the leading columns of E and F.
      rank: R, the number of mixtures.
      use_bias: adds a bias to each of the four projections.
      init_stddev: initial standard deviation of the projections; 0 is 1 / sqrt(fan in). E and F
        always start at 1 / sqrt(max_length), so that mixtures have the variance of their inputs.
      out_scale: multiplies the initial output projection.
    """

    width: int
    num_heads: int
    head_width: int
    max_length: int
    rank: int
    use_bias: bool = False
    init_stddev: float = 0.02
    out_scale: float = 1.0

    @property
    def num_kv_heads(self) -> int:
        """K, which equals H."""
        return self.num_heads

    def parameters(self) -> dict[str, Parameter]:
        """Returns the projections of `SelfAttention` and "key_mixture", "value_mixture" (R, N).

        N is `max_length`.
        """
        mixture = Parameter(
            (self.rank, self.max_length),
            Normal(self.max_length**-0.5),
            matrix_axes("", "", roles="oi"),
        )
        return projections(self) | {"key_mixture": mixture, "value_mixture": mixture}

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Computes attention over a whole sequence; see `Mixer`. The mask can only be padding.

        Raises:
          Unsupported: another mask was given, or the sequence is longer than `max_length`.
        """
        return merge_heads(params, attend_projected(*self._prepared(params, x, mask)))

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> AttentionTrace:
        """Returns softmax(Q (E K)^T / sqrt(D)) F as weights, and values; see `Mixer`. No scores.

        Weights on padding have no effect, because the values there are zero.
        """
        q, k, v, key_projection, value_projection = self._prepared(params, x, mask)
        weights = mixture_weights(q, k, key_projection)
        return AttentionTrace(
            jnp.einsum("bhtr,rs->bhts", weights, value_projection.astype(weights.dtype)), v
        )

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H D"],
    ) -> Float[Array, "B T M"]:
        """Projects the heads' outputs; see `Mixer`."""
        return merge_heads(params, head_outputs.astype(x.dtype))

    def _prepared(self, params, x, mask):
        """Returns the arguments of `attend_projected`."""
        length = x.shape[1]
        if length > self.max_length:
            raise Unsupported(
                f"mixer 'linformer' was built for max_length = {self.max_length} positions and got "
                f"{length}; 'softmax' takes any number"
            )
        q, k, v = (split_heads(params, name, x) for name in ("query", "key", "value"))
        if mask is not None:
            valid = _valid(mask, length)[:, :, None, None]
            k, v = jnp.where(valid, k, 0), jnp.where(valid, v, 0)
        mixtures = (params[f"{name}_mixture"][:, :length] for name in ("key", "value"))
        return q, k, v, *(m.astype(x.dtype) for m in mixtures)

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Raises Unsupported, because Linformer is not causal and cannot be decoded."""
        raise Unsupported(
            "mixer 'linformer' looks ahead, so it cannot be decoded token by token; 'softmax' can"
        )

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Raises Unsupported, as `init_state`."""
        return self.init_state(x.shape[0], x.shape[1], x.dtype)


def _valid(mask: Mask, length: int) -> Bool[Array, "B T"]:
    """Returns which positions are not padding; raises Unsupported for other masks."""
    if isinstance(mask, And):
        return _valid(mask.left, length) & _valid(mask.right, length)
    if isinstance(mask, Padding):
        return jnp.take(mask.valid, jnp.arange(length), axis=1, mode="clip")
    if type(mask) is Mask:
        return jnp.ones((1, length), bool)
    raise Unsupported("mixer 'linformer' cannot take a mask other than padding; 'softmax' can")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinformerOptions(HeadOptions, InputPositionOptions):
    """softmax(Q (E K)^T / sqrt(D)) F V, E and F learned (rank, length)"""

    source = "Wang et al. 2020, equation 7, with E and F shared by the heads"
    implementations = ("dense",)
    time = "T R D"
    state = "cannot be decoded"
    causal = False

    mask: Joined = choice(
        {"full": FullMask},
        "full",
        "which keys a query sees",
        joined=True,
        others="mixer 'linformer' sees the whole sequence at once",
    )
    rank: int = size_option(
        0, "positions that keys and values are projected to; 0: the longest sequence / 4"
    )

    def make(self, context: Context) -> Linformer:
        """Returns Linformer attention."""
        rank = self.rank or max(1, context.max_length // 4)
        return build_from(Linformer, self.sizes(context), context, rank=rank)
