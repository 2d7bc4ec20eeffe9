"""Converts masks to those of the splash attention kernel.

This is a separate module because importing the kernel takes a third of a second.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as kernels

from research.attention.parts.masks import Mask, Window

# Lanes of a TPU vector register; lengths are padded to a multiple of it.
LANES = 128


def kernel_mask(
    parts: list[Mask], rows: np.ndarray, columns: np.ndarray, shards: int
) -> tuple[Any, Any]:
    """Returns the kernel's mask, and the rows without allowed keys, which were given one.

    Lengths are padded to a multiple of LANES on each of `shards` devices. Masks that the kernel can
    compute from two indices take no memory.
    """
    t, s, unit = len(rows), len(columns), LANES * shards
    shape = (-(-t // unit) * unit, -(-s // unit) * unit)
    if all(type(part) is Mask for part in parts) and shape[1] == s:
        return kernels.FullMask(shape), np.zeros(t, bool)
    together = t == s and (rows == columns).all() and (np.diff(rows) == 1).all()
    if len(parts) == 1 and type(parts[0]) is Window and together:
        size = parts[0].size
        if size is None:
            return kernels.CausalMask(shape), np.zeros(t, bool)
        return kernels.LocalMask(shape, (size - 1, 0), 0), np.zeros(t, bool)
    found = _Evaluated(parts, rows, columns, shape)
    return found, found.filled[:t]


class _Evaluated(kernels.Mask):
    """A conjunction of masks without arrays, evaluated lazily in blocks.

    The kernel divides by zero in a row without allowed keys. Such rows, and padding rows, are
    allowed the first key; `filled` marks them.
    """

    def __init__(
        self, parts: list[Mask], rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]
    ):
        self.parts, self.rows, self.columns, self._shape = parts, rows, columns, shape
        self.filled = np.ones(shape[0], bool)
        for start in range(0, len(rows), LANES):
            every = self._allowed(slice(start, start + LANES), slice(0, len(columns)))
            self.filled[start : start + len(every)] = ~every.any(1)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        q, kv = (range(*at.indices(n)) for at, n in zip(idx, self._shape, strict=True))
        found = np.zeros((len(q), len(kv)), bool)
        allowed = self._allowed(*idx)
        found[: allowed.shape[0], : allowed.shape[1]] = allowed
        if len(kv) and kv[0] == 0:
            found[:, 0] |= self.filled[idx[0]]
        return found

    def _allowed(self, q: slice, kv: slice) -> np.ndarray:
        """Returns the allowed pairs of a block, without padding."""
        rows, columns = self.rows[q], self.columns[kv]
        found = np.ones((len(rows), len(columns)), bool)
        for part in self.parts:
            if type(part) is Mask or not found.size:
                continue
            bounds = (
                x.reshape(1, 1) for x in (rows.min(), rows.max(), columns.min(), columns.max())
            )
            some, every = part.classify_blocks(*bounds)
            if not some.all():
                return np.zeros_like(found)
            if not every.all():
                with jax.ensure_compile_time_eval():
                    found &= np.asarray(part(rows[:, None], columns[None, :]))
        return found

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)
