"""Tensor product attention: queries, keys and values are sums of products of two vectors."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from research.attention.implementations.attend import attend, decoding_implementation
from research.attention.mixers import cache
from research.attention.mixers.attention_options import AttentionOptions
from research.attention.mixers.mixer import AttentionTrace, Mixer, cached_shapes
from research.attention.mixers.mixer_options import Context, build_from
from research.attention.mixers.projections import merge_heads
from research.attention.mixers.self_attention import dense_trace
from research.attention.parameters import Parameter, matrix_axes, matrix_init
from research.attention.parts.masks import Mask, causal
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.part_options import MechanismPart, size_option
from research.attention.parts.positions import MODEL_POSITIONS, ROTARY_POSITIONS, Rotary
from research.attention.parts.relative_biases import BIAS_POSITIONS
from research.options import choice

CAUSAL = Mechanism(mask=causal())
CACHED = ("key", "value")


@dataclasses.dataclass(frozen=True)
class TensorProduct(Mixer):
    """Tensor product attention (Zhang et al. 2025, "Tensor Product Attention Is All You Need").

    The queries of the heads of a token are the (H, D) matrix sum_r a_r b_r^T / R, with R vectors
    a_r of H numbers and R vectors b_r of D channels that are projected from the token; keys and
    values likewise, with ranks of their own (section 3.1). Rotary positions rotate the b_r of
    queries and keys, which rotates their sums (section 3.2). The cache has the vectors of keys and
    values, not the matrices.

    Attributes:
      width: M.
      num_heads: H.
      head_width: D.
      query_rank: R of queries.
      key_rank: R of keys.
      value_rank: R of values.
      mechanism: the attention mechanism.
      rotary: rotates queries and keys by their positions; None for no rotation.
      implementation: a name in `IMPLEMENTATIONS`.
      block_size: for implementations that have blocks; 0 chooses.
      init_stddev: initial standard deviation of the output projection; 0 is 1 / sqrt(fan in). The
        other projections always start at 1 / sqrt(M), because products of two small numbers would
        start far smaller than what other mixers start with.
      out_scale: multiplies the initial output projection.
    """

    width: int
    num_heads: int
    head_width: int
    query_rank: int = 6
    key_rank: int = 2
    value_rank: int = 2
    mechanism: Mechanism = CAUSAL
    rotary: Rotary | None = None
    implementation: str = "dense"
    block_size: int = 0
    init_stddev: float = 0.02
    out_scale: float = 1.0

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name.

        "query_heads" (M, R, H) and "query_channels" (M, R, D), the same of "key" and "value" with
        their R, "out" (H, D, M), and the parameters of the mechanism.
        """
        inward, found = matrix_init(0.0, self.width), {}
        ranks = {"query": self.query_rank, "key": self.key_rank, "value": self.value_rank}
        for name, rank in ranks.items():
            for part, size, axis in (
                ("heads", self.num_heads, "heads"),
                ("channels", self.head_width, "head_width"),
            ):
                axes = matrix_axes("width", "", axis)
                found[f"{name}_{part}"] = Parameter((self.width, rank, size), inward, axes)
        heads = (self.num_heads, self.head_width)
        outward = matrix_init(self.init_stddev, self.num_heads * self.head_width, self.out_scale)
        axes = matrix_axes("heads", "head_width", "width", roles="iio")
        found["out"] = Parameter((*heads, self.width), outward, axes)
        return found | self.mechanism.parameters()

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Computes tensor product attention over a whole sequence; see `Mixer`."""
        index = np.arange(x.shape[1])
        run = functools.partial(
            attend, implementation=self.implementation, block_size=self.block_size
        )
        entries = {**self._cache_entries(params, x, index), "positions": index}
        return self.merge(params, x, self._attend(run, params, x, entries, index, mask))

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> AttentionTrace:
        """Returns the weights and the values of a whole sequence; see `Mixer`."""
        index = np.arange(x.shape[1])
        entries = {**self._cache_entries(params, x, index), "positions": index}
        return self._attend(dense_trace, params, x, entries, index, mask)

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H D"],
    ) -> Float[Array, "B T M"]:
        """Projects the heads' outputs; see `Mixer`."""
        return merge_heads(params, head_outputs.astype(x.dtype))

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns an empty cache: "key_heads" (batch, slots, R, H), "key_channels" (..., R, D)...

        The same of values; see `cache.empty`.
        """
        entries = functools.partial(self._cache_entries, index=np.zeros(1, np.int32))
        token = cached_shapes(self, entries, batch, dtype)
        return cache.empty(self.mechanism.cache_mask, length, token)

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T tokens; see `Mixer`."""
        index = cache.positions(state, x.shape[1])
        new = self._cache_entries(params, x, index)
        state, seen = cache.extend(self.mechanism.cache_mask, state, new)
        implementation = decoding_implementation(self.implementation, x.shape[1])
        run = functools.partial(attend, implementation=implementation, block_size=self.block_size)
        return state, self.merge(params, x, self._attend(run, params, x, seen, index, cache.filled))

    def _attend(self, attend_fn, params, x, seen, index, mask):
        """Returns `attend_fn(q, k, v, mechanism)` for the queries of x.

        Args:
          attend_fn: computes attention, as `attend` does.
          params: as in `__call__`.
          x: the tokens whose queries attend.
          seen: `_cache_entries` of the tokens attended to, and their "positions".
          index: positions of the queries.
          mask: restricts the mixer's own mask further.
        """
        q = _sum_of_products(self._factors(params, "query", x, index), "query")
        k, v = (_sum_of_products(seen, name).astype(x.dtype) for name in CACHED)
        mechanism = self.mechanism.bind(params, mask)
        return attend_fn(q, k, v, mechanism, q_index=index, kv_index=seen["positions"])

    def _cache_entries(self, params, x, index):
        """Returns the vectors of keys and values, those of keys rotated."""
        key, value = (self._factors(params, name, x, index) for name in CACHED)
        return key | value

    def _factors(self, params, name, x, index):
        """Returns the vectors of queries, keys or values, (B, T, R, H) and (B, T, R, D)."""
        parts = (f"{name}_heads", f"{name}_channels")
        found = {
            part: jnp.einsum("btm,mrn->btrn", x, params[part].astype(x.dtype)) for part in parts
        }
        if self.rotary is not None and name != "value":
            found[parts[1]] = self.rotary(found[parts[1]], index)
        return found


def _sum_of_products(factors, name):
    """Returns sum_r a_r b_r^T / R, (B, T, H, D)."""
    heads, channels = factors[f"{name}_heads"], factors[f"{name}_channels"]
    return jnp.einsum("btrh,btrd->bthd", heads, channels) / heads.shape[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorProductOptions(AttentionOptions):
    """softmax attention of queries, keys and values sum_r a_r b_r^T / R, with vectors a_r over
    heads and b_r over channels projected from the token
    """

    source = "Zhang et al. 2025 (Tensor Product Attention), section 3"
    time = "T S H D"
    state = "S (R + R') (H + D), ranks R of keys and R' of values"
    has_biases = False

    position: MechanismPart = choice(
        {**MODEL_POSITIONS, **ROTARY_POSITIONS, **BIAS_POSITIONS},
        "none",
        "position encoding",
        others="mixer 'tensor_product' applies no others",
    )
    query_rank: int = size_option(6, "products that the queries of a token are a sum of", least=1)
    key_rank: int = size_option(2, "products that the keys of a token are a sum of", least=1)
    value_rank: int = size_option(2, "products that the values of a token are a sum of", least=1)

    def make(self, context: Context) -> TensorProduct:
        """Returns tensor product attention."""
        return build_from(
            TensorProduct,
            self.sizes(context),
            self,
            context,
            mechanism=self.mechanism(context),
            rotary=self.build_rotary(context),
            implementation=self.resolved_implementation(context),
        )
