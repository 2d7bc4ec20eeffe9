"""Sparse masks: local bands, strides and global tokens.

See masks.py for the interface of a mask. Distances are q - k. `mask & causal()` makes a
bidirectional mask usable in a decoder. `window(w) | causal() & global_tokens(g)` is decoded with a
ring buffer of w keys plus the first g keys (StreamingLLM, Xiao et al. 2023, section 3.2, but with
positions in the text).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from research.attention.parts.masks import LONGEST, Blocks, Bounds, Index, Mask, static
from research.attention.parts.part_options import MechanismPart, Sizes, length_option


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Local(Mask):
    """Keys with |q - k| <= size."""

    size: int = static()

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        return jnp.abs(q_index - kv_index) <= self.size

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        nearest, farthest = q_lo - kv_hi, q_hi - kv_lo
        some = (nearest <= self.size) & (farthest >= -self.size)
        return some, (nearest >= -self.size) & (farthest <= self.size)

    @property
    def reach(self) -> int | None:
        return self.size + 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dilated(Mask):
    """`size` keys up to the query, at distances 0, dilation, 2 * dilation ..."""

    size: int = static()
    dilation: int = static()

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        distance = q_index - kv_index
        allowed = (distance >= 0) & (distance <= self._farthest)
        return jnp.asarray(allowed & (distance % self.dilation == 0))

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        nearest, farthest = q_lo - kv_hi, q_hi - kv_lo
        some = _multiple(nearest, np.minimum(farthest, self._farthest), self.dilation)
        alone = _alone(nearest, farthest, self.dilation)
        return some, (nearest >= 0) & (farthest <= self._farthest) & alone

    @property
    def _farthest(self) -> int:
        return (self.size - 1) * self.dilation

    @property
    def reach(self) -> int | None:
        return self._farthest + 1

    @property
    def prefix_length(self) -> int | None:
        return 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Strided(Mask):
    """The latest `stride` keys, and every key a multiple of `stride` behind the query."""

    stride: int = static()

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        distance = q_index - kv_index
        allowed = (distance < self.stride) | (distance % self.stride == 0)
        return jnp.asarray((distance >= 0) & allowed)

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        nearest, farthest = q_lo - kv_hi, q_hi - kv_lo
        some = (farthest >= 0) & (nearest < self.stride)
        # `stride` itself is a multiple of `stride`, so the distances 0 .. stride have no gap.
        gapless = (farthest <= self.stride) | _alone(nearest, farthest, self.stride)
        return some | _multiple(nearest, farthest, self.stride), (nearest >= 0) & gapless

    @property
    def prefix_length(self) -> int | None:
        return 0


def _multiple(nearest: Bounds, farthest: Bounds, step: int) -> Bool[np.ndarray, "..."]:
    """Returns whether nearest .. farthest contains a nonnegative multiple of `step`."""
    return (farthest >= 0) & (farthest // step * step >= nearest)


def _alone(nearest: Bounds, farthest: Bounds, step: int) -> Bool[np.ndarray, "..."]:
    """Returns whether all of nearest .. farthest are multiples of `step`."""
    return (step == 1) | ((nearest == farthest) & (nearest % step == 0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Global(Mask):
    """The first `size` tokens see every key and are seen by every query."""

    size: int = static()

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        return jnp.asarray((q_index < self.size) | (kv_index < self.size))

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        return (q_lo < self.size) | (kv_lo < self.size), (q_hi < self.size) | (kv_hi < self.size)

    @property
    def reach(self) -> int | None:
        # A first token also sees every earlier key, but those are kept first tokens themselves.
        return 1

    @property
    def num_sink_tokens(self) -> int:
        return self.size


def local(size: int) -> Mask:
    """Returns the mask of keys at most `size` away on either side.

    Sources: Luong et al. 2015, section 3.2, "local-m" with D = size, around the query's own
    position; Beltagy et al. 2020, section 3.1, whose window w is 2 * size.

    Raises:
      ValueError: `size` is negative.
    """
    at_least("local", "size", size, 0)
    return Local(min(size, LONGEST))


def dilated(size: int, dilation: int) -> Mask:
    """Returns the mask of `size` keys: the query's own and every `dilation`-th before it.

    Source: Beltagy et al. 2020, section 3.1, "dilated sliding window", under a causal mask.

    Raises:
      ValueError: `size` or `dilation` is less than 1.
    """
    at_least("dilated", "size", size, 1)
    at_least("dilated", "dilation", dilation, 1)
    dilation = min(dilation, LONGEST)
    return Dilated(min(size, LONGEST // dilation + 1), dilation)


def strided(stride: int) -> Mask:
    """Returns the mask of the latest `stride` keys and every `stride`-th key before them.

    Source: Child et al. 2019, section 4.2, the union of the two heads' patterns of "strided
    attention". The paper's first head reaches one key further, which the second head sees anyway.

    Raises:
      ValueError: `stride` is less than 1.
    """
    at_least("strided", "stride", stride, 1)
    return Strided(min(stride, LONGEST))


def global_tokens(size: int) -> Mask:
    """Returns the mask in which the first `size` tokens see all keys and are seen by all queries.

    Source: Beltagy et al. 2020, section 3.1, "global attention", which is symmetric. Under a causal
    mask these are the attention sinks of Xiao et al. 2023, section 3.2.

    Raises:
      ValueError: `size` is less than 1.
    """
    at_least("global_tokens", "size", size, 1)
    return Global(min(size, LONGEST))


def longformer(size: int, num_global: int) -> Mask:
    """Returns `local(size) | global_tokens(num_global)` (Beltagy et al. 2020, section 3.1).

    Raises:
      ValueError: `size` is negative or `num_global` is less than 1.
    """
    return local(size) | global_tokens(num_global)


def at_least(mask: str, name: str, value: int, least: int) -> None:
    """Raises ValueError if an argument of a mask is less than `least`."""
    if value < least:
        raise ValueError(f"{mask}: {name} = {value}; it must be at least {least}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalMask(MechanismPart):
    """keys |q - k| <= window: local-m centred on the query's own position"""

    source = "Luong et al. 2015, section 3.2 (local-m); Beltagy et al. 2020, section 3.1"

    window: int = length_option(0, "keys that a query sees on either side", least=1)

    def build(self, sizes: Sizes) -> Mask:
        """Returns the mask."""
        return local(self.window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DilatedMask(MechanismPart):
    """keys at distance q - k = 0, d, 2 d ... (window - 1) d, d = dilation"""

    source = "Beltagy et al. 2020, section 3.1 (dilated sliding window), under a causal mask"

    window: int = length_option(0, "keys that a query sees, its own included", least=1)
    dilation: int = length_option(0, "distance between visible keys", least=1)

    def build(self, sizes: Sizes) -> Mask:
        """Returns the mask."""
        return dilated(self.window, self.dilation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StridedMask(MechanismPart):
    """keys k <= q with q - k < stride or q - k a multiple of stride"""

    source = "Child et al. 2019, section 4.2 (strided attention, both heads' patterns)"

    stride: int = length_option(
        0, "latest keys that a query sees, and distance between older ones", least=1
    )

    def build(self, sizes: Sizes) -> Mask:
        """Returns the mask."""
        return strided(self.stride)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GlobalMask(MechanismPart):
    """pairs with k < global_tokens or q < global_tokens"""

    source = "Beltagy et al. 2020, section 3.1 (global attention)"
    absolute = True

    global_tokens: int = length_option(
        0, "leading tokens that see all keys and that all queries see", least=1
    )

    def build(self, sizes: Sizes) -> Mask:
        """Returns the mask."""
        return global_tokens(self.global_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongformerMask(MechanismPart):
    """keys |q - k| <= window, and k < global_tokens or q < global_tokens"""

    source = "Beltagy et al. 2020, section 3.1 (window of 2 * window, with global tokens)"
    absolute = True

    window: int = length_option(0, "keys that a query sees on either side", least=1)
    global_tokens: int = length_option(
        0, "leading tokens that see all keys and that all queries see", least=1
    )

    def build(self, sizes: Sizes) -> Mask:
        """Returns the mask."""
        return longformer(self.window, self.global_tokens)


SPARSE_MASKS: dict[str, type[MechanismPart]] = {
    "local": LocalMask,
    "dilated": DilatedMask,
    "strided": StridedMask,
    "global": GlobalMask,
    "longformer": LongformerMask,
}
