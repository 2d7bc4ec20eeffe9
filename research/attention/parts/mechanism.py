"""A mechanism: which keys a query reads and how much of each, as one value made of parts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.parameters import Parameter, bind, described, path_name
from research.attention.parts.biases import Bias
from research.attention.parts.content import Looks, has_content, looks
from research.attention.parts.focus import PredictedWindow
from research.attention.parts.masks import Mask
from research.attention.parts.normalizers import Normalizer, softmax
from research.attention.parts.scores import ScaledDot, Score


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mechanism:
    """Weights are normalizer(biases(score(q, k)), mask), for every head and query.

    A pytree like its parts. What they learn is a `Parameter` until it is bound, and up to there a
    mechanism without arrays is hashable, an option of a module. By itself it is scaled dot products
    and a softmax over all keys (Vaswani et al. 2017, equation 1).

    Attributes:
      score: how a query and a key match.
      mask: which pairs are allowed.
      biases: applied to the scores in order.
      normalizer: from scores to weights.
      focus: a window whose place each query predicts; None for no such window.
    """

    score: Score = ScaledDot()
    mask: Mask = Mask()
    biases: tuple[Bias, ...] = ()
    normalizer: Normalizer = softmax
    focus: PredictedWindow | None = None

    @property
    def reads(self) -> set[str]:
        """Which projections of the tokens it needs, of "query", "key" and "value"."""
        looked_at = [part.reads for _, part in self._looks()]
        return set().union(self.score.reads, *looked_at, ("value",))

    @property
    def looks(self) -> bool:
        """Whether a part looks at content, or has seen it."""
        return has_content(self)

    @property
    def cached(self) -> Mask:
        """A mask that says which keys later queries need, seen by them or not."""
        needed = any(part.needs_all(self.mask) for _, part in self._looks())
        return _All(self.mask) if needed else self.mask

    def parameters(self) -> dict[str, Parameter]:
        """What the parts learn: "score_...", "biases_0_...", "normalizer_...", "focus_..."."""
        return described(self, "")

    def bind(self, params: dict[str, Array], mask: Mask | None = None) -> "Mechanism":
        """Itself with the learned arrays in place, `under(mask)`."""
        return bind(self, "", params).under(mask)

    def under(self, mask: Mask | None) -> "Mechanism":
        """Itself, restricted to what `mask` allows too; None allows everything."""
        if mask is None:
            return self
        # Implementations know masks by their form: nothing is wrapped around a lone one.
        allowed = mask if type(self.mask) is Mask else self.mask & mask
        return dataclasses.replace(self, mask=allowed)

    def tokens(self, x: Float[Array, "B N M"]) -> dict[str, Float[Array, "B N ..."]]:
        """What its parts keep of tokens beside keys and values, by the names of the parts."""
        found = {name: part.tokens(x) for name, part in self._looks()}
        return {name: kept for name, kept in found.items() if kept is not None}

    def given(self, kept: dict[str, Float[Array, "B S ..."]]) -> "Mechanism":
        """Itself with what `tokens` kept of the keys' tokens; other entries do not matter."""
        return self._changed(lambda n, part: part.given(kept[n]) if n in kept else part)

    def see(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Integer[Array | np.ndarray, " T"] | None,
        kv_index: Integer[Array | np.ndarray, " S"] | None,
    ) -> "Mechanism":
        """Itself with parts that have seen what they look at: queries, keys and `given` tokens.

        Positions count from 0 if None. What has seen already stays as it is.
        """
        q_index = np.arange(q.shape[1]) if q_index is None else q_index
        kv_index = np.arange(k.shape[1]) if kv_index is None else kv_index
        return self._changed(lambda _, part: part.see(q, k, q_index, kv_index))

    def _looks(self) -> list[tuple[str, Looks]]:
        """Its parts that have yet to see what they look at, by name."""
        leaves = jax.tree_util.tree_leaves_with_path(self, is_leaf=looks)
        return [(path_name("", path), leaf) for path, leaf in leaves if looks(leaf)]

    def _changed(self, change: Callable[[str, Looks], Any]) -> "Mechanism":
        """Itself with those parts changed."""

        def one(path: Any, leaf: Any) -> Any:
            return change(path_name("", path), leaf) if looks(leaf) else leaf

        return jax.tree_util.tree_map_with_path(one, self, is_leaf=looks)

    def focused(
        self,
        q: Float[Array, "B T H D"],
        q_index: Integer[Array | np.ndarray, " T"],
        kv_index: Integer[Array | np.ndarray, " S"],
        within: Mask | None,
    ) -> "Mechanism":
        """Itself with the window that each query predicts, if it has one, in its normalizer.

        Args:
          q: queries.
          q_index: absolute positions of the queries.
          kv_index: absolute positions of the keys.
          within: windows lie among the keys up to the last one that it allows; None: all keys.
        """
        if self.focus is None:
            return self
        lengths = _lengths(within, q_index, kv_index)
        normalizer = self.focus.around(self.normalizer, q, lengths, kv_index)
        return dataclasses.replace(self, normalizer=normalizer, focus=None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _All(Mask):
    """Says of a cache that every key is kept."""

    inner: Mask

    @property
    def together(self) -> int | None:
        return self.inner.together


PLAIN = Mechanism()
"""softmax(q . k / sqrt(D)) over all keys."""


def _lengths(mask, q_index, kv_index):
    """One past the last key that each query is allowed, broadcastable to (B, T, H)."""
    if mask is None:
        return jnp.asarray(len(kv_index)).reshape(1, 1, 1)
    allowed = mask(q_index[:, None], kv_index[None, :])
    last = jnp.max(jnp.where(allowed, kv_index + 1, 0), axis=-1)
    return jnp.swapaxes(last.reshape((1,) * (3 - last.ndim) + last.shape), 1, 2)
