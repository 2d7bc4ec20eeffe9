"""Multi-head latent attention: all heads' keys and values are expanded from one small latent."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from research.attention.implementations import dense
from research.attention.implementations.attend import attend, decoding_implementation
from research.attention.mixers import cache
from research.attention.mixers.attention_options import SelectingOptions
from research.attention.mixers.mixer import AttentionTrace, HeadScores, Mixer, cached_shapes
from research.attention.mixers.mixer_options import Context, build_from
from research.attention.mixers.projections import merge_heads
from research.attention.mixers.self_attention import dense_trace, of_heads
from research.attention.parameters import Parameter, matrix_axes, matrix_init, vector_axes
from research.attention.parts.masks import Mask, causal
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.part_options import MechanismPart, size_option
from research.attention.parts.positions import MODEL_POSITIONS, ROTARY_POSITIONS, Rotary
from research.attention.parts.relative_biases import BIAS_POSITIONS
from research.attention.parts.scores import dot
from research.options import choice

CAUSAL = Mechanism(dot(), causal())


@dataclasses.dataclass(frozen=True)
class LatentAttention(Mixer):
    """Multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2, section 2.1, equations 9-19).

    Each token has a latent c = norm(x W) of C channels and, with rotary positions, one rotated key
    of R channels that all heads share. Head h has the key [c U_h; rotated] and the value c V_h.
    Queries are not compressed (as in DeepSeek-V2-Lite). For a whole sequence keys and values are
    expanded; while decoding U_h is absorbed into the query instead, so that only c and the shared
    key are cached and read.

    Attributes:
      width: M.
      num_heads: H.
      head_width: D, of values and of the part of keys that is not rotated.
      latent_width: C.
      query_latent_width: C', width of the latent of the queries; 0: they have none.
      rotary_width: R; 0 without rotary positions.
      mechanism: the attention mechanism, for queries that are already scaled.
      rotary: rotates the shared key and the matching part of queries; None for no rotation.
      implementation: a name in `IMPLEMENTATIONS`.
      block_size: for implementations that have blocks; 0 chooses.
      init_stddev: initial standard deviation of the projections; 0 is 1 / sqrt(fan in).
      out_scale: multiplies the initial output projection.
    """

    width: int
    num_heads: int
    head_width: int
    latent_width: int
    query_latent_width: int = 0
    rotary_width: int = 0
    mechanism: Mechanism = CAUSAL
    rotary: Rotary | None = None
    implementation: str = "dense"
    block_size: int = 0
    init_stddev: float = 0.02
    out_scale: float = 1.0

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name.

        "query" (M, H, D + R), "latent" (M, C), "latent_scale" (C,), "key" and "value" (C, H, D),
        "out" (H, D, M), "rotated_key" (M, R) if R > 0, and the parameters of the mechanism. If the
        queries have a latent: "query_latent" (M, C'), "query_latent_scale" (C',), and "query" is
        (C', H, D + R).
        """
        inward = matrix_init(self.init_stddev, self.width)
        unfold = matrix_init(self.init_stddev, self.latent_width)
        outward = matrix_init(self.init_stddev, self.num_heads * self.head_width, self.out_scale)
        heads = ("heads", "head_width")
        unfolded = (self.latent_width, self.num_heads, self.head_width)
        total = self.head_width + self.rotary_width
        of_query = self._query_projections((self.num_heads, total), inward)
        found = {
            **of_query,
            "latent": Parameter((self.width, self.latent_width), inward, matrix_axes("width", "")),
            "latent_scale": Parameter(
                (self.latent_width,), jax.nn.initializers.ones, vector_axes("")
            ),
            "key": Parameter(unfolded, unfold, matrix_axes("", *heads)),
            "value": Parameter(unfolded, unfold, matrix_axes("", *heads)),
            "out": Parameter(
                (self.num_heads, self.head_width, self.width),
                outward,
                matrix_axes(*heads, "width", roles="iio"),
            ),
        }
        if self.rotary_width:
            shape = (self.width, self.rotary_width)
            found["rotated_key"] = Parameter(shape, inward, matrix_axes("width", ""))
        # Parameters are drawn in this order, so changing it would change results of a seed.
        learned = self.mechanism.parameters().items()
        return found | dict(sorted(learned, key=lambda item: item[0].startswith("biases")))

    def _query_projections(self, heads, inward):
        """Returns the parameters that make queries of these (heads, width)."""
        names = ("heads", "head_width")
        if not self.query_latent_width:
            whole = Parameter((self.width, *heads), inward, matrix_axes("width", *names))
            return {"query": whole}
        latent = self.query_latent_width
        unfold = matrix_init(self.init_stddev, latent)
        ones = jax.nn.initializers.ones
        return {
            "query_latent": Parameter((self.width, latent), inward, matrix_axes("width", "")),
            "query_latent_scale": Parameter((latent,), ones, vector_axes("")),
            "query": Parameter((latent, *heads), unfold, matrix_axes("", *names)),
        }

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Computes latent attention over a whole sequence; see `Mixer`."""
        by = {"block_size": self.block_size, "implementation": self.implementation}
        return merge_heads(params, self._whole(functools.partial(attend, **by), params, x, mask))

    def losses(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> dict[str, Float[Array, ""]]:
        """Returns the "indexer_loss" of a selection, if there is one; see `Mixer`."""
        if self.mechanism.selection is None:
            return {}
        return {"indexer_loss": self._whole(dense.selection_loss, params, x, mask)}

    def largest_scores(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> dict[str, HeadScores]:
        """Returns the largest score of each head for "query" and "key"; see `Mixer`.

        Of a factor the channels that are not rotated take the square root, in queries and keys, and
        the rotated ones of queries all of it: heads share the rotated key (Kimi Team 2025 (Kimi
        K2), algorithm 1).
        """
        largest = self._whole(dense.largest_scores, params, x, mask)
        power = np.repeat([0.5, 1.0], [self.head_width, self.rotary_width])
        key = of_heads(largest, params["key"].ndim, 0.5)
        return {"query": of_heads(largest, params["query"].ndim, power), "key": key}

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> AttentionTrace:
        """Returns the weights and expanded values of a whole sequence; see `Mixer`."""
        return self._whole(dense_trace, params, x, mask)

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H D"],
    ) -> Float[Array, "B T M"]:
        """Projects the heads' outputs; see `Mixer`."""
        return merge_heads(params, head_outputs.astype(x.dtype))

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns an empty cache: "latent" (batch, slots, C), "rotated" (batch, slots, 1, R).

        And what content-dependent parts keep of tokens.
        """
        entries = functools.partial(self._cache_entries, index=np.zeros(1, np.int32))
        token = cached_shapes(self, entries, batch, dtype)
        return cache.empty(self.mechanism.cache_mask, length, token)

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T tokens; see `Mixer`. The latents act as one key head (section 2.1.2)."""
        index = cache.positions(state, x.shape[1])
        q, new = self._query(params, x, index), self._cache_entries(params, x, index)
        state, seen = cache.extend(self.mechanism.cache_mask, state, new)
        by_content, by_place = jnp.split(q, [self.head_width], axis=-1)
        # q . (c U) = (q U^T) . c, so U is absorbed into the query and cached latents serve as keys.
        q = jnp.einsum("bthd,chd->bthc", by_content, _cast(params["key"], x))
        latent = seen["latent"][:, :, None].astype(x.dtype)
        k = latent
        if self.rotary_width:
            q = jnp.concatenate([q, by_place], axis=-1)
            k = jnp.concatenate([latent, seen["rotated"].astype(x.dtype)], axis=-1)
        at = {"q_index": index, "kv_index": seen["positions"], "block_size": self.block_size}
        mechanism = self._mechanism(params, x, seen, cache.filled)
        implementation = decoding_implementation(self.implementation, x.shape[1])
        out = attend(q, k, latent, mechanism, **at, implementation=implementation)
        out = jnp.einsum("bthc,chd->bthd", out.astype(x.dtype), _cast(params["value"], x))
        return state, merge_heads(params, out)

    def _whole(self, attend_fn, params, x, mask):
        """Returns `attend_fn(q, k, v, mechanism)` of a whole sequence."""
        index = np.arange(x.shape[1])
        kept = self._cache_entries(params, x, index)
        mechanism = self._mechanism(params, x, kept, mask)
        q, k, v = self._query(params, x, index), *self._unfolded(params, x, kept)
        return attend_fn(q, k, v, mechanism, q_index=index, kv_index=index)

    def _mechanism(self, params, x, kept, mask):
        """Returns the bound mechanism, with what it needs of the tokens of queries and keys."""
        mechanism = self.mechanism.bind(params, mask)
        if not mechanism.has_content:
            return mechanism
        inputs = _latent(params, "query_latent", x) if self.query_latent_width else x
        return mechanism.with_tokens(kept).with_queries(x, inputs)

    def _unfolded(self, params, x, kept):
        """Returns the expanded keys and values of all heads."""
        k, v = (jnp.einsum("bsc,chd->bshd", kept["latent"], _cast(params[n], x)) for n in _UNFOLD)
        if self.rotary_width:
            shared = jnp.broadcast_to(kept["rotated"], (*k.shape[:3], self.rotary_width))
            k = jnp.concatenate([k, shared], axis=-1)
        return k, v

    def _query(self, params, x, index):
        """Returns scaled queries, their last R channels rotated."""
        if self.query_latent_width:
            x = _latent(params, "query_latent", x)
        q = jnp.einsum("btm,mhd->bthd", x, _cast(params["query"], x))
        q = q * (self.head_width + self.rotary_width) ** -0.5
        if self.rotary is None:
            return q
        by_content, by_place = jnp.split(q, [self.head_width], axis=-1)
        return jnp.concatenate([by_content, self.rotary(by_place, index)], axis=-1)

    def _cache_entries(self, params, x, index):
        kept = {"latent": _latent(params, "latent", x)}
        if self.rotary is not None:
            rotated = (x @ _cast(params["rotated_key"], x))[:, :, None]
            kept["rotated"] = self.rotary(rotated, index)
        return kept | self.mechanism.bind(params).project_tokens(x)


_UNFOLD = ("key", "value")
EPSILON = 1e-6
"""Added to the mean square of a latent, as in the published models."""


def _latent(params, name, x):
    """Returns the projection of x by `params[name]`, normalized by RMSNorm with a gain."""
    latent = (x @ _cast(params[name], x)).astype(jnp.promote_types(x.dtype, jnp.float32))
    latent *= jax.lax.rsqrt(jnp.mean(jnp.square(latent), -1, keepdims=True) + EPSILON)
    return (latent * params[f"{name}_scale"]).astype(x.dtype)


def _cast(weight: Array, x: Array) -> Array:
    return weight.astype(x.dtype)


POSITIONS = {**MODEL_POSITIONS, **ROTARY_POSITIONS, **BIAS_POSITIONS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentOptions(SelectingOptions):
    """softmax attention whose keys and values are projected from a latent vector per token"""

    source = "DeepSeek-AI 2024 (DeepSeek-V2), section 2.1"
    time = "T S H D"
    state = "S (C + R); with an indexer S E more"

    position: MechanismPart = choice(
        POSITIONS,
        "none",
        "position encoding",
        others="mixer 'latent' applies no others",
    )
    latent_width: int = size_option(
        0, "C, width of the latent vector cached per token; 0: width / 2"
    )
    query_latent_width: int = size_option(
        0, "width of a latent vector from which queries are projected; 0: from the token itself"
    )
    rope_width: int = size_option(
        0, "R, rotated channels of a head with RoPE; 0: half of head_width"
    )

    def query_width(self, context: Context) -> int:
        """Returns the width of what queries are projected from."""
        return self.query_latent_width or context.width

    def make(self, context: Context) -> LatentAttention:
        """Returns latent attention."""
        sizes, rotary = self.sizes(context), self.build_rotary(context)
        # As in the paper, the rotated part is half as wide as the other.
        rotary_width = self.rope_width or max(2, sizes.head_width // 4 * 2)
        return build_from(
            LatentAttention,
            sizes,
            self,
            context,
            latent_width=self.latent_width or max(1, context.width // 2),
            rotary_width=rotary_width if rotary else 0,
            mechanism=dataclasses.replace(self.mechanism(context), score=dot()),
            rotary=rotary,
            implementation=self.resolved_implementation(context),
        )
