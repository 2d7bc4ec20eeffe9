"""Attention over unbounded text, with a rolling cache of the first and the latest tokens."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from research.attention.errors import Unsupported
from research.attention.mixers import cache
from research.attention.mixers.across_layers import AcrossLayers
from research.attention.mixers.mixer import Mixer, cached_shapes, state_bytes
from research.attention.mixers.self_attention import SelfAttention
from research.attention.parameters import Parameter
from research.attention.parts.masks import Mask, causal, window
from research.attention.parts.sparse_masks import global_tokens


@dataclasses.dataclass(frozen=True)
class Streaming(Mixer):
    """Self-attention that reads a rolling cache (Xiao et al. 2023, section 3.2).

    The cache holds the first `sinks` and the latest `size - sinks` tokens. Positions are places in
    the cache, not in the text: as if the middle had been cut out of the sequence, leaving at most
    `size` tokens, with the query last. So no position ever exceeds `size`, however long the text.
    Keys are cached without rotation and are rotated by their current place when they are read. In
    higher layers, the cached keys and values of a token were computed when it was the latest token
    and are not recomputed, so the result differs from running on the cut sequence.

    Attributes:
      inner: the attention; its own mask, biases and rotation apply to places.
      size: number of tokens in the cache, including the current one.
      sinks: number of cached tokens from the start of the text, less than `size`.
    """

    inner: SelfAttention
    size: int
    sinks: int

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters of `inner`."""
        return self.inner.parameters()

    def __call__(
        self,
        params: dict[str, Array],
        x: Float[Array, "B T M"],
        *,
        mask: Mask | None = None,
    ) -> Float[Array, "B T M"]:
        """Mixes a whole text token by token; see `Mixer`."""
        if mask is not None:
            raise Unsupported("a rolling cache cannot take a mask beyond its own")
        return self.extend(params, self.init_state(x.shape[0], x.shape[1], x.dtype), x)[1]

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns an empty cache of `size` slots, for any length; see `cache.empty`."""
        token = cached_shapes(self.inner, self.inner.cache_entries, batch, dtype)
        return cache.empty(self._rolls, self.size, token)

    def extend(
        self, params: dict[str, Array], state: PyTree, x: Float[Array, "B T M"]
    ) -> tuple[PyTree, Float[Array, "B T M"]]:
        """Mixes the next T tokens one by one, because keys have different places for each query."""
        if x.shape[1] == 1:
            return self._step(params, state, x)

        def step(state: PyTree, token: Float[Array, "B M"]) -> tuple[PyTree, Array]:
            state, y = self._step(params, state, token[:, None])
            return state, y[:, 0]

        state, y = jax.lax.scan(step, state, jnp.moveaxis(x, 1, 0))
        return state, jnp.moveaxis(y, 0, 1)

    def _step(self, params, state, x):
        index = cache.positions(state, 1)
        state, seen = cache.extend(self._rolls, state, self.inner.cache_entries(params, x))
        kept = {name: a for name, a in seen.items() if name not in cache.NON_TOKEN_ENTRIES}
        places = self._places(seen["positions"], index)
        at = self._places(index, index), places, cache.filled
        changed, y = self.inner.attend_to_cached(params, x, kept, *at)
        return {**state, **changed}, y

    def _places(self, positions: Int[Array, " S"], now: Int[Array, " 1"]) -> Int[Array, " S"]:
        """Returns places in the cache for positions in the text, when `now` is the latest one.

        -1 stays -1.
        """
        cut = jnp.maximum(now - (self.size - 1), 0)
        return jnp.where(positions < self.sinks, positions, positions - cut)

    @property
    def _rolls(self) -> Mask:
        """The mask that determines which tokens the cache keeps."""
        latest = window(self.size - self.sinks)
        return latest if not self.sinks else causal() & (latest | global_tokens(self.sinks))


def make_streaming(mixer: Mixer, size: int, sinks: int) -> Mixer:
    """Returns a mixer for unbounded text, with the same parameters as this one.

    Self-attention gets a rolling cache; a mixer whose state has a fixed size is returned unchanged.

    Raises:
      Unsupported: the state grows with the text and is not the cache of causal self-attention.
    """
    if isinstance(mixer, AcrossLayers):
        raise Unsupported("a rolling cache has no place for values or keys of another layer")
    if isinstance(mixer, SelfAttention):
        if mixer.mechanism.mask.prefix_length != 0:
            raise Unsupported(
                f"mask {mixer.mechanism.mask} is not causal, so it cannot stream a text"
            )
        return Streaming(mixer, size, sinks)
    short, long = (state_bytes(mixer, 1, length, "float32") for length in (size, 2 * size))
    if short != long:
        raise Unsupported(
            f"{type(mixer).__name__} keeps a cache of every token; softmax attention has a "
            "rolling cache, and recurrent mixers need none"
        )
    return mixer
