"""Multi-token attention: scores are convolved over neighbouring queries and keys."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from research.attention.parameters import Parameter, table_axes
from research.attention.parts.biases import Index, RowBias
from research.attention.parts.content_dependent import ContentDependent
from research.attention.parts.masks import Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyQueryConvolution(RowBias, ContentDependent):
    """Sums of w[m, n] score[i - m, j - n + C // 2] over the kernel, for each head.

    The convolution of keys and queries of multi-token attention (Golovneva et al. 2025,
    "Multi-Token Attention", equation 5): before the softmax, over the latest Q queries and C
    neighbouring keys. The score of query i - m and a key counts as 0 unless both this query and
    query i see the key. Under a causal mask that leaves out later keys, as in the paper; it also
    keeps segments apart. The kernel starts as the identity.

    The scores that the last Q - 1 queries gave a key are stored in the cache, beside the key.
    """

    changes_tokens: ClassVar[bool] = True
    kernel: Any  # w, a Parameter or an array (H, Q, C)
    earlier: Any = None  # scores of the Q - 1 queries before, the oldest first, (B, S, H, Q - 1)

    def project_tokens(self, x: Float[Array, "B N M"]) -> Float[Array, "B N H R"]:
        """Returns zeros: no earlier query has seen a new token."""
        return _unseen(x, self.kernel)

    def with_tokens(self, projected: Float[Array, "B S H R"]) -> "KeyQueryConvolution":
        return dataclasses.replace(self, earlier=projected)

    def evaluate(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Integer[Array | np.ndarray, " T"],
        kv_index: Integer[Array | np.ndarray, " S"],
    ) -> "ConvolvedScores":
        """Returns the bias for these keys; queries have to be consecutive."""
        earlier = _unseen(k, self.kernel) if self.earlier is None else self.earlier
        size = self.kernel.shape[2]
        places = [_at(kv_index, kv_index + size // 2 - n) for n in range(size)]
        return ConvolvedScores(self.kernel, earlier, places)

    def needs_all_keys(self, mask: Mask) -> bool:
        """Returns False: keys that a query does not see count as 0."""
        return False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ConvolvedScores(RowBias):
    """`KeyQueryConvolution` of keys whose neighbours are known."""

    kernel: Any  # (H, Q, C)
    earlier: Any  # (B, S, H, Q - 1)
    places: Any  # for each of C, where the neighbours of all keys are, and whether they exist, (S,)

    def of_rows(
        self, score: Float[Array, "B H T S"], q_index: Index, kv_index: Index, mask: Mask
    ) -> Float[Array, "B H T S"]:
        rows, length = self._rows(score, q_index, kv_index, mask), score.shape[2]
        allowed, latest = mask(q_index, kv_index), self.kernel.shape[1] - 1
        kernel, total = self.kernel.astype(score.dtype)[..., None, None], jnp.zeros_like(score)
        for n, (place, exists) in enumerate(self.places):
            # Shifts along the keys commute with sums over the queries, of which there are fewer.
            of_queries = sum(
                kernel[:, m, n] * rows[:, :, latest - m : latest - m + length]
                for m in range(latest + 1)
            )
            seen = jnp.where(allowed, of_queries, 0)
            total += jnp.where(exists, jnp.take(seen, place, axis=-1), 0)
        return total

    def stored_after(
        self, score: Float[Array, "B H T S"], q_index: Index, kv_index: Index, mask: Mask
    ) -> Float[Array, "B S H R"]:
        rows = self._rows(score, q_index, kv_index, mask)[:, :, score.shape[2] :]
        return jnp.moveaxis(rows, 3, 1).astype(self.earlier.dtype)

    def _rows(self, score, q_index, kv_index, mask):
        """Returns allowed scores of the Q - 1 queries before and of these, (B, H, Q - 1 + T, S)."""
        earlier = jnp.moveaxis(self.earlier, 1, 3).astype(score.dtype)
        allowed = jnp.where(mask(q_index, kv_index), score, 0)
        return jnp.concatenate([earlier, allowed], axis=2)


def _unseen(x: Float[Array, "B N ..."], kernel: Any) -> Float[Array, "B N H R"]:
    shape = *x.shape[:2], kernel.shape[0], kernel.shape[1] - 1
    return jnp.zeros(shape, jnp.promote_types(x.dtype, jnp.float32))


def _at(
    kv_index: Integer[Array | np.ndarray, " S"], position: Integer[Array | np.ndarray, " S"]
) -> tuple[Integer[Array | np.ndarray, " S"], Bool[Array | np.ndarray, " S"]]:
    """Returns which key is at each of these positions, and whether there is one."""
    xp = np if isinstance(kv_index, np.ndarray) else jnp
    order = xp.argsort(kv_index)
    place = order[xp.minimum(xp.searchsorted(kv_index[order], position), len(order) - 1)]
    return place, (kv_index[place] == position) & (position >= 0)


def _identity(key: Array, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
    """Returns kernels that leave scores as they are."""
    return jnp.zeros(shape, dtype).at[:, 0, shape[2] // 2].set(1)


def key_query_convolution(num_heads: int, queries: int, keys: int) -> KeyQueryConvolution:
    """Returns the convolution of scores over this many queries and keys.

    Raises:
      ValueError: a number is less than 1.
    """
    for name, value in (("queries", queries), ("keys", keys)):
        if value < 1:
            raise ValueError(f"key_query_convolution: {name} = {value}; it must be at least 1")
    axes = table_axes("heads", "taps", "taps", roles="soo")
    return KeyQueryConvolution(Parameter((num_heads, queries, keys), _identity, axes))
