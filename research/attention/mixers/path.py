"""PaTH attention: the tokens between a key and a query turn the one towards the other."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from research.attention.implementations import dense, householder
from research.attention.implementations.attend import DENSE_UP_TO
from research.attention.mixers import cache
from research.attention.mixers.attention_options import AttentionOptions, with_kv_heads
from research.attention.mixers.linear import short_convolution
from research.attention.mixers.mixer import AttentionTrace, Mixer, cached_shapes
from research.attention.mixers.mixer_options import Context, build_from
from research.attention.mixers.projections import merge_heads, projections, split_heads
from research.attention.mixers.self_attention import dense_trace
from research.attention.parameters import (
    Constant,
    Parameter,
    matrix_axes,
    matrix_init,
    vector_axes,
)
from research.attention.parts.biases import Bias
from research.attention.parts.forget_gate import forget_gate
from research.attention.parts.masks import Mask, causal
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.normalizers import softmax
from research.attention.parts.part_options import MechanismPart, Sizes, size_option
from research.attention.parts.positions import MODEL_POSITIONS
from research.attention.parts.relative_biases import BIAS_POSITIONS
from research.attention.parts.scores import NonDotScore, unit
from research.attention.parts.segments import places_in_segments
from research.options import OptionError, choice, option

CAUSAL = Mechanism(mask=causal())
TURN = "turn"
"""The projection, and its taps, that a Householder vector comes from."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Given(NonDotScore):
    """Scores that were computed before."""

    required_projections: ClassVar[tuple[str, ...]] = ()
    scores: Any  # (B, H, T, S)

    def __call__(self, q: Any, k: Any, q_index: Any, kv_index: Any) -> Float[Array, "B H T S"]:
        return self.scores


@dataclasses.dataclass(frozen=True)
class Path(Mixer):
    """PaTH attention (Yang et al. 2025, "PaTH Attention: Position Encoding via Accumulating
    Householder Transformations", sections 2 and 3).

    The score of a query i and a key j is k_j^T H_{j+1} ... H_i q_i / sqrt(D), where each token has
    a matrix H = I - beta w w^T: beta = 2 sigmoid(u . x + b) and w of unit length, which a
    projection of low rank and a short convolution with SiLU compute from the tokens. Key heads have
    matrices of their own. With a forget gate it is the paper's PaTH-FoX. While decoding, each token
    multiplies the keys in the cache by its matrix. The authors' code differs in two ways: where
    heads share keys the projection of w has its full rank, and the logarithms of forget gates are
    divided by sqrt(D) too.

    Attributes:
      width: M.
      num_heads: H.
      num_kv_heads: K, which divides H.
      head_width: D.
      turn_rank: R, rank of the projection of w.
      turn_taps: N, taps of its convolution.
      mechanism: mask, biases and normalizer; its score is not used.
      implementation: "dense", or "blockwise" for softmax without biases.
      block_size: for "blockwise"; 0 chooses.
      use_bias: adds a bias to each of the four projections.
      init_stddev: initial standard deviation of the projections; 0 is 1 / sqrt(fan in).
      out_scale: multiplies the initial output projection.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    turn_rank: int = 32
    turn_taps: int = 3
    mechanism: Mechanism = CAUSAL
    implementation: str = "dense"
    block_size: int = 0
    use_bias: bool = False
    init_stddev: float = 0.02
    out_scale: float = 1.0

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name.

        The projections "query", "key", "value" and "out", their biases if any, "turn_in" (M, R),
        "turn_out" (R, K, D) and "turn_taps" (N, K D) for w, "strength" (M, K) and "strength_bias"
        (K,) for beta, and the parameters of the mechanism.
        """
        kv, rank = (self.num_kv_heads, self.head_width), self.turn_rank
        # w is normalized, so that only its direction depends on these.
        inward, outward = matrix_init(0.0, self.width), matrix_init(0.0, rank)
        axes = matrix_axes("", "kv_heads", "head_width")
        found = projections(self)
        found[f"{TURN}_in"] = Parameter((self.width, rank), inward, matrix_axes("width", ""))
        found[f"{TURN}_out"] = Parameter((rank, *kv), outward, axes)
        found |= short_convolution.parameters(self.turn_taps, self._channels)
        init = matrix_init(self.init_stddev, self.width)
        found["strength"] = Parameter((self.width, kv[0]), init, matrix_axes("width", "kv_heads"))
        found["strength_bias"] = Parameter(kv[:1], Constant(0.0), vector_axes("kv_heads"))
        return found | self.mechanism.parameters()

    @property
    def _channels(self) -> dict[str, int]:
        return {TURN: self.num_kv_heads * self.head_width}

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Computes PaTH attention over a whole sequence; see `Mixer`."""
        if self.implementation == "blockwise":
            q, k, turns, _ = self._heads(params, x, self._no_past(x), mask)
            v = split_heads(params, "value", x)
            allowed = self.mechanism.bind(params, mask).mask
            out = householder.blockwise(q, k, v, turns, allowed, self.block_size)
            return self.merge(params, x, out)
        return self.merge(params, x, self._whole(dense.attend, params, x, mask))

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> AttentionTrace:
        """Returns the weights and the values of a whole sequence; see `Mixer`."""
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
        """Returns an empty "cache", of keys in float32 or wider, and the "past" of the convolution.

        See `cache.empty` and `short_convolution.init_past`.
        """
        past = short_convolution.init_past(self.turn_taps, self._channels, batch, dtype)

        def entries(params, x):
            return self._cache_entries(params, x, self._heads(params, x, self._no_past(x))[1])

        token = cached_shapes(self, entries, batch, dtype)
        return {"cache": cache.empty(self.mechanism.cache_mask, length, token), "past": past}

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T tokens; see `Mixer`."""
        kept, kept_before = self.mechanism.cache_mask, state["cache"]
        index = cache.positions(kept_before, x.shape[1])
        q, k, turns, past = self._heads(params, x, state["past"])
        chunk = householder.chunk(q, k, turns)
        # The cache has keys as the latest token sees them: new ones turned by those after them.
        new = self._cache_entries(params, x, jnp.moveaxis(chunk.keys, 1, 2))
        after, seen = cache.extend(kept, kept_before, new)
        scores = householder.with_cached(chunk, seen["k"], seen["positions"] - index[0])
        run = self._attend(dense.attend, params, x, scores, seen, index, cache.filled)
        is_old = (seen["positions"] < index[0])[:, None, None]
        turned = jnp.where(is_old, householder.turned(chunk, seen["k"]), seen["k"])
        after = cache.replace(kept, kept_before, after, {"k": turned})
        return {"cache": after, "past": past}, self.merge(params, x, run)

    def _whole(self, attend_fn, params, x, mask):
        """Returns `attend_fn(q, k, v, mechanism)` for a whole sequence."""
        q, k, turns, _ = self._heads(params, x, self._no_past(x), mask)
        scores = householder.chunk(q, k, turns).scores
        index = np.arange(x.shape[1])
        seen = {**self._cache_entries(params, x, k), "positions": index}
        return self._attend(attend_fn, params, x, scores, seen, index, mask)

    def _attend(self, attend_fn, params, x, scores, seen, index, mask):
        """Returns `attend_fn(q, k, v, mechanism)` for scores (B, H, T, S) that are known.

        Args:
          attend_fn: computes attention, as `dense.attend` does.
          params: as in `__call__`.
          x: the tokens whose queries attend.
          scores: of their queries on the tokens attended to.
          seen: `_cache_entries` of those, and their "positions".
          index: positions of the queries.
          mask: restricts the mixer's own mask further.
        """
        mechanism = self.mechanism.bind(params, mask).with_tokens(seen)
        mechanism = dataclasses.replace(mechanism, score=Given(scores))
        q = jnp.zeros((*x.shape[:2], self.num_heads, self.head_width), x.dtype)
        at = {"q_index": index, "kv_index": seen["positions"]}
        return attend_fn(q, seen["k"], seen["v"].astype(x.dtype), mechanism, **at)

    def _cache_entries(self, params, x, keys):
        """Returns what the cache has of each token, keys (B, T, K, D) included."""
        kept = {"k": keys, "v": split_heads(params, "value", x)}
        return kept | self.mechanism.bind(params).project_tokens(x)

    def _no_past(self, x):
        """Returns the convolution's inputs before the first token."""
        taps = self.turn_taps
        return short_convolution.init_past(taps, self._channels, x.shape[0], x.dtype)

    def _heads(self, params, x, past, mask=None):
        """Returns queries that are scaled, keys, w with beta, and the convolution's new past.

        The first three are float32 or wider.
        """
        wide = jnp.promote_types(x.dtype, jnp.float32)
        low = jnp.einsum("btm,mr->btr", x, params[f"{TURN}_in"].astype(x.dtype))
        w = jnp.einsum("btr,rkd->btkd", low, params[f"{TURN}_out"].astype(x.dtype))
        heads, past = short_convolution.activate(params, past, {TURN: w}, places_in_segments(mask))
        w = unit(heads[TURN])
        gate = jnp.einsum("btm,mk->btk", x, params["strength"].astype(x.dtype)).astype(wide)
        beta = 2 * jax.nn.sigmoid(gate + params["strength_bias"].astype(wide))
        q = split_heads(params, "query", x).astype(wide) * self.head_width**-0.5
        k = split_heads(params, "key", x).astype(wide)
        return q, k, householder.Turns(w, beta), past


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathOptions(AttentionOptions):
    """softmax(k_j^T H_{j+1} ... H_i q_i / sqrt(D)) v with H = I - 2 sigmoid(u . x) w w^T, w from a
    convolution of the tokens, of unit length
    """

    source = "Yang et al. 2025 (PaTH Attention), sections 2 and 3"
    implementations = ("dense", "blockwise")
    time = "T S H D; dense: T^3 K more"
    state = "2 K D S, and K D (N - 1) of the convolution"

    position: MechanismPart = choice(
        {**MODEL_POSITIONS, **BIAS_POSITIONS},
        "none",
        "position encoding",
        others="mixer 'path' applies no others",
    )
    num_kv_heads: int = size_option(0, "K, key/value heads; 0: num_heads")
    turn_rank: int = size_option(32, "R, rank of the projection of w", least=1)
    turn_taps: int = size_option(3, "N, taps of the convolution of w", least=1)
    forget_gate: bool = option(
        False,
        "scores decay by gates f = sigmoid(w x + b) of the tokens between query and key",
        source="Yang et al. 2025 (PaTH Attention), section 3, PaTH-FoX",
    )

    def sizes(self, context: Context) -> Sizes:
        """Returns the sizes of the heads; see `HeadOptions`."""
        return with_kv_heads(super().sizes(context), self.num_kv_heads)

    def build_biases(self, context: Context) -> tuple[Bias, ...]:
        """Returns the enabled biases, in the order that they apply in.

        Raises:
          OptionError: a query sees later keys.
        """
        if self.build_mask(context).prefix_length != 0:
            message = "mixer 'path' turns keys towards later queries; it needs a causal mask"
            raise OptionError("mask", self.mask.text, message)
        found = super().build_biases(context)
        if not self.forget_gate:
            return found
        return (*found, forget_gate(context.width, self.num_heads, context.init_stddev))

    def default_implementation(self, context: Context) -> str:
        """Returns blocks for long sequences, where they can do what is asked."""
        short = context.max_length <= DENSE_UP_TO
        return "dense" if short or self._lacking(context) else "blockwise"

    def resolved_implementation(self, context: Context) -> str:
        """Returns the implementation that runs, with "auto" resolved.

        Raises:
          OptionError: blocks cannot do what is asked.
        """
        if self.implementation == "blockwise" and (lacking := self._lacking(context)):
            message = f"its blocks do not have {lacking}; leave it 'auto'"
            raise OptionError("implementation", self.implementation, message)
        return super(AttentionOptions, self).resolved_implementation(context)

    def _lacking(self, context: Context) -> str:
        """Returns what "blockwise" lacks of what is asked; "" if nothing."""
        mechanism = self.mechanism(context)
        if mechanism.biases:
            return "biases"
        return "" if mechanism.normalizer == softmax else "other normalizers than softmax"

    def make(self, context: Context) -> Path:
        """Returns PaTH attention."""
        return build_from(
            Path,
            self.sizes(context),
            self,
            context,
            mechanism=self.mechanism(context),
            implementation=self.resolved_implementation(context),
        )
