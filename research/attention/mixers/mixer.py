"""The interface shared by everything that mixes a sequence, attention or not."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from research.attention.errors import Unsupported
from research.attention.parameters import Parameter
from research.attention.parts.masks import Mask


class Look(NamedTuple):
    """A mixer laid open: what it reads of a sequence, and with which weights.

    `merge(params, x, read_values(look.weights, look.values))` is what the mixer computes. Weights
    need not be positive or sum to one: those of a recurrence are what its outputs are made of.

    Attributes:
      weights: from queries to keys, float32 or wider.
      values: what is summed; H is a multiple of their K heads.
      scores: what the normalizer saw, biases included and masks not; None where nothing is
        normalized.
    """

    weights: Float[Array, "B H T S"]
    values: Float[Array, "B S K D"]
    scores: Float[Array, "B H T S"] | None = None


def read_values(
    weights: Float[Array, "B H T S"], values: Float[Array, "B S K D"]
) -> Float[Array, "B T H D"]:
    """sum_s weights_ts values_s of the values that a head shares, in the dtype of the weights."""
    (b, h, t, s), (kv_heads, width) = weights.shape, values.shape[2:]
    grouped = weights.reshape(b, kv_heads, h // kv_heads, t, s)
    out = jnp.einsum("bkgts,bskd->btkgd", grouped, values.astype(weights.dtype))
    return out.reshape(b, t, h, width)


@dataclasses.dataclass(frozen=True)
class Mixer:
    """What maps a sequence (B, T, M) to a sequence (B, T, M), mixing over T.

    A mixer is a frozen, hashable dataclass of static options and owns no arrays. Parameters are
    float32 and are cast to the dtype of x; softmax statistics and recurrent states are float32.
    The two ways to run it agree: calling it on a whole sequence, and feeding the sequence to
    `extend` in chunks of any size.
    """

    def parameters(self) -> dict[str, Parameter]:
        """What it learns, by name."""
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
          mask: restricts the mixer's own mask further (padding, segments).

        Raises:
          Unsupported: a mask was given and this mixer cannot take one.
        """
        raise NotImplementedError

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """The state before the first of at most `length` tokens.

        Raises:
          Unsupported: the mixer looks ahead, so it cannot be run token by token.
        """
        raise NotImplementedError

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T >= 1 tokens and returns the new state with their outputs.

        The outputs equal those of the whole-sequence form at the same positions. Feeding more
        tokens than the state was made for is an error that cannot be seen inside compiled code.
        """
        raise NotImplementedError

    def look(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Look:
        """The weights and values of a whole sequence, whatever implementation computes it.

        Arguments as in calling. All T S weights of all heads are in memory at once.

        Raises:
          Unsupported: what the mixer computes is no weighted sum over positions.
        """
        name = type(self).__name__
        raise Unsupported(f"{name} sums no values, so it has no weights to look at")

    def merge(
        self, params: dict[str, Array], x: Float[Array, "B T M"], read: Float[Array, "B T H D"]
    ) -> Float[Array, "B T M"]:
        """What the mixer makes of what its heads read; see `Look`.

        Args:
          params: arrays of the shapes that `parameters` states.
          x: the sequence, which may gate it.
          read: the sums of values.

        Raises:
          Unsupported: as `look`.
        """
        name = type(self).__name__
        raise Unsupported(f"{name} sums no values, so there is nothing to merge")


def kept_of_token(
    mixer: Any, remember: Callable[..., dict[str, Array]], batch: int, dtype: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of what `remember(params, x)` keeps of one token (B, 1, M) of this dtype."""
    params = {
        name: jax.ShapeDtypeStruct(p.shape, "float32") for name, p in mixer.parameters().items()
    }
    token = jax.ShapeDtypeStruct((batch, 1, mixer.width), dtype)
    return dict(jax.eval_shape(remember, params, token))


def init_params(mixer: Mixer, key: Array, dtype: Any = "float32") -> dict[str, Array]:
    """Draws every parameter of a mixer, each from a key of its own."""
    described = mixer.parameters()
    keys = jax.random.split(key, len(described))
    return {
        name: p.init(k, p.shape, dtype)
        for (name, p), k in zip(described.items(), keys, strict=True)
    }


def state_bytes(mixer: Mixer, batch: int, length: int, dtype: Any) -> int:
    """The size of the decoding state in bytes, exact because it is read off the state itself."""
    state = jax.eval_shape(lambda: mixer.init_state(batch, length, dtype))
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(state))
