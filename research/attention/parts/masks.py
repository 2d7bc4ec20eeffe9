"""Masks: which keys a query may see, as composable functions of absolute positions.

A mask is a frozen dataclass registered as a pytree. Sizes are static fields, so a mask without
arrays is hashable and can be a static field of a module; arrays (segment ids, padding) are leaves,
so a mask can be passed through `jax.jit`. Every mask provides:

`mask(q_index, kv_index)`
    the allowed pairs, evaluated on index arrays;
`mask.classify_blocks(...)`
    the blocks that are allowed or forbidden entirely, without evaluating their pairs;
`mask.reach`
    how far back a query can see, which determines the size of a decoder's ring buffer;
`mask.num_sink_tokens`
    how many of the first keys stay visible beyond that reach, so that the decoder never evicts
    them;
`mask.prefix_length`
    how many leading tokens see each other in both directions, which determines whether the mask
    can be decoded token by token, and how long the first chunk has to be.

A new mask is one dataclass, here or in sparse_masks.py, and one line in the table of its file.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer

from research.attention.parts.part_options import MechanismPart, Sizes, length_option

LONGEST = 2**30
"""Upper bound of all positions and distances. Larger sizes are clipped to it, which changes nothing
for real sequences and keeps sums and differences of two of them within int32."""
Index = Integer[Array | np.ndarray, "..."]
Bounds = Integer[np.ndarray, "..."]
Blocks = tuple[Bool[np.ndarray, "..."], Bool[np.ndarray, "..."]]


def static(**options: Any) -> Any:
    """Returns a dataclass field that is part of the pytree's structure instead of a leaf."""
    return dataclasses.field(metadata={"static": True}, **options)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """The base class of all masks; an instance of it allows every pair."""

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        """Returns whether each query may see each key.

        Args:
          q_index: absolute query positions, (T, 1).
          kv_index: absolute key positions, (1, S).

        Returns:
          A boolean array that broadcasts to (B, H, T, S). True means allowed.
        """
        return jnp.ones(np.broadcast_shapes(q_index.shape, kv_index.shape), bool)

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        """Classifies blocks of pairs from their inclusive bounds, in three-valued logic.

        The bounds broadcast against each other, so one call on (rows, 1) and (1, columns) arrays
        classifies a whole grid of blocks.

        Returns:
          `(any, all)`. Where `any` is False no pair of the block is allowed; where `all`
          is True every pair is. (True, False) means unknown.
        """
        shape = np.broadcast_shapes(*(np.shape(b) for b in (q_lo, q_hi, kv_lo, kv_hi)))
        return np.ones(shape, bool), np.ones(shape, bool)

    @property
    def reach(self) -> int | None:
        """An r >= 1 such that no query at t sees a key at k >= `num_sink_tokens` with t - k >= r.

        None if there is no such bound.
        """
        return None

    @property
    def num_sink_tokens(self) -> int:
        """The number of leading positions that stay visible beyond `reach`; 0 if it is None."""
        return 0

    @property
    def prefix_length(self) -> int | None:
        """The smallest known n such that a query at t sees no key later than max(t, n - 1).

        0 means causal: tokens can be decoded one at a time. n > 0 means that the first n tokens
        have to be in one chunk. None means that the mask cannot be decoded.
        """
        return None

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other)

    def __invert__(self) -> "Mask":
        return Not(self)


def unknown_blocks(q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
    """Returns "unknown" for every block, for masks whose arrays are traced."""
    shape = np.broadcast_shapes(*(np.shape(b) for b in (q_lo, q_hi, kv_lo, kv_hi)))
    return np.ones(shape, bool), np.zeros(shape, bool)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window(Mask):
    """Keys at distance 0 .. size - 1 behind the query; size None is plain causal."""

    size: int | None = static(default=None)

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        allowed = jnp.asarray(kv_index <= q_index)
        if self.size is not None:
            allowed &= q_index - kv_index < self.size
        return allowed

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        # The distances q - k within a block are exactly the integers nearest .. farthest.
        nearest, farthest = q_lo - kv_hi, q_hi - kv_lo
        some, every = farthest >= 0, nearest >= 0
        if self.size is not None:
            some, every = some & (nearest < self.size), every & (farthest < self.size)
        return some, every

    @property
    def reach(self) -> int | None:
        return self.size

    @property
    def prefix_length(self) -> int | None:
        return 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """Bidirectional among the first `length` positions, causal after them."""

    length: int = static()

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        return jnp.asarray(kv_index <= jnp.maximum(q_index, self.length - 1))

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        last = self.length - 1
        return kv_lo <= np.maximum(q_hi, last), kv_hi <= np.maximum(q_lo, last)

    @property
    def prefix_length(self) -> int | None:
        return self.length


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Padding(Mask):
    """Every query sees the keys that are marked valid."""

    valid: Any  # booleans (B, S)

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        keys = jnp.take(self.valid, kv_index, axis=1, mode="clip")
        return jnp.broadcast_to(
            keys, keys.shape[:1] + np.broadcast_shapes(q_index.shape, kv_index.shape)
        )[:, None]

    classify_blocks = staticmethod(unknown_blocks)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class And(Mask):
    """Pairs that both masks allow; built by `a & b`."""

    left: Mask
    right: Mask

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        return self.left(q_index, kv_index) & self.right(q_index, kv_index)

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        some, every = self.left.classify_blocks(q_lo, q_hi, kv_lo, kv_hi)
        some2, every2 = self.right.classify_blocks(q_lo, q_hi, kv_lo, kv_hi)
        return some & some2, every & every2

    @property
    def reach(self) -> int | None:
        return self._seen()[0]

    @property
    def num_sink_tokens(self) -> int:
        return self._seen()[1]

    def _seen(self) -> tuple[int | None, int]:
        """Returns the (reach, kept) bound with the smallest cache.

        Each operand's bound is valid for the conjunction, and so is their joint bound: beyond the
        longer reach a visible key has to be among the kept keys of both operands.
        """
        known = [
            (m.reach, m.num_sink_tokens) for m in (self.left, self.right) if m.reach is not None
        ]
        if len(known) == 2:
            (reach, kept), (reach2, kept2) = known
            known.append((max(reach, reach2), min(kept, kept2)))
        return min(known, key=lambda claim: (sum(claim), claim), default=(None, 0))

    @property
    def prefix_length(self) -> int | None:
        known = [m.prefix_length for m in (self.left, self.right) if m.prefix_length is not None]
        return min(known, default=None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Or(Mask):
    """Pairs that at least one of the masks allows; built by `a | b`."""

    left: Mask
    right: Mask

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        return self.left(q_index, kv_index) | self.right(q_index, kv_index)

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        some, every = self.left.classify_blocks(q_lo, q_hi, kv_lo, kv_hi)
        some2, every2 = self.right.classify_blocks(q_lo, q_hi, kv_lo, kv_hi)
        return some | some2, every | every2

    @property
    def reach(self) -> int | None:
        left, right = self.left.reach, self.right.reach
        return None if left is None or right is None else max(left, right)

    @property
    def num_sink_tokens(self) -> int:
        return (
            0 if self.reach is None else max(self.left.num_sink_tokens, self.right.num_sink_tokens)
        )

    @property
    def prefix_length(self) -> int | None:
        left, right = self.left.prefix_length, self.right.prefix_length
        return None if left is None or right is None else max(left, right)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Not(Mask):
    """Pairs that the mask forbids; built by `~mask`."""

    inner: Mask

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        return ~self.inner(q_index, kv_index)

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        some, every = self.inner.classify_blocks(q_lo, q_hi, kv_lo, kv_hi)
        return ~every, ~some

    def __invert__(self) -> Mask:
        return self.inner


def full() -> Mask:
    """Returns the mask that allows all pairs (Vaswani et al. 2017, section 3.2.3, encoder)."""
    return Mask()


def causal() -> Mask:
    """Returns the mask of keys k <= q (Vaswani et al. 2017, section 3.2.3, decoder)."""
    return Window()


def window(size: int) -> Mask:
    """Returns the mask of the latest `size` keys, the query's own included.

    Source: Beltagy et al. 2020, section 3.1.

    Raises:
      ValueError: `size` is less than 1.
    """
    if size < 1:
        raise ValueError(f"window: size = {size}; it must be at least 1, the query itself")
    return Window(min(size, LONGEST))


def prefix(length: int) -> Mask:
    """Returns the mask of a prefix language model: bidirectional in the prefix, then causal.

    Source: Raffel et al. 2020, section 3.2.1, figure 4 (right).

    Raises:
      ValueError: `length` is negative.
    """
    if length < 0:
        raise ValueError(f"prefix: length = {length}; it must not be negative")
    return Prefix(min(length, LONGEST))


def conjuncts(mask: Mask) -> list[Mask]:
    """Returns the operands of nested `&`; a pair is allowed if all of them allow it."""
    if isinstance(mask, And):
        return conjuncts(mask.left) + conjuncts(mask.right)
    return [mask]


def padding(valid: Bool[Array, "B S"]) -> Mask:
    """Returns the mask of keys for which `valid`, indexed by absolute position, is True."""
    return Padding(valid)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullMask(MechanismPart):
    """every query sees every key"""

    source = "Vaswani et al. 2017, section 3.2.3 (encoder)"

    def build(self, sizes: Sizes) -> Mask:
        """Returns the mask."""
        return full()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalMask(MechanismPart):
    """keys k <= q"""

    source = "Vaswani et al. 2017, section 3.2.3 (decoder)"

    def build(self, sizes: Sizes) -> Mask:
        """Returns the mask."""
        return causal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowMask(MechanismPart):
    """keys at distance 0 <= q - k < window"""

    source = "Beltagy et al. 2020, section 3.1, under a causal mask"

    window: int = length_option(0, "keys that a query sees, its own included", least=1)

    def build(self, sizes: Sizes) -> Mask:
        """Returns the mask."""
        return window(self.window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixMask(MechanismPart):
    """keys k <= q, and all of the first prefix_length among themselves"""

    source = "Raffel et al. 2020, section 3.2.1, figure 4 (right)"
    absolute = True

    prefix_length: int = length_option(0, "leading tokens that see each other", least=1)

    def build(self, sizes: Sizes) -> Mask:
        """Returns the mask."""
        return prefix(self.prefix_length)


MASKS: dict[str, type[MechanismPart]] = {
    "full": FullMask,
    "causal": CausalMask,
    "window": WindowMask,
    "prefix": PrefixMask,
}
