"""Alignments: attention to a memory one query at a time, for recurrent decoders.

Weights may depend on the previous query's weights, so decoding is sequential. Like a mixer, an
alignment is a static description; the previous weights are in its state. Alignments that only
move forward are in monotonic.py; stepwise.py has the table of all.
"""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PyTree

from research.attention.implementations import dense
from research.attention.parameters import (
    Constant,
    Parameter,
    bind,
    collect_parameters,
    matrix_axes,
    matrix_init,
    table_axes,
    vector_axes,
)
from research.attention.parts.additive_scores import Additive, Concat, additive_scores
from research.attention.parts.masks import Mask
from research.attention.parts.mechanism import PLAIN, Mechanism
from research.attention.parts.normalizers import Normalizer, softmax
from research.attention.parts.scores import NonDotScore

FILTER_LENGTH = 15

Position = Integer[Array | np.ndarray, "1"]
Positions = Integer[Array | np.ndarray, " S"]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The base class of alignments.

    An alignment is a frozen, hashable dataclass of static options and owns no arrays.
    """

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name."""
        raise NotImplementedError

    def precompute_keys(
        self, params: dict[str, Array], k: Float[Array, "B S K D"]
    ) -> dict[str, Float[Array, "B S ..."]]:
        """Returns arrays computed from the keys once, by name, that every query uses."""
        return {"k": k}

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns the state before the first query, for a memory of S = `length` keys."""
        raise NotImplementedError

    def step(
        self,
        params: dict[str, Array],
        q: Float[Array, "B 1 H D"],
        memory: dict[str, Float[Array, "B S ..."]],
        q_index: Position,
        kv_index: Positions,
        mask: Mask | None,
        state: PyTree,
    ) -> tuple[Float[Array, "B H S"], PyTree]:
        """Returns the weights of the next query, and the new state.

        Args:
          params: arrays of the shapes that `parameters` states.
          q: the query.
          memory: result of `precompute_keys` for S keys; H is a multiple of their K heads.
          q_index: absolute position of the query, (1,).
          kv_index: absolute positions of the keys, (S,), in this order; -1 for empty slots, which
            the mask has to forbid.
          mask: the keys that the query may see; None allows all.
          state: the state after the previous query.

        Returns:
          Weights, float32 or wider, exactly zero where forbidden, and the new state.
        """
        raise NotImplementedError


def weighted_sum(
    weights: Float[Array, "B H S"], v: Float[Array, "B S K D"]
) -> Float[Array, "B 1 H D"]:
    """Returns sum_s weights_s v_s per head, with grouped values, in the dtype of v."""
    (b, h, s), (kv_heads, width) = weights.shape, v.shape[2:]
    grouped = weights.astype(v.dtype).reshape(b, kv_heads, h // kv_heads, s)
    out = jnp.einsum("bkgs,bskd->bkgd", grouped, v, preferred_element_type=weights.dtype)
    return out.reshape(b, 1, h, width).astype(v.dtype)


@dataclasses.dataclass(frozen=True)
class ContentAlignment(Alignment):
    """Ordinary attention, one query at a time: weights do not depend on previous weights.

    Attributes:
      mechanism: the attention mechanism; hashable, so without arrays.
    """

    mechanism: Mechanism = PLAIN

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters of the mechanism."""
        return self.mechanism.parameters()

    def precompute_keys(
        self, params: dict[str, Array], k: Float[Array, "B S K D"]
    ) -> dict[str, Float[Array, "B S ..."]]:
        """Returns the keys "k", or for additive scores "hidden" (B, S, K or H, A), the keys' term.

        Computing U k once saves a product of all keys at every query.
        """
        score = self.mechanism.bind(params).score
        if isinstance(score, Additive):
            return {"hidden": jnp.einsum("bskd,kda->bska", k, score.key.astype(k.dtype))}
        if isinstance(score, Concat):
            weight = score.weight[:, -k.shape[-1] :].astype(k.dtype)
            k = jnp.repeat(k, len(weight) // k.shape[2], axis=2)
            return {"hidden": jnp.einsum("bshd,hda->bsha", k, weight)}
        return {"k": k}

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns an empty state."""
        return ()

    def step(
        self,
        params: dict[str, Array],
        q: Float[Array, "B 1 H D"],
        memory: dict[str, Float[Array, "B S ..."]],
        q_index: Position,
        kv_index: Positions,
        mask: Mask | None,
        state: PyTree,
    ) -> tuple[Float[Array, "B H S"], PyTree]:
        """See `Alignment`."""
        at = {"q_index": q_index, "kv_index": kv_index}
        mechanism = self.mechanism.bind(params, mask).with_predicted_window(
            q, **at, length_mask=mask
        )
        if "hidden" not in memory:
            return dense.weights(q, memory["k"], mechanism, **at)[:, :, 0], state
        hidden = memory["hidden"]
        score: Any = mechanism.score
        mechanism = dataclasses.replace(mechanism, score=_OfHidden(score, hidden))
        # The score holds the keys' term already, so the keys themselves can be zeros.
        k = jnp.zeros((*hidden.shape[:3], q.shape[-1]), q.dtype)
        return dense.weights(q, k, mechanism, **at)[:, :, 0], state


@dataclasses.dataclass(frozen=True)
class _OfHidden(NonDotScore):
    """An additive score with a precomputed term of the keys, (B, S, K or H, A)."""

    inner: Additive | Concat
    hidden_keys: Array

    def __call__(self, q, k, q_index, kv_index):
        score = self.inner
        # The rows of the query come first.
        weight = score.query if isinstance(score, Additive) else score.weight[:, : q.shape[-1]]
        hidden = jnp.einsum("bthd,hda->bhta", q, weight.astype(q.dtype))
        return additive_scores(hidden, jnp.swapaxes(self.hidden_keys, 1, 2), score.vector)


@dataclasses.dataclass(frozen=True)
class AdditiveAlignment(Alignment):
    """The base class of alignments whose additive energy depends on previous weights.

    Attributes:
      num_heads: H.
      num_kv_heads: K, which divides H.
      head_width: D.
      score_width: A, the width of the energy's hidden layer.
    """

    num_heads: int
    num_kv_heads: int
    head_width: int
    score_width: int

    def precompute_keys(
        self, params: dict[str, Array], k: Float[Array, "B S K D"]
    ) -> dict[str, Float[Array, "B S ..."]]:
        """Returns "hidden" (B, S, K, A), the keys' term of the energy."""
        return {"hidden": hidden_keys(params, "key", k)}

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns zeros (B, H, S), float32 or wider, for the previous weights."""
        wide = jnp.promote_types(dtype, jnp.float32)
        return jnp.zeros((batch, self.num_heads, length), wide)

    def _energy(self, prefix: str = "") -> dict[str, Parameter]:
        heads, kv_heads = (self.num_heads,), (self.num_kv_heads,)
        inner, init = (self.head_width, self.score_width), matrix_init(0.0, self.head_width)
        vector = matrix_init(0.0, self.score_width)
        return {
            f"{prefix}query": Parameter(
                heads + inner, init, matrix_axes("heads", "head_width", "", roles="sio")
            ),
            f"{prefix}key": Parameter(
                kv_heads + inner, init, matrix_axes("kv_heads", "head_width", "", roles="sio")
            ),
            f"{prefix}bias": Parameter(
                (*heads, self.score_width), Constant(0.0), vector_axes("heads", "")
            ),
            f"{prefix}vector": Parameter(
                (*heads, self.score_width), vector, table_axes("heads", "", roles="so")
            ),
        }


def hidden_keys(
    params: dict[str, Array], name: str, k: Float[Array, "B S K D"]
) -> Float[Array, "B S K A"]:
    """Returns the keys' term of an additive energy, U k."""
    return jnp.einsum("bskd,kda->bska", k, params[name].astype(k.dtype))


def hidden_query(
    params: dict[str, Array], prefix: str, q: Float[Array, "B 1 H D"]
) -> Float[Array, "B H 1 A"]:
    """Returns the query's term of an additive energy, W q + b."""
    hidden = jnp.einsum("bthd,hda->bhta", q, params[f"{prefix}query"].astype(q.dtype))
    return hidden + params[f"{prefix}bias"].astype(q.dtype)[:, None]


@dataclasses.dataclass(frozen=True)
class AdditiveWithHistory(AdditiveAlignment):
    """The base class of alignments whose energy has a term computed from the previous weights.

    Weights are the normalized v . tanh(W q + U k + b + term).

    Attributes:
      normalizer: maps scores to weights.
    """

    normalizer: Normalizer = softmax

    def step(
        self,
        params: dict[str, Array],
        q: Float[Array, "B 1 H D"],
        memory: dict[str, Float[Array, "B S ..."]],
        q_index: Position,
        kv_index: Positions,
        mask: Mask | None,
        state: PyTree,
    ) -> tuple[Float[Array, "B H S"], PyTree]:
        """See `Alignment`."""
        hidden = jnp.swapaxes(memory["hidden"], 1, 2)
        hidden = jnp.repeat(hidden, self.num_heads // self.num_kv_heads, axis=1)
        hidden = hidden + self._history_term(params, state).astype(hidden.dtype)
        scores = additive_scores(hidden_query(params, "", q), hidden, params["vector"])
        allowed = None if mask is None else mask(q_index[:, None], kv_index[None, :])
        weights = bind(self.normalizer, "normalizer", params)(scores, allowed)[:, :, 0]
        weights = weights.astype(state.dtype)
        return weights, self._next_state(state, weights)

    def _history_term(self, params, state):
        """Returns the term (B, H, S, A) of the state in the hidden layer of the energy."""
        raise NotImplementedError

    def _next_state(self, state, weights):
        """Returns the state after a query with these weights."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class LocationAware(AdditiveWithHistory):
    """Weights from v . tanh(W q + U k + V f + b), where f is a convolution of the previous weights.

    Chorowski et al. 2015, equations 8 and 9 (hybrid). f_s = sum_n F_n previous_{s + n - N // 2},
    zero-padded at the ends, with separate filters per head. The previous weights of the first query
    are zeros.

    Attributes:
      filter_length: N, odd.
      num_filters: number of filters in F; 10 in the paper. The paper's normalizers are a sharpened
        softmax and smoothing.

    Raises:
      ValueError: `filter_length` is even.
    """

    filter_length: int = FILTER_LENGTH
    num_filters: int = 10

    def __post_init__(self):
        if self.filter_length % 2 == 0:
            message = f"filter_length = {self.filter_length}; it must be odd, to have a middle"
            raise ValueError(message)

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name.

        W "query" (H, D, A), U "key" (K, D, A), b "bias" and v "vector" (H, A), F "filters"
        (H, N, filters), V "location" (H, filters, A), and "normalizer_..." if it has parameters.
        """
        filters = (self.num_heads, self.filter_length, self.num_filters)
        place = (self.num_heads, self.num_filters, self.score_width)
        init, place_init = matrix_init(0.0, self.filter_length), matrix_init(0.0, self.num_filters)
        return {
            **self._energy(),
            "filters": Parameter(filters, init, table_axes("heads", "taps", "", roles="soo")),
            "location": Parameter(place, place_init, matrix_axes("heads", "", "", roles="sio")),
            **collect_parameters(self.normalizer, "normalizer"),
        }

    def _history_term(self, params, state):
        filtered = _filtered(state, params["filters"])
        return jnp.einsum("bhsf,hfa->bhsa", filtered, params["location"])

    def _next_state(self, state, weights):
        return weights


def _filtered(x: Float[Array, "B H S"], filters: Float[Array, "H N F"]) -> Float[Array, "B H S F"]:
    """Returns sum_n filters[h, n] x[s + n - N // 2], by shifted copies, in the dtype of x."""
    length, taps = x.shape[-1], filters.shape[1]
    padded = jnp.pad(x, ((0, 0), (0, 0), (taps // 2, taps // 2)))
    filters = filters.astype(x.dtype)[:, :, None]
    shifted = (padded[..., n : n + length, None] * filters[:, n] for n in range(taps))
    return functools.reduce(jnp.add, shifted)


@dataclasses.dataclass(frozen=True)
class Coverage(AdditiveWithHistory):
    """Weights from v . tanh(W q + U k + c w + b), where c is the sum of a key's previous weights.

    See et al. 2017, equations 10 and 11. It is the coverage of Tu et al. 2016, section 3.1, with
    one number per key and without fertility. For the first query c is zero.
    """

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name.

        W "query" (H, D, A), U "key" (K, D, A), b "bias", v "vector" and w "coverage" (H, A), and
        "normalizer_..." if it has parameters.
        """
        # Initialized as small as v, because the coverage grows with the number of queries.
        covered = matrix_init(0.0, self.score_width)
        return {
            **self._energy(),
            "coverage": Parameter(
                (self.num_heads, self.score_width), covered, table_axes("heads", "", roles="so")
            ),
            **collect_parameters(self.normalizer, "normalizer"),
        }

    def _history_term(self, params, state):
        return state[..., None] * params["coverage"].astype(state.dtype)[:, None]

    def _next_state(self, state, weights):
        return state + weights
