"""Self-attention whose weights depend on previous weights, so that it runs sequentially."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from research.attention.errors import Unsupported
from research.attention.mixers import cache
from research.attention.mixers.attention_options import ScoredOptions
from research.attention.mixers.mixer import AttentionTrace, Mixer, cached_shapes
from research.attention.mixers.mixer_options import (
    Context,
    HeadOptions,
    InputPositionOptions,
    MixerOptions,
    build_from,
)
from research.attention.mixers.projections import merge_heads, projections, split_heads
from research.attention.mixers.sequential.alignments import (
    FILTER_LENGTH,
    Alignment,
    ContentAlignment,
    Coverage,
    LocationAware,
    weighted_sum,
)
from research.attention.mixers.sequential.monotonic import CHUNK, Monotonic, MonotonicChunkwise
from research.attention.parameters import Parameter
from research.attention.parts.masks import Mask, causal
from research.attention.parts.normalizers import NORMALIZERS
from research.attention.parts.part_options import MechanismPart, length_option, size_option
from research.attention.parts.segments import places_in_segments
from research.options import OptionError, choice

CAUSAL = causal()


@dataclasses.dataclass(frozen=True)
class Stepwise(Mixer):
    """Causal self-attention that runs an `Alignment` query by query.

    A query attends to the inputs up to and including its own, with the weights of the alignment;
    those of monotonic alignments may sum to less than 1. The alignment's state is carried from
    query to query, so an output depends on earlier inputs through earlier weights too.

    Attributes:
      width: M.
      num_heads: H.
      num_kv_heads: K, which divides H.
      head_width: D.
      alignment: computes a query's weights from the keys and the previous weights.
      use_bias: adds a bias to each of the four projections.
      init_stddev: initial standard deviation of the projections; 0 is 1 / sqrt(fan in). Matrices
        of the alignment always start at 1 / sqrt(fan in).
      out_scale: multiplies the initial output projection.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    alignment: Alignment
    use_bias: bool = False
    init_stddev: float = 0.02
    out_scale: float = 1.0

    def parameters(self) -> dict[str, Parameter]:
        """Returns the projections of `SelfAttention`, and the alignment's as "alignment_..."."""
        learned = self.alignment.parameters()
        return projections(self) | {f"alignment_{name}": p for name, p in learned.items()}

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Computes attention over a whole sequence; see `Mixer`."""
        seen = self._cache_entries(params, x)
        out = self._whole(
            params, x, seen, mask, lambda weights: weighted_sum(weights, seen["v"])[:, 0]
        )
        return merge_heads(params, out)

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> AttentionTrace:
        """Returns the weights and values of a whole sequence; see `Mixer`. No scores."""
        seen = self._cache_entries(params, x)
        weights = self._whole(params, x, seen, mask, lambda weights: weights)
        return AttentionTrace(jnp.swapaxes(weights, 1, 2), seen["v"])

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H D"],
    ) -> Float[Array, "B T M"]:
        """Projects the heads' outputs; see `Mixer`."""
        return merge_heads(params, head_outputs.astype(x.dtype))

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns an empty "cache" of all tokens, and the initial state of the "alignment"."""
        token = cached_shapes(self, self._cache_entries, batch, dtype)
        return {
            "cache": cache.empty(CAUSAL, length, token),
            "alignment": self.alignment.init_state(batch, length, dtype),
        }

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T tokens; see `Mixer`."""
        index = cache.positions(state["cache"], x.shape[1])
        kept, seen = cache.extend(CAUSAL, state["cache"], self._cache_entries(params, x))
        # A causal mask keeps every key, so slots are positions, and previous weights stay aligned.
        sight = (index, seen["positions"], CAUSAL & cache.filled)
        aligned, out = self._scan(
            params, x, seen, sight, state["alignment"], lambda w: weighted_sum(w, seen["v"])[:, 0]
        )
        return {"cache": kept, "alignment": aligned}, merge_heads(params, out.astype(x.dtype))

    def _cache_entries(self, params, x):
        """Returns the arrays to cache per token for later queries."""
        k = split_heads(params, "key", x)
        own = self.alignment.precompute_keys(self._learned(params), k)
        return {**own, "v": split_heads(params, "value", x)}

    def _learned(self, params):
        """Returns the alignment's parameters, without the prefix of their names."""
        return {name: params[f"alignment_{name}"] for name in self.alignment.parameters()}

    def _whole(self, params, x, seen, mask, take):
        index = np.arange(x.shape[1])
        sight = (index, index, CAUSAL if mask is None else CAUSAL & mask)
        state = self.alignment.init_state(x.shape[0], x.shape[1], x.dtype)
        return self._scan(params, x, seen, sight, state, take, places_in_segments(mask))[1]

    def _scan(self, params, x, seen, sight, state, take, places=None):
        """Returns the last state, and `take(weights)` (B, ...) of all queries as (B, T, ...).

        At place 0 of a segment the state starts anew, as if there were no earlier keys.
        """
        q_index, kv_index, mask = sight
        learned, kv_index = self._learned(params), jnp.asarray(kv_index)

        # The hidden layer of the energies, S A numbers per head and query, is recomputed for the
        # gradient instead of stored.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def step(state, query):
            q, at, place = query
            if place is not None:
                state = jax.tree.map(functools.partial(anew, place, at), state, first)
            weights, state = self.alignment.step(
                learned, q[:, None], seen, at[None], kv_index, mask, state
            )
            return state, take(weights)

        def anew(place, at, state, first):
            return jnp.where((place == 0)[:, None, None], jnp.roll(first, at, -1), state)

        first = state
        q = jnp.moveaxis(split_heads(params, "query", x), 1, 0)
        places = None if places is None else places.T
        state, out = lax.scan(step, state, (q, jnp.asarray(q_index), places))
        return state, jnp.moveaxis(out, 0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepwiseOptions(HeadOptions, InputPositionOptions):
    """Options of attention that takes one query after the other."""

    implementations = ("recurrent",)
    where = ("self", "decoder")
    state = "S H (A + D + 1)"

    score_width: int = size_option(0, "A, hidden width of the score; 0: head_width")

    def alignment(self, context: Context) -> Alignment:
        """Returns the alignment."""
        raise NotImplementedError

    def score_sizes(self, context: Context) -> tuple[int, int, int, int]:
        """Returns H, K, D, A."""
        s = self.sizes(context)
        return s.num_heads, s.num_kv_heads, s.head_width, self.score_width or s.head_width

    def make(self, context: Context) -> Stepwise:
        """Returns self-attention with this alignment."""
        alignment = self.alignment(context)
        if isinstance(alignment, Monotonic):
            # See `Monotonic.waits`.
            alignment = dataclasses.replace(alignment, waits=True)
        return build_from(Stepwise, self.sizes(context), context, alignment=alignment)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocationAwareOptions(StepwiseOptions):
    """weights from v . tanh(W q + U k + V f + b), f a convolution of the previous weights"""

    source = "Chorowski et al. 2015, equations 8-9"
    time = "T S H (A (1 + filters) + taps filters) + T D A H, sequential"

    filter_length: int = size_option(
        0, "taps of the convolution over the previous weights, odd; 0: 15"
    )
    normalizer: MechanismPart = choice(NORMALIZERS, "softmax", "maps scores to weights")

    def alignment(self, context: Context) -> LocationAware:
        """Returns the alignment.

        Raises:
          OptionError: filter_length is even.
        """
        length = self.filter_length or FILTER_LENGTH
        if length % 2 == 0:
            message = "must be odd, to have a middle, or 0 for 15"
            raise OptionError("filter_length", length, message)
        normalizer = self.normalizer.build(self.sizes(context))
        sizes = self.score_sizes(context)
        return LocationAware(*sizes, filter_length=length, normalizer=normalizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoverageOptions(StepwiseOptions):
    """weights from v . tanh(W q + U k + c w + b), c the sum of the previous weights"""

    source = "See et al. 2017, equations 10-11; Tu et al. 2016, section 3.1, without fertility"
    time = "T S H A + T D A H, sequential"

    normalizer: MechanismPart = choice(NORMALIZERS, "softmax", "maps scores to weights")

    def alignment(self, context: Context) -> Coverage:
        """Returns the alignment."""
        normalizer = self.normalizer.build(self.sizes(context))
        return Coverage(*self.score_sizes(context), normalizer=normalizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonotonicOptions(StepwiseOptions):
    """weights are the probabilities that a reader that only moves forward stops at each key, with
    p = sigma(energy) at a key that it inspects; they may sum to less than 1
    """

    source = "Raffel et al. 2017, sections 2.3-2.4"
    time = "T S H A + T D A H, sequential"

    def alignment(self, context: Context) -> Monotonic:
        """Returns the alignment."""
        return Monotonic(*self.score_sizes(context))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonotonicChunkwiseOptions(StepwiseOptions):
    """a softmax over the chunk of keys that ends where a monotonic reader stops; weights may sum to
    less than 1
    """

    source = "Chiu and Raffel 2018 (MoChA), section 2.3"
    time = "T S H (2 A + chunk) + 2 T D A H, sequential"
    state = "S H (2 A + D + 1)"

    chunk: int = length_option(0, "keys per chunk, which ends where the reader stops; 0: 4")

    def alignment(self, context: Context) -> MonotonicChunkwise:
        """Returns the alignment."""
        return MonotonicChunkwise(*self.score_sizes(context), chunk=self.chunk or CHUNK)


def make_alignment(options: MixerOptions, context: Context) -> Alignment:
    """Returns the alignment for a recurrent decoder that these options describe.

    Raises:
      Unsupported: the mixer cannot attend one query at a time.
    """
    if isinstance(options, StepwiseOptions):
        return options.alignment(context)
    if isinstance(options, ScoredOptions):
        return ContentAlignment(options.mechanism(context))
    raise Unsupported(f"{type(options).__name__} cannot attend one query at a time")
