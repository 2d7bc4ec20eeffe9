"""Learned arrays: how they are described, drawn, and put where they belong.

A part of a mechanism (score, mask, bias, normalizer) is a pytree. A leaf that is learned holds a
`Parameter` until `bind` puts the array in its place, so the same dataclass is both the static,
hashable description and what computes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Axes:
    """What the axes of a learned array are, and whether the array is a matrix.

    Attributes:
      names: one logical name to each dimension, for sharding rules: "width" (the model's),
        "heads", "kv_heads", "head_width", "taps"... "" where nothing is ever sharded.
      matrix: whether it is a matrix. Matrices are what weight decay and the scale of the initial
        parameters apply to. The number of dimensions does not say: biases of several heads have
        two, and so have norm gains of stacked layers.
    """

    names: tuple[str, ...]
    matrix: bool

    def stacked(self) -> "Axes":
        """Those of the arrays of several layers as one, the layers in front."""
        return Axes(("layers", *self.names), self.matrix)


def matrix_axes(*names: str) -> Axes:
    """Axes of a matrix: a projection, a filter, a table whose rows are vectors, or one per head."""
    return Axes(names, matrix=True)


def vector_axes(*names: str) -> Axes:
    """Axes of what is no matrix: a bias, the gain of a norm, a rate, numbers that heads have."""
    return Axes(names, matrix=False)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One array that is learned.

    Attributes:
      shape: its shape.
      init: `init(key, shape, dtype) -> array`, as those of `jax.nn.initializers`. Two
        mixers of the same options have to be equal, so it is a module-level function or one of
        the dataclasses below, not a closure.
      axes: what its dimensions are, and whether it is a matrix.
    """

    shape: tuple[int, ...]
    init: Callable[..., Array]
    axes: Axes


@dataclasses.dataclass(frozen=True)
class Normal:
    """Draws from N(0, stddev^2)."""

    stddev: float

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
        return jax.random.normal(key, shape, dtype) * jnp.asarray(self.stddev, dtype)


@dataclasses.dataclass(frozen=True)
class Constant:
    """One number, or numbers along the first axis (as many as it is long)."""

    value: float | tuple[float, ...]

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
        value = jnp.asarray(self.value, dtype)
        return (
            jnp.broadcast_to(value.reshape(value.shape + (1,) * (len(shape) - 1)), shape)
            if value.ndim
            else jnp.full(shape, value)
        )


def matrix_init(stddev: float, fan_in: int, scale: float = 1.0) -> Normal:
    """Normal with this standard deviation, or 1 / sqrt(fan_in) if it is 0; times `scale`."""
    return Normal((stddev or fan_in**-0.5) * scale)


def described(part: Any, name: str) -> dict[str, Parameter]:
    """The parameters in a part's leaves, called `{name}_{field}`, or `{field}` by no name."""
    return {path_name(name, path): leaf for path, leaf in _leaves(part) if is_parameter(leaf)}


def bind(part: Any, name: str, params: dict[str, Array]) -> Any:
    """The part with each `Parameter` replaced by its array, by the names of `described`."""

    def fill(path, leaf):
        return params[path_name(name, path)] if isinstance(leaf, Parameter) else leaf

    return jax.tree_util.tree_map_with_path(fill, part)


def is_parameter(x: Any) -> bool:
    """Whether x describes a learned array: the leaves of a tree of `Parameter`."""
    return isinstance(x, Parameter)


def drawn(described: Any) -> Callable[[Array], Any]:
    """key -> float32 arrays as a tree of `Parameter` describes them."""

    def init(key: Array) -> Any:
        leaves, tree = jax.tree.flatten(described, is_leaf=is_parameter)
        keys = jax.random.split(key, len(leaves))
        found = [p.init(k, p.shape, "float32") for k, p in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(tree, found)

    return init


def _leaves(part: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(part)[0]


def path_name(name: str, path: Any) -> str:
    """What a leaf of a part of this name is called, by its path in a pytree."""
    fields = (str(getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "_".join([*filter(None, [name]), *fields])
