"""The interface of all sequence mixers, attention or not."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from research.attention.errors import Unsupported
from research.attention.parameters import Parameter
from research.attention.parts.masks import Mask
from research.attention.parts.segments import Segments, places_in_segments


class AttentionTrace(NamedTuple):
    """The materialized attention weights and values of a mixer on one sequence.

    `merge(params, x, weighted_values(trace.weights, trace.values))` equals the output of the mixer.
    Weights need not be positive or sum to one: a recurrence has implied weights, the coefficients
    of the values in its outputs.

    Attributes:
      weights: weights of each query on each key, float32 or wider.
      values: the vectors that the weights sum; H is a multiple of their K heads.
      scores: inputs of the normalizer, with biases and without masks; None for mixers without
        a normalizer.
    """

    weights: Float[Array, "B H T S"]
    values: Float[Array, "B S K D"]
    scores: Float[Array, "B H T S"] | None = None


class HeadScores(NamedTuple):
    """The largest scores of heads, and how a parameter takes part in them.

    Both broadcast to the parameter.

    Attributes:
      largest: the largest score of the head that each entry belongs to, float32 or wider.
      power: by which power of a factor an entry is multiplied when scores are, by that factor.
    """

    largest: Array
    power: Array


def weighted_values(
    weights: Float[Array, "B H T S"], values: Float[Array, "B S K D"]
) -> Float[Array, "B T H D"]:
    """Returns sum_s weights_ts values_s per head, grouped values, in the dtype of the weights."""
    (b, h, t, s), (kv_heads, width) = weights.shape, values.shape[2:]
    grouped = weights.reshape(b, kv_heads, h // kv_heads, t, s)
    out = jnp.einsum("bkgts,bskd->btkgd", grouped, values.astype(weights.dtype))
    return out.reshape(b, t, h, width)


@dataclasses.dataclass(frozen=True)
class Mixer:
    """The base class of mixers, which map (B, T, M) to (B, T, M) and mix over T.

    A mixer is a frozen, hashable dataclass of static options and owns no arrays. Parameters are
    float32 and are cast to the dtype of x; softmax statistics and recurrent states are float32.
    Calling a mixer on a whole sequence gives the same outputs as feeding the sequence to `extend`
    in chunks of any size.
    """

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name."""
        raise NotImplementedError

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Mixes a whole sequence at positions 0 .. T-1.

        Args:
          params: arrays of the shapes that `parameters` states.
          x: the sequence.
          mask: restricts the mixer's own mask further. Mixers with a state take segments only:
            they start every segment from their initial state.

        Raises:
          Unsupported: this mixer cannot take this mask.
        """
        raise NotImplementedError

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns the decoding state before the first of at most `length` tokens.

        Raises:
          Unsupported: the mixer is not causal, so it cannot run token by token.
        """
        raise NotImplementedError

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T >= 1 tokens and returns the new state with their outputs.

        The outputs equal those of the whole-sequence form at the same positions. Feeding more
        tokens than the state was made for is an error that compiled code cannot detect.
        """
        raise NotImplementedError

    def losses(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> dict[str, Float[Array, ""]]:
        """Returns what its parts minimise beside the task's loss, on a whole sequence, by name.

        Each is a mean over queries. Arguments are those of `__call__`; most mixers have none.
        """
        return {}

    def largest_scores(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> dict[str, HeadScores]:
        """Returns the largest score of each head in a batch, for each parameter to scale it by.

        Scores are those of visible pairs, before biases and caps; all of them are in memory at
        once. Arguments are those of `__call__`; {} for a mixer whose scores are no products of
        queries and keys.
        """
        return {}

    def attention_trace(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> AttentionTrace:
        """Returns the weights and values of a whole sequence, for every implementation.

        Arguments are those of `__call__`. All T S weights of all heads are in memory at once.

        Raises:
          Unsupported: the mixer does not compute a weighted sum over positions.
        """
        name = type(self).__name__
        raise Unsupported(f"{name} is no weighted sum of values, so it has no attention weights")

    def merge(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        head_outputs: Float[Array, "B T H D"],
    ) -> Float[Array, "B T M"]:
        """Maps the heads' weighted sums of values to the output of the mixer; see `AttentionTrace`.

        Args:
          params: arrays of the shapes that `parameters` states.
          x: the input sequence, from which gates may be computed.
          head_outputs: the weighted sums of values.

        Raises:
          Unsupported: as `attention_trace`.
        """
        name = type(self).__name__
        raise Unsupported(f"{name} is no weighted sum of values, so there is nothing to merge")


def places_of(name: str, mask: Mask | None) -> Int[Array, "B T"] | None:
    """Returns `places_in_segments` for a mixer with a state, which starts anew at place 0.

    Raises:
      Unsupported: the mask is not `Segments`, the only one that such a mixer can take.
    """
    if not isinstance(mask, Segments | None):
        raise Unsupported(f"mixer {name!r} cannot take a mask other than segments; 'softmax' can")
    return places_in_segments(mask)


def cached_shapes(
    mixer: Any, cache_entries: Callable[..., dict[str, Array]], batch: int, dtype: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of `cache_entries(params, x)` for one token x, (B, 1, M)."""
    params = {
        name: jax.ShapeDtypeStruct(p.shape, "float32") for name, p in mixer.parameters().items()
    }
    token = jax.ShapeDtypeStruct((batch, 1, mixer.width), dtype)
    return dict(jax.eval_shape(cache_entries, params, token))


def init_params(mixer: Mixer, key: Array, dtype: Any = "float32") -> dict[str, Array]:
    """Draws all parameters of a mixer, each from its own key."""
    described = mixer.parameters()
    keys = jax.random.split(key, len(described))
    return {
        name: p.init(k, p.shape, dtype)
        for (name, p), k in zip(described.items(), keys, strict=True)
    }


def state_bytes(mixer: Mixer, batch: int, length: int, dtype: Any) -> int:
    """Returns the size of the decoding state in bytes, from the shapes of the state itself."""
    state = jax.eval_shape(lambda: mixer.init_state(batch, length, dtype))
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(state))
