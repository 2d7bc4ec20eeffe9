"""Masks that select blocks of keys by content."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from research.attention.parts.content_dependent import ContentDependent, PerQuery
from research.attention.parts.masks import LONGEST, Blocks, Bounds, Index, Mask, static
from research.attention.parts.part_options import MechanismPart, Sizes, length_option, size_option
from research.attention.parts.scores import grouped_dot


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockCausal(Mask):
    """The base class of block-selection masks: the causal mask that bounds every selection."""

    size: int = dataclasses.field(metadata={"static": True})  # keys per block

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        return jnp.asarray(kv_index <= q_index)

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        own = (q_lo // self.size == kv_hi // self.size) & (q_hi // self.size == kv_lo // self.size)
        return q_hi >= kv_lo, own & (q_lo >= kv_hi)

    @property
    def prefix_length(self) -> int | None:
        return 0


def best_blocks(
    importance: Float[Array, "... T N"],
    ahead: Integer[Array | np.ndarray, "T N"],
    always: Bool[Array | np.ndarray, "T N"],
    top: int,
) -> Bool[Array, "... T N"]:
    """Returns whether each of N blocks is among the `top` ones of each query.

    Args:
      importance: of the blocks to the queries; of equal ones the earlier block goes first.
      ahead: number of the block minus that of the query's own; blocks with more than 0 are never
        chosen.
      always: the blocks that go before all others.
      top: how many blocks are chosen.
    """
    count = importance.shape[-1]
    importance = jnp.where(always, jnp.inf, jnp.where(ahead > 0, -jnp.inf, importance))
    best = jax.lax.top_k(importance, min(top, count))[1]
    return jax.nn.one_hot(best, count, dtype=bool).any(-2) & (ahead <= 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MoBA(BlockCausal, ContentDependent):
    """The keys k <= q of the query's own block and of the blocks with the best matching mean key.

    Mixture of block attention (Lu et al. 2025, "MoBA: Mixture of Block Attention for Long-Context
    LLMs", section 2.2): the affinity of a query and a block is s_n = q . mean of the block's keys,
    set to infinity for the query's own block and to minus infinity for later ones, and the `top`
    blocks with the largest affinity are visible. Each head selects separately; heads that share
    keys share the means. As in the paper, the selection has no gradient.
    """

    required_projections: ClassVar[tuple[str, ...]] = ("query", "key")
    # A block's mean key is that of all its tokens.
    mixes_segments: ClassVar[bool] = True
    top: int = static()  # blocks that a query sees, its own included

    def evaluate(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Integer[Array | np.ndarray, " T"],
        kv_index: Integer[Array | np.ndarray, " S"],
    ) -> "SelectedBlocks":
        """Returns the mask of the blocks that each query selects; keys must have no gaps."""
        # Selection is discrete (top-k), so no gradient flows through the affinities.
        q, k = jax.lax.stop_gradient((q, k))
        real, block = kv_index >= 0, kv_index // self.size
        xp = np if isinstance(kv_index, np.ndarray) else jnp
        first = xp.min(xp.where(real, block, np.iinfo(np.int32).max // self.size))
        # S consecutive keys span at most this many blocks, wherever they start.
        count = (k.shape[1] + self.size - 2) // self.size + 1
        number = jnp.where(real, block - first, count)
        keys = jnp.moveaxis(k, 1, 0).astype(jnp.promote_types(k.dtype, jnp.float32))
        total = jax.ops.segment_sum(keys, number, count + 1)[:count]
        length = jax.ops.segment_sum(jnp.ones_like(number), number, count + 1)[:count]
        mean = total / jnp.maximum(length, 1)[:, None, None, None]
        affinity = grouped_dot(q, jnp.moveaxis(mean, 0, 1))
        ahead = jnp.arange(count) - (q_index // self.size - first)[:, None]
        chosen = best_blocks(affinity, ahead, ahead == 0, self.top)
        return SelectedBlocks(self.size, PerQuery(jnp.swapaxes(chosen, 1, 2)), jnp.asarray(first))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SelectedBlocks(BlockCausal):
    """The keys k <= q of the blocks that each query and head selected."""

    chosen: PerQuery  # booleans (B, T, H, N)
    first: Any  # the number of the first of the N blocks, ()

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "B H T S"]:
        chosen = jnp.swapaxes(self.chosen.values, 1, 2)
        block = jnp.ravel(kv_index) // self.size - self.first
        seen = jnp.take(chosen, block, axis=-1, mode="clip")
        return seen & (kv_index <= q_index)


def moba(size: int, top: int) -> Mask:
    """Returns mixture of block attention: a query sees `top` blocks of `size_option` keys.

    Raises:
      ValueError: a number is less than 1.
    """
    for name, value in (("size", size), ("top", top)):
        if value < 1:
            raise ValueError(f"moba: {name} = {value}; it must be at least 1")
    return MoBA(min(size, LONGEST), top)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MobaMask(MechanismPart):
    """keys k <= q of the query's own block and of the blocks with the largest q . mean(k)"""

    source = "Lu et al. 2025 (MoBA), section 2.2"
    where = ("self",)
    absolute = True

    block_length: int = length_option(0, "tokens per block", least=1)
    top_blocks: int = size_option(0, "blocks that a query sees, its own included", least=1)

    def build(self, sizes: Sizes) -> Mask:
        """Returns the mask."""
        return moba(self.block_length, self.top_blocks)


SELECTIONS: dict[str, type[MechanismPart]] = {"moba": MobaMask}
