"""BigBird's mask: a window of blocks, random blocks and global tokens (Zaheer et al. 2020)."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32

from research.attention.parts.masks import LONGEST, Blocks, Bounds, Index, Mask, static
from research.attention.parts.part_options import MechanismPart, Sizes, length_option, size_option
from research.attention.parts.sparse_masks import Global, Local, at_least

# Up to this many rows and columns, blocks of random links are classified by a table of link counts.
LARGEST_TABLE = 2048


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RandomLinks(Mask):
    """Links every position to `count` random earlier positions; links are symmetric.

    Links are a hash of the seed, the position and the index of the draw, so the mask needs no
    length, and a longer sequence contains the links of a shorter one. Candidates are the positions
    from `first` on that are more than `near` before the position. They are cut into `count`
    stretches of equal length and one is drawn from each, so that draws are distinct; if there are
    fewer than `count` candidates, all are linked.
    """

    count: int = static()
    seed: int = static()
    first: int = static(default=0)
    near: int = static(default=0)

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        return jnp.asarray(self._linked(q_index, kv_index))

    def _linked(self, q_index: Index, kv_index: Index) -> Bool[Array | np.ndarray, "..."]:
        """Returns which pairs are linked, as numpy if both arguments are numpy arrays."""
        links = [self._drawn(q_index, draw) == kv_index for draw in range(self.count)]
        links += [self._drawn(kv_index, draw) == q_index for draw in range(self.count)]
        # -1 marks both empty slots of a cache and draws without candidates; they must not match.
        return functools.reduce(operator.or_, links) & (q_index >= 0) & (kv_index >= 0)

    def _drawn(self, index: Index, draw: int) -> Index:
        """Returns the position linked by this draw, -1 if there are no candidates."""
        candidates = index - self.near - self.first  # first .. index - near - 1
        candidates = candidates * (candidates > 0)
        low = draw * candidates // self.count
        size = (draw + 1) * candidates // self.count - low
        # The divisor is kept above 0 for empty stretches, whose result is discarded below.
        offset = _hashed(index, draw, self.seed) % (size + (size == 0)).astype(np.uint32)
        drawn = self.first + low + offset.astype(index.dtype)
        return drawn * (size > 0) - (size == 0)

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        q_lo, q_hi, kv_lo, kv_hi = (np.asarray(x) for x in (q_lo, q_hi, kv_lo, kv_hi))
        q_start, kv_start = q_lo.min(), kv_lo.min()
        rows, columns = q_hi.max() - q_start + 1, kv_hi.max() - kv_start + 1
        shape = np.broadcast_shapes(q_lo.shape, q_hi.shape, kv_lo.shape, kv_hi.shape)
        if max(rows, columns) > LARGEST_TABLE:
            return np.ones(shape, bool), np.zeros(shape, bool)
        q_index, kv_index = np.arange(rows)[:, None], np.arange(columns)[None, :]
        linked = self._linked(q_index + q_start, kv_index + kv_start)
        # A summed-area table: total[i, j] counts the links in the first i rows and j columns.
        total = np.zeros((rows + 1, columns + 1), np.int64)
        total[1:, 1:] = linked.cumsum(0).cumsum(1)
        top, bottom = q_lo - q_start, q_hi - q_start + 1
        left, right = kv_lo - kv_start, kv_hi - kv_start + 1
        links = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
        return links > 0, links == (bottom - top) * (right - left)


def _hashed(index: Index, draw: int, seed: int) -> UInt32[Array | np.ndarray, "..."]:
    """Hashes three integers, applying MurmurHash3's 32-bit finalizer (Appleby 2011) after each."""
    # An array instead of a scalar, because only numpy scalars warn about the intended overflow.
    state = np.zeros((1,) * max(index.ndim, 1), np.uint32)
    for part in (np.uint32(seed % 2**32), np.uint32(draw), index.astype(np.uint32)):
        state = (state ^ part) + np.uint32(0x9E3779B9)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            state = (state ^ (state >> shift)) * np.uint32(factor)
        state = state ^ (state >> 16)
    return state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockMask(Mask):
    """Applies the mask `inner` to blocks of `block` positions instead of positions."""

    inner: Mask
    block: int = static()

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        return self.inner(q_index // self.block, kv_index // self.block)

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        return self.inner.classify_blocks(
            *(bound // self.block for bound in (q_lo, q_hi, kv_lo, kv_hi))
        )

    @property
    def reach(self) -> int | None:
        # From the last position of a block to the first position of the block r - 1 earlier.
        return None if self.inner.reach is None else self.inner.reach * self.block

    @property
    def num_sink_tokens(self) -> int:
        return self.inner.num_sink_tokens * self.block

    # `prefix_length` stays None: even with a causal inner mask, a query sees the end of its block.


def bigbird(
    block: int, random_blocks: int, num_global: int, window_blocks: int = 3, seed: int = 0
) -> Mask:
    """Returns BigBird's mask: block window, random blocks and global tokens.

    Source: Zaheer et al. 2020, section 2. For each block of queries the paper draws `random_blocks`
    among all blocks of a sequence of known length. To need no length, here each block draws among
    earlier blocks outside of its window and of the global tokens, and links are symmetric. Under a
    causal mask every block of queries thus sees as many random blocks as in the paper; without one,
    twice as many on average.

    Args:
      block: positions per block.
      random_blocks: links drawn per block; may be 0.
      num_global: global tokens at the start (the paper's internal global tokens); may be 0.
      window_blocks: blocks in the window of a block of queries, its own in the middle.
      seed: seed of the random links.

    Raises:
      ValueError: `block` is less than 1, `random_blocks` or `num_global` is negative, or
        `window_blocks` is not odd and positive.
    """
    at_least("bigbird", "block", block, 1)
    at_least("bigbird", "random_blocks", random_blocks, 0)
    at_least("bigbird", "num_global", num_global, 0)
    if window_blocks < 1 or window_blocks % 2 == 0:
        raise ValueError(f"bigbird: window_blocks = {window_blocks}; it must be odd and positive")
    block, num_global = min(block, LONGEST), min(num_global, LONGEST)
    near = min(window_blocks // 2, LONGEST)
    inner: Mask = Local(near)
    if random_blocks:
        inner = inner | RandomLinks(random_blocks, seed, first=num_global // block, near=near)
    found = BlockMask(inner, block)
    return found | Global(num_global) if num_global else found


@dataclasses.dataclass(frozen=True, kw_only=True)
class BigbirdMask(MechanismPart):
    """the query's block and its neighbours, random_blocks random blocks, global tokens"""

    source = "Zaheer et al. 2020, section 2 (random blocks drawn from those before)"
    absolute = True

    block_length: int = length_option(0, "tokens per block", least=1)
    global_tokens: int = length_option(
        0, "leading tokens that see all keys and that all queries see"
    )
    random_blocks: int = size_option(1, "random blocks drawn for each block of queries", most=1024)
    mechanism_seed: int = size_option(
        0, "seed of the random parts of the mechanism, which are not learned", most=2**63 - 1
    )

    def build(self, sizes: Sizes) -> Mask:
        """Returns the mask."""
        return bigbird(
            self.block_length, self.random_blocks, self.global_tokens, seed=self.mechanism_seed
        )
