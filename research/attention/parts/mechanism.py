"""`Mechanism`: score, mask, selection, biases, normalizer, focus: how queries read keys."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.errors import Unsupported
from research.attention.parameters import Parameter, bind, collect_parameters, path_name
from research.attention.parts.biases import Bias
from research.attention.parts.content_dependent import ContentDependent, has_content, is_unevaluated
from research.attention.parts.indexer import Indexer, KeyScores
from research.attention.parts.masks import Mask, conjuncts
from research.attention.parts.normalizers import Normalizer, softmax
from research.attention.parts.predicted_window import PredictedWindow
from research.attention.parts.scores import ScaledDot, Score
from research.attention.parts.segments import Segments, places_in_segments


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mechanism:
    """Weights are normalizer(biases(score(q, k)), mask), for every head and query.

    A pytree like its parts. Learned leaves hold a `Parameter` until `bind`. Until then a mechanism
    without arrays is hashable and can be a static field of a module. The default is softmax over
    the scaled dot products of all keys (Vaswani et al. 2017, equation 1).

    Attributes:
      score: scores each query-key pair.
      mask: the pairs that are allowed.
      biases: applied to the scores in order.
      normalizer: maps scores to weights.
      focus: a window whose center each query predicts; None for no such window.
      selection: selects the keys of each query among those that the mask allows; None for all.
    """

    score: Score = ScaledDot()
    mask: Mask = Mask()
    biases: tuple[Bias, ...] = ()
    normalizer: Normalizer = softmax
    focus: PredictedWindow | None = None
    selection: Indexer | KeyScores | None = None

    @property
    def required_projections(self) -> set[str]:
        """The projections of the tokens that are needed: a subset of "query", "key", "value"."""
        looked_at = [part.required_projections for _, part in self._content_parts()]
        return set().union(self.score.required_projections, *looked_at, ("value",))

    @property
    def has_content(self) -> bool:
        """Whether a part depends on content, before or after `evaluate`."""
        return has_content(self)

    @property
    def changes_tokens(self) -> bool:
        """Whether queries change what is stored of the keys beside keys and values."""
        return any(part.changes_tokens for _, part in self._content_parts())

    @property
    def cache_mask(self) -> Mask:
        """The mask that determines which keys a decoding cache keeps.

        It keeps every key if a content-dependent part needs keys that no query sees any more.
        """
        needed = any(part.needs_all_keys(self.mask) for _, part in self._content_parts())
        return _All(self.mask) if needed else self.mask

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parts' parameters: "score_...", "biases_0_...", "normalizer_..."..."""
        return collect_parameters(self, "")

    def bind(self, params: dict[str, Array], mask: Mask | None = None) -> "Mechanism":
        """Returns this mechanism with its learned arrays bound and restricted to `mask`."""
        return bind(self, "", params).restricted_to(mask)

    def restricted_to(self, mask: Mask | None) -> "Mechanism":
        """Returns this mechanism restricted to pairs that `mask` allows too; None allows all.

        Raises:
          Unsupported: the mask has segments, and a part mixes their contents.
        """
        if mask is None:
            return self
        mixing = [type(part).__name__ for _, part in self._content_parts() if part.mixes_segments]
        if mixing and any(isinstance(one, Segments) for one in conjuncts(mask)):
            raise Unsupported(
                f"{mixing[0]} looks at tokens of all segments, so it cannot keep them apart; masks "
                "that look at positions only can"
            )
        # Implementations recognize masks by type, so a single mask is not wrapped in And.
        allowed = mask if type(self.mask) is Mask else self.mask & mask
        return dataclasses.replace(self, mask=allowed)

    def project_tokens(self, x: Float[Array, "B N M"]) -> dict[str, Float[Array, "B N ..."]]:
        """Returns what content-dependent parts cache per token, beside keys and values.

        The arrays are keyed by the parts' names.
        """
        found = {name: part.project_tokens(x) for name, part in self._content_parts()}
        return {name: kept for name, kept in found.items() if kept is not None}

    def with_tokens(self, projected: dict[str, Float[Array, "B S ..."]]) -> "Mechanism":
        """Returns this mechanism holding the `tokens` of the keys; other entries are ignored."""
        return self._changed(
            lambda n, part: part.with_tokens(projected[n]) if n in projected else part
        )

    def with_queries(
        self, x: Float[Array, "B T M"], inputs: Float[Array, "B T C"] | None = None
    ) -> "Mechanism":
        """Returns this mechanism holding what its parts need of the queries' tokens.

        Args:
          x: the tokens.
          inputs: what their queries are projected from; None: x.
        """
        inputs = x if inputs is None else inputs
        return self._changed(lambda _, part: part.with_queries(x, inputs))

    def evaluate(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Integer[Array | np.ndarray, " T"] | None,
        kv_index: Integer[Array | np.ndarray, " S"] | None,
    ) -> "Mechanism":
        """Evaluates the content-dependent parts on queries, keys and the tokens from `with_tokens`.

        Positions count from 0 if None. Parts that were evaluated before stay as they are. A
        selection becomes a part of the mask.
        """
        q_index = np.arange(q.shape[1]) if q_index is None else q_index
        kv_index = np.arange(k.shape[1]) if kv_index is None else kv_index
        found = self._changed(lambda _, part: part.evaluate(q, k, q_index, kv_index))
        if not isinstance(found.selection, KeyScores):
            return found
        chosen = found.selection.select(found.mask, q_index, kv_index)
        return dataclasses.replace(found, selection=None).restricted_to(chosen)

    def _content_parts(self) -> list[tuple[str, ContentDependent]]:
        """Returns the content-dependent parts that are not evaluated yet, with their names."""
        leaves = jax.tree_util.tree_leaves_with_path(self, is_leaf=is_unevaluated)
        return [(path_name("", path), leaf) for path, leaf in leaves if is_unevaluated(leaf)]

    def _changed(self, change: Callable[[str, ContentDependent], Any]) -> "Mechanism":
        """Returns this mechanism with `change(name, part)` applied to its `_content_parts`."""

        def one(path: Any, leaf: Any) -> Any:
            return change(path_name("", path), leaf) if is_unevaluated(leaf) else leaf

        return jax.tree_util.tree_map_with_path(one, self, is_leaf=is_unevaluated)

    def with_predicted_window(
        self,
        q: Float[Array, "B T H D"],
        q_index: Integer[Array | np.ndarray, " T"],
        kv_index: Integer[Array | np.ndarray, " S"],
        length_mask: Mask | None,
    ) -> "Mechanism":
        """Moves the window that each query predicts, if there is one, into the normalizer.

        Args:
          q: queries.
          q_index: absolute positions of the queries.
          kv_index: absolute positions of the keys.
          length_mask: a query's window is placed within the keys up to the last one that this mask
            allows, from the first one of the query's segment on; None: within all keys.
        """
        if self.focus is None:
            return self
        lengths, first = _lengths(length_mask, q_index, kv_index), 0
        if (places := places_in_segments(length_mask)) is not None:
            first = (q_index - jnp.take(places, q_index, axis=1))[..., None]
        normalizer = self.focus.restrict(self.normalizer, q, lengths, kv_index, first)
        return dataclasses.replace(self, normalizer=normalizer, focus=None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _All(Mask):
    """Makes a cache keep every key: `reach` is None, whatever the inner mask has."""

    inner: Mask

    @property
    def prefix_length(self) -> int | None:
        return self.inner.prefix_length


PLAIN = Mechanism()
"""softmax(q . k / sqrt(D)) over all keys."""


def _lengths(mask, q_index, kv_index):
    """Returns one past the last allowed key of each query, broadcastable to (B, T, H)."""
    if mask is None:
        return jnp.asarray(len(kv_index)).reshape(1, 1, 1)
    allowed = mask(q_index[:, None], kv_index[None, :])
    last = jnp.max(jnp.where(allowed, kv_index + 1, 0), axis=-1)
    return jnp.swapaxes(last.reshape((1,) * (3 - last.ndim) + last.shape), 1, 2)
