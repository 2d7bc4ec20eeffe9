"""Self-attention as a mixer: projections, heads, positions and a decoding cache."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from research.attention.implementations import dense
from research.attention.implementations.attend import attend, decoding_implementation
from research.attention.mixers import cache
from research.attention.mixers.mixer import AttentionTrace, HeadScores, Mixer, cached_shapes
from research.attention.mixers.projections import (
    NORM_EPSILON,
    merge_heads,
    norm_scales,
    normalize_heads,
    projections,
    split_heads,
)
from research.attention.parameters import Parameter
from research.attention.parts.masks import Mask, causal
from research.attention.parts.mechanism import Mechanism
from research.attention.parts.positions import Rotary
from research.attention.parts.scores import ScaledDot, Score

CAUSAL = Mechanism(mask=causal())


class Handed(NamedTuple):
    """What a layer of self-attention hands to later layers.

    Attributes:
      values: its own values of the tokens that it mixed; None if it has none.
      tokens: the arrays that its queries attended to, by name, keys rotated; while decoding those
        of the cache, with their "positions".
    """

    values: Float[Array, "B T K D"] | None
    tokens: dict[str, Array]


class Earlier(NamedTuple):
    """What a layer gets from earlier ones.

    Attributes:
      values: `Handed.values` of the model's first layer; None if no layer needs them.
      has_values: scalar bool, False in the first layer itself, whose `values` are arbitrary.
      tokens: `Handed.tokens` of the nearest earlier layer with keys of its own; None without one.
    """

    values: Float[Array, "B T K D"] | None = None
    has_values: Bool[Array, ""] | None = None
    tokens: dict[str, Array] | None = None


@dataclasses.dataclass(frozen=True)
class SelfAttention(Mixer):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2) with shared key heads.

    num_kv_heads = num_heads is multi-head, 1 is multi-query (Shazeer 2019, section 3), and values
    in between are grouped-query attention (Ainslie et al. 2023, section 2.2). The mechanism is a
    static description; the learned arrays of its parts are among the mixer's parameters.

    Attributes:
      width: M.
      num_heads: H.
      num_kv_heads: K, which divides H.
      head_width: D.
      mechanism: the attention mechanism; hashable, so without arrays.
      rotary: rotates queries and keys by their positions; None for no rotation.
      qk_norm: "rms" normalizes queries and keys by RMSNorm over D, with learned gains, before they
        are rotated (Qwen Team 2025 (Qwen3), section 2); "zero_centered_rms" does with gains of 1 +
        a parameter (Gemma Team 2025 (Gemma 3)); "none" does not.
      norm_epsilon: added to the mean square in that norm.
      output_gate: multiplies the heads' outputs by sigmoid(x W) (Qiu et al. 2025, section 2.2).
      implementation: a name in `IMPLEMENTATIONS`.
      block_size: for implementations that have blocks; 0 chooses.
      use_bias: adds a bias to each of the four projections.
      qkv_bias: adds a bias to those of queries, keys and values (Bai et al. 2023, section 2.3).
      init_stddev: initial standard deviation of the projections; 0 is 1 / sqrt(fan in).
      out_scale: multiplies the initial output projection.
    """

    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    mechanism: Mechanism = CAUSAL
    rotary: Rotary | None = None
    qk_norm: str = "none"
    norm_epsilon: float = NORM_EPSILON
    output_gate: bool = False
    implementation: str = "dense"
    block_size: int = 0
    use_bias: bool = False
    qkv_bias: bool = False
    init_stddev: float = 0.02
    out_scale: float = 1.0

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name.

        Projections "query", "key", "value" and "out", their biases "query_bias" ... if any, gains
        "query_scale" and "key_scale" if these are normalized, "gate" if there is an output gate,
        and the parameters of the mechanism.
        """
        found = projections(self, self.mechanism.required_projections, self.qkv_bias)
        if self.qk_norm != "none":
            found |= norm_scales(self.head_width, self.qk_norm)
        if self.output_gate:
            found["gate"] = projections(self, names=("query",))["query"]
        return found | self.mechanism.parameters()

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Computes self-attention over a whole sequence; see `Mixer`."""
        return self.mix(params, x, mask=mask)[1]

    def mix(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        state: PyTree = None,
        *,
        mask: Mask | None = None,
        earlier: "Earlier | None" = None,
    ) -> tuple[PyTree, Float[Array, "B T M"], "Handed"]:
        """Returns the new state, the output, and what later layers may use of this one.

        Args:
          params: as in `__call__`.
          x: a whole sequence or, with a state, the next T tokens. The first chunk has to contain
            the whole prefix of a mask that has one.
          state: the decoding state; None for a whole sequence.
          mask: as in `__call__`; not with a state.
          earlier: what earlier layers handed over, for `AcrossLayers`; ignored here.
        """
        if state is None:
            index = np.arange(x.shape[1])
            seen, values = self._entries(params, x, index, earlier)
            attend_fn = self._attend_fn(self.implementation)
            out = self._attend(attend_fn, params, x, seen, index, index, mask)
            return None, self.merge(params, x, out), Handed(values, seen)
        index, kept = cache.positions(state, x.shape[1]), self.mechanism.cache_mask
        new, values = self._entries(params, x, index, earlier)
        after, seen = cache.extend(kept, state, new)
        changed, y = self._decode(params, x, seen, index, seen["positions"], cache.filled)
        return cache.replace(kept, state, after, changed), y, Handed(values, seen)

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
        index = np.arange(x.shape[1])
        kept, _ = self._entries(params, x, index)
        at = index, index, mask
        return {"indexer_loss": self._attend(dense.selection_loss, params, x, kept, *at)}

    def largest_scores(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> dict[str, HeadScores]:
        """Returns the largest score of each head for "query" and "key", biases too; see `Mixer`.

        Each takes the square root of a factor. A key head that queries share keeps its size, and
        the queries take the factor whole: no head's scores change because of another's.
        """
        plain = type(self.mechanism.score) in (Score, ScaledDot) and self.qk_norm == "none"
        if not plain:
            return {}
        index = np.arange(x.shape[1])
        kept, _ = self._entries(params, x, index)
        largest = self._attend(dense.largest_scores, params, x, kept, index, index, mask)
        own = self.num_kv_heads == self.num_heads
        names = [f"{name}{kind}" for name in ("query", "key") for kind in ("", "_bias")]
        return {
            name: of_heads(largest, params[name].ndim, 0.5 if own else 1.0)
            for name in names
            if name in params and (own or name.startswith("query"))
        }

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> AttentionTrace:
        """Returns the weights and values of a whole sequence; see `Mixer`."""
        index = np.arange(x.shape[1])
        kept, _ = self._entries(params, x, index)
        return self._attend(dense_trace, params, x, kept, index, index, mask)

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H D"],
    ) -> Float[Array, "B T M"]:
        """Gates and projects the heads' outputs; see `Mixer`."""
        return gate_and_merge(params, x, head_outputs)

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns an empty cache of the arrays from `cache_entries`; see `cache.empty`."""
        token = cached_shapes(self, self.cache_entries, batch, dtype)
        return cache.empty(self.mechanism.cache_mask, length, token)

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T tokens; see `Mixer` and `mix`."""
        return self.mix(params, x, state)[:2]

    def cache_entries(
        self, params: dict[str, Array], x: Float[Array, "B T M"]
    ) -> dict[str, Float[Array, "B T ..."]]:
        """Returns the arrays to cache per token, before positions are applied.

        "v" (B, T, K, D), "k" if the score needs keys, normalized if they are to be, and arrays of
        content-dependent parts.
        """
        kept = {"v": split_heads(params, "value", x)}
        if "key" in self.mechanism.required_projections:
            k = split_heads(params, "key", x)
            kept["k"] = normalize_heads(self, params, "key", k)
        return kept | self.mechanism.bind(params).project_tokens(x)

    def attend_to_cached(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        cached: dict[str, Float[Array, "B S ..."]],
        q_index: Int[Array, " T"],
        kv_index: Int[Array, " S"],
        mask: Mask,
    ) -> tuple[dict[str, Float[Array, "B S ..."]], Float[Array, "B T M"]]:
        """Computes attention of some tokens to cached ones, at given positions of both.

        Returns the cached arrays that change by it, and the output.

        Args:
          params: as in `__call__`.
          x: the tokens whose queries attend.
          cached: arrays of the tokens attended to, as `cache_entries` returns them.
          q_index: positions of the queries.
          kv_index: positions of the keys.
          mask: restricts the mixer's own mask further.
        """
        return self._decode(params, x, self._placed(cached, kv_index), q_index, kv_index, mask)

    def _decode(self, params, x, cached, q_index, kv_index, mask):
        """Does the same as `attend_to_cached`, with keys that are at their positions."""
        attend_fn = self._attend_fn(decoding_implementation(self.implementation, x.shape[1]))
        at, changed = (q_index, kv_index, mask), {}
        out = self._attend(attend_fn, params, x, cached, *at)
        if self.mechanism.changes_tokens:
            changed = self._attend(dense.stored_after, params, x, cached, *at)
        return changed, self.merge(params, x, out)

    def _entries(self, params, x, index, earlier=None):
        """Returns `cache_entries` of tokens at these positions, keys rotated, and their values."""
        found = self._placed(self.cache_entries(params, x), index)
        return found, found["v"]

    def _placed(self, cached, index):
        """Returns the cached arrays with the keys rotated to their positions."""
        if "k" not in cached or self.rotary is None:
            return cached
        return cached | {"k": self.rotary(cached["k"], index)}

    def _attend_fn(self, implementation):
        """Returns `attend` with this implementation."""
        return functools.partial(attend, implementation=implementation, block_size=self.block_size)

    def _attend(self, attend_fn, params, x, cached, q_index, kv_index, mask):
        """Returns `attend_fn(q, k, v, mechanism)` for the queries of x and the cache."""
        mechanism = self.mechanism.bind(params, mask).with_tokens(cached).with_queries(x)
        return project_and_attend(
            self, attend_fn, params, x, cached, mechanism, q_index, kv_index, mechanism.mask
        )


def of_heads(largest: Float[Array, " H"], ndim: int, power: Any) -> HeadScores:
    """Returns the `HeadScores` of a parameter (..., H, D) with so many dimensions.

    Args:
      largest: the largest score of each head.
      ndim: number of dimensions.
      power: a number, or one per channel, (D,).
    """
    power = jnp.asarray(power, largest.dtype)
    return HeadScores(
        largest.reshape((1,) * (ndim - 2) + (-1, 1)), power.reshape((1,) * (ndim - 1) + (-1,))
    )


def project_and_attend(
    mixer, attend_fn, params, x, keys_values, mechanism, q_index, kv_index, length_mask
):
    """Returns `attend_fn(q, k, v, mechanism)` for the queries of x and projected keys and values.

    Args:
      mixer: `SelfAttention` or `CrossAttention`.
      attend_fn: computes attention, as `attend` does.
      params: arrays of the shapes that `mixer.parameters` states.
      x: the tokens whose queries attend, (B, T, M).
      keys_values: "v" (B, S, K, D), and "k" if the score needs keys.
      mechanism: the bound mechanism.
      q_index: positions of the queries, (T,).
      kv_index: positions of the keys, (S,).
      length_mask: for a predicted window; see `Mechanism.with_predicted_window`.
    """
    if "query" in mechanism.required_projections:
        q = split_heads(params, "query", x)
        q = normalize_heads(mixer, params, "query", q)
        q = q if mixer.rotary is None else mixer.rotary(q, q_index)
    else:
        q = jnp.zeros((*x.shape[:2], mixer.num_heads, mixer.head_width), x.dtype)
    if mechanism.focus is not None:
        mechanism = mechanism.with_predicted_window(q, q_index, kv_index, length_mask)
    k, v = keys_values.get("k", keys_values["v"]), keys_values["v"]
    return attend_fn(q, k, v, mechanism, q_index=q_index, kv_index=kv_index)


def gate_and_merge(
    params: dict[str, Array], x: Float[Array, "B T M"], head_outputs: Float[Array, "B T H D"]
) -> Float[Array, "B T M"]:
    """Multiplies the heads' outputs by sigmoid(x W) if there is a "gate" W, and projects them."""
    head_outputs = head_outputs.astype(x.dtype)
    if "gate" in params:
        head_outputs = head_outputs * jax.nn.sigmoid(
            split_heads({"gate": params["gate"]}, "gate", x)
        )
    return merge_heads(params, head_outputs)


def dense_trace(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: Mechanism,
    **at: Any,
) -> AttentionTrace:
    """Returns the weights, values and scores of `attend` for the same arguments, densely."""
    return AttentionTrace(
        dense.weights(q, k, mechanism, **at), v, dense.scores(q, k, mechanism, **at)
    )
