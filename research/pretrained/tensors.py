"""Describes where a checkpoint of another library keeps our parameters, and in which layout.

A layout is data: a shape, a permutation of axes, and the parts that one of their tensors holds. So
reading and writing are inverses of each other by construction, and no value is computed: what is
read and written back is equal bit by bit.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Axes = tuple[int | tuple[int, ...], ...]
"""Sizes of the axes of a tensor; those of a tuple are one axis of it."""


@dataclass(frozen=True)
class Layout:
    """How one of their tensors holds one or several of our parameters.

    Reading takes the steps in this order, and writing takes them back.

    Attributes:
      shape: sizes of their tensor's axes; an axis that has to be taken apart, such as H D, is a
        tuple of sizes; (): of any shape.
      axes: permutation of the axes that are taken apart, as `numpy.transpose` takes it; (): none.
      backwards: axes after that whose order is turned round, such as that of taps.
      merged: sizes of the axes after that; those of a tuple become one axis; (): as they are.
      sizes: sizes of the parts along the first axis after that; (): one part with all axes.
      parts: layout of each part; (): as they are, but a part of size 1 loses the first axis.
    """

    shape: Axes = ()
    axes: tuple[int, ...] = ()
    backwards: tuple[int, ...] = ()
    merged: Axes = ()
    sizes: tuple[int, ...] = ()
    parts: "tuple[Layout, ...]" = ()

    def to_ours(self, theirs: Any) -> list[Any]:
        """Returns our parameters (views where possible) of an array, NumPy's or of jax.

        Raises ValueError if the shape is another.
        """
        if self.shape and _merged(self.shape) != tuple(theirs.shape):
            raise ValueError(f"has shape {tuple(theirs.shape)}, not {_merged(self.shape)}")
        apart = _apart(self.shape or tuple(theirs.shape))
        if self.axes and len(self.axes) != len(apart):
            raise ValueError(f"has {len(theirs.shape)} axes, not {len(self.axes)}")
        moved = theirs.reshape(apart)
        moved = self._turned(moved.transpose(self.axes) if self.axes else moved)
        whole = moved.reshape(_merged(self.merged)) if self.merged else moved
        if not self.sizes:
            return [whole]
        if sum(self.sizes) != len(whole):
            raise ValueError(f"has shape {tuple(theirs.shape)}, not {sum(self.sizes)} rows")
        stops = np.cumsum(self.sizes).tolist()
        found = [whole[stop - n : stop] for n, stop in zip(self.sizes, stops, strict=True)]
        if self.parts:
            return [p.to_ours(a)[0] for p, a in zip(self.parts, found, strict=True)]
        return [part[0] if len(part) == 1 else part for part in found]

    def to_theirs(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Returns their tensor, contiguous: the inverse of `to_ours`."""
        whole = ours[0]
        if self.parts:
            whole = np.concatenate(
                [p.to_theirs([a]) for p, a in zip(self.parts, ours, strict=True)]
            )
        elif self.sizes:
            found = [a if n > 1 else a[None] for n, a in zip(self.sizes, ours, strict=True)]
            whole = np.concatenate(found)
        moved = self._turned(whole.reshape(_apart(self.merged)) if self.merged else whole)
        apart = moved.transpose(np.argsort(self.axes)) if self.axes else moved
        return np.ascontiguousarray(apart.reshape(_merged(self.shape)) if self.shape else apart)

    def _turned(self, array: Any) -> Any:
        """Returns an array with `backwards` turned round."""
        order = (slice(None, None, -1 if i in self.backwards else 1) for i in range(array.ndim))
        return array[tuple(order)] if self.backwards else array


def _merged(axes: Axes) -> tuple[int, ...]:
    """Returns sizes in which those of a tuple are one axis."""
    return tuple(math.prod(a) if isinstance(a, tuple) else a for a in axes)


def _apart(axes: Axes) -> tuple[int, ...]:
    """Returns the sizes of all axes, those of tuples among them."""
    return tuple(size for axis in axes for size in (axis if isinstance(axis, tuple) else (axis,)))


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
      otherwise: what it is where a checkpoint lacks it: the name of another tensor, or an array.
        It is not written where it is the same.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Layout = Layout()
    copies: tuple[str, ...] = ()
    repeats: bool = False
    otherwise: str | np.ndarray | None = field(default=None, compare=False)


def tensor(theirs: str, ours: str, layout: Layout = Layout()) -> Tensor:
    """Returns a tensor that holds one parameter."""
    return Tensor(theirs, (ours,), layout)


UNREAD = "unread"
"""First part of paths of rows that no model reads, such as those before BART's first position. They
are kept so that what is written back is equal bit by bit."""
TRANSPOSED = Layout(axes=(1, 0))
"""Of a matrix (out, in), as in torch.nn.Linear; ours are (in, out)."""


def head_width(model: Mapping[str, Any]) -> int:
    """Returns the width of a head, given our options."""
    return model.get("head_width") or model["width"] // model["num_heads"]


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


def heads_side_by_side(number: int, heads: int, width: int, channels: int) -> Layout:
    """Returns the layout of projections fused per head: (H n D, M) there, n of (M, H, D) here.

    Args:
      number: n, such as 3 for queries, keys and values.
      heads: H.
      width: D.
      channels: M.
    """
    return Layout(((heads, number, width), channels), (1, 3, 0, 2), sizes=(1,) * number)


def biases_side_by_side(number: int, heads: int, width: int) -> Layout:
    """Returns the layout of biases fused per head: (H n D,) there, n of (H, D) here."""
    return Layout(((heads, number, width),), (1, 0, 2), sizes=(1,) * number)


def taps_in(taps: int, channels: int) -> Layout:
    """Returns the layout of a causal convolution per channel: (C, 1, N) there, (N, C) here.

    Theirs has the oldest input first, and ours the newest.

    Args:
      taps: N.
      channels: C.
    """
    return Layout((channels, 1, taps), (2, 1, 0), (0,), (taps, (1, channels)))


def beside(*parts: tuple[int, Layout]) -> Layout:
    """Returns the layout of several parameters side by side along the first axis.

    Args:
      parts: the size along that axis, and the layout, of each.
    """
    sizes, layouts = zip(*parts, strict=True)
    return Layout(sizes=sizes, parts=layouts)


def norm_tensors(theirs: str, ours: str, biased: bool = True) -> Iterator[Tensor]:
    """Yields the gain of a norm, "weight" there and "scale" here, and its bias if it has one."""
    yield tensor(f"{theirs}.weight", f"{ours}/scale")
    if biased:
        yield tensor(f"{theirs}.bias", f"{ours}/bias")


def linear_tensors(theirs: str, ours: str, biased: bool = True) -> Iterator[Tensor]:
    """Yields the matrix of a torch.nn.Linear, and its bias if it has one."""
    yield tensor(f"{theirs}.weight", ours, TRANSPOSED)
    if biased:
        yield tensor(f"{theirs}.bias", f"{ours}_bias")


def head_tensor(model: Mapping[str, Any], theirs: str = "lm_head.weight") -> Tensor:
    """Returns the output matrix: of its own, or that of the embeddings again.

    Args:
      model: our options, with "tie_embeddings".
      theirs: its name.
    """
    if model["tie_embeddings"]:
        return Tensor(theirs, ("embedding",), repeats=True)
    return tensor(theirs, "head", TRANSPOSED)
