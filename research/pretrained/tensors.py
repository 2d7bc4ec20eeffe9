"""Describes where a checkpoint of another library keeps our parameters, and in which layout.

A layout is data: a shape, a permutation of axes, and the parts that one of their tensors holds. So
reading and writing are inverses of each other by construction, and no value is computed: what is
read and written back is equal bit by bit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Axes = tuple[int | tuple[int, ...], ...]
"""Sizes of the axes of a tensor; those of a tuple are one axis of it."""


@dataclass(frozen=True)
class Layout:
    """How one of their tensors holds one or several of our parameters.

    Attributes:
      shape: sizes of their tensor's axes; an axis that has to be taken apart, such as H D, is a
        tuple of sizes; (): of any shape.
      axes: permutation of the axes that are taken apart, as `numpy.transpose` takes it; (): none.
      sizes: sizes of the parts along the first axis after that, which a part of size 1 loses; ():
        one part with all axes.
    """

    shape: Axes = ()
    axes: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    def to_ours(self, theirs: Any) -> list[Any]:
        """Returns our parameters (views where possible) of an array, NumPy's or of jax.

        Raises ValueError if the shape is another.
        """
        merged = tuple(math.prod(a) if isinstance(a, tuple) else a for a in self.shape)
        if self.shape and merged != tuple(theirs.shape):
            raise ValueError(f"has shape {tuple(theirs.shape)}, not {merged}")
        if self.axes and len(self.axes) != len(self._apart(theirs.shape)):
            raise ValueError(f"has {len(theirs.shape)} axes, not {len(self.axes)}")
        moved = theirs.reshape(self._apart(theirs.shape))
        moved = moved.transpose(self.axes) if self.axes else moved
        if not self.sizes:
            return [moved]
        stops = np.cumsum(self.sizes).tolist()
        parts = [moved[stop - n : stop] for n, stop in zip(self.sizes, stops, strict=True)]
        return [part[0] if len(part) == 1 else part for part in parts]

    def to_theirs(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Returns their tensor, contiguous: the inverse of `to_ours`."""
        whole = ours[0]
        if self.sizes:
            parts = [a if n > 1 else a[None] for n, a in zip(self.sizes, ours, strict=True)]
            whole = np.concatenate(parts)
        apart = whole.transpose(np.argsort(self.axes)) if self.axes else whole
        merged = [math.prod(a) if isinstance(a, tuple) else a for a in self.shape]
        return np.ascontiguousarray(apart.reshape(merged) if self.shape else apart)

    def _apart(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the sizes of all axes when they are taken apart."""
        found: list[int] = []
        for axis in self.shape or tuple(shape):
            found += axis if isinstance(axis, tuple) else (axis,)
        return tuple(found)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint.

    Attributes:
      theirs: its name there.
      ours: paths of the parameters that it holds, such as "norm/scale". A path has the number of
        the layer where the layers of a stack are stacked: "layers/3/mixer/query".
      layout: how it holds them.
      copies: further paths that have the values of the first, such as a table that layers share
        there and own here.
      repeats: whether it repeats a parameter that another tensor holds, so that checkpoints may
        lack it, and none is written.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Layout = Layout()
    copies: tuple[str, ...] = ()
    repeats: bool = False


def tensor(theirs: str, ours: str, layout: Layout = Layout()) -> Tensor:
    """Returns a tensor that holds one parameter."""
    return Tensor(theirs, (ours,), layout)


TRANSPOSED = Layout(axes=(1, 0))
"""Of a matrix (out, in), as in torch.nn.Linear; ours are (in, out)."""


def heads_in(heads: int, width: int, channels: int) -> Layout:
    """Returns the layout of a projection to heads: (H D, M) there, (M, H, D) here.

    Args:
      heads: H.
      width: D.
      channels: M.
    """
    return Layout(((heads, width), channels), (2, 0, 1))


def heads_out(heads: int, width: int, channels: int) -> Layout:
    """Returns the layout of the projection from heads: (M, H D) there, (H, D, M) here."""
    return Layout((channels, (heads, width)), (1, 2, 0))


def heads_bias(heads: int, width: int) -> Layout:
    """Returns the layout of a bias of heads: (H D,) there, (H, D) here."""
    return Layout(((heads, width),))


def head_tensor(model: Mapping[str, Any], theirs: str = "lm_head.weight") -> Tensor:
    """Returns the output matrix: of its own, or that of the embeddings again.

    Args:
      model: our options, with "tie_embeddings".
      theirs: its name.
    """
    if model["tie_embeddings"]:
        return Tensor(theirs, ("embedding",), repeats=True)
    return tensor(theirs, "head", TRANSPOSED)
