"""Learned arrays: their description, initialization and binding.

A part of a mechanism (score, mask, bias, normalizer) is a pytree. A learned leaf holds a
`Parameter` until `bind` replaces it by the array. So one dataclass serves both as the static,
hashable description and as the function that computes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

STACK, IN, OUT = "s", "i", "o"
"""Roles of a dimension: an array of its own at each index; input, or output, of a linear map."""


@dataclasses.dataclass(frozen=True)
class Axes:
    """The logical axes of a learned array, and what an optimizer has to know of it.

    Attributes:
      names: one logical name per dimension, for sharding rules: "width" (the model's),
        "heads", "kv_heads", "head_width", "taps"... "" for a dimension that is never sharded.
      matrix: whether weight decay and the scale of the initial parameters apply. The number of
        dimensions cannot tell: per-head biases have two, and so do norm gains of stacked layers.
      roles: one letter per dimension, `STACK`, `IN` or `OUT`. "ioo" is a projection of M to (H, D),
        one matrix of M x HD; "sio" a matrix per head. Without "i" it is no matrix to factor.
      hidden: whether it is a linear map between hidden vectors. Tables, filters and the layers that
        read the input or write the output are not.
    """

    names: tuple[str, ...]
    matrix: bool
    roles: str
    hidden: bool = False

    def __post_init__(self):
        if len(self.roles) != len(self.names) or set(self.roles) - {STACK, IN, OUT}:
            raise ValueError(f"roles {self.roles!r} do not fit the axes {self.names}")

    def stacked(self) -> "Axes":
        """Returns the axes of this array stacked over layers, the layer axis first."""
        return Axes(("layers", *self.names), self.matrix, STACK + self.roles, self.hidden)

    def positions(self, *roles: str) -> tuple[int, ...]:
        """Returns the dimensions with one of these roles, in their order."""
        return tuple(i for i, role in enumerate(self.roles) if role in roles)


def matrix_axes(*names: str, roles: str = "") -> Axes:
    """Returns the axes of a linear map between hidden vectors, or of one per head.

    Its first dimension is the input and all others are the output, unless `roles` says otherwise.
    """
    return Axes(names, matrix=True, roles=roles or IN + OUT * (len(names) - 1), hidden=True)


def table_axes(*names: str, roles: str = "") -> Axes:
    """Returns the axes of a matrix that no hidden vector is both multiplied by and turned into.

    These are tables of vectors, filters, vectors that a hidden vector is compared with, and the
    layers of a model that read its input or write its output. `roles` are as in `matrix_axes`.
    """
    return dataclasses.replace(matrix_axes(*names, roles=roles), hidden=False)


def vector_axes(*names: str) -> Axes:
    """Returns the axes of a non-matrix: a bias, the gain of a norm, a rate, one number per head."""
    return Axes(names, matrix=False, roles=OUT * len(names))


@dataclasses.dataclass(frozen=True)
class Parameter:
    """The description of one learned array.

    Attributes:
      shape: its shape.
      init: `init(key, shape, dtype) -> array`, like the functions in `jax.nn.initializers`. Mixers
        with equal options must compare equal, so use a module-level function or one of the
        dataclasses below, never a closure.
      axes: its logical axes, and whether it is a matrix.
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
    """Fills the array with one number, or with one number per index of the first axis."""

    value: float | tuple[float, ...]

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
        value = jnp.asarray(self.value, dtype)
        return (
            jnp.broadcast_to(value.reshape(value.shape + (1,) * (len(shape) - 1)), shape)
            if value.ndim
            else jnp.full(shape, value)
        )


def matrix_init(stddev: float, fan_in: int, scale: float = 1.0) -> Normal:
    """Returns a normal initializer; stddev 0 means 1 / sqrt(fan_in). `scale` multiplies it."""
    return Normal((stddev or fan_in**-0.5) * scale)


def collect_parameters(part: Any, name: str) -> dict[str, Parameter]:
    """Returns a part's parameters as {"name_field": parameter}; an empty name adds no prefix."""
    return {path_name(name, path): leaf for path, leaf in _leaves(part) if is_parameter(leaf)}


def bind(part: Any, name: str, params: dict[str, Array]) -> Any:
    """Returns the part with arrays in place of `Parameter`s, named as `collect_parameters` does."""

    def fill(path, leaf):
        return params[path_name(name, path)] if isinstance(leaf, Parameter) else leaf

    return jax.tree_util.tree_map_with_path(fill, part)


def is_parameter(x: Any) -> bool:
    """Returns whether x is a `Parameter`; used as `is_leaf` on trees of parameters."""
    return isinstance(x, Parameter)


def init_function(described: Any) -> Callable[[Array], Any]:
    """Returns init(key), which draws float32 arrays for a tree of `Parameter`."""

    def init(key: Array) -> Any:
        leaves, tree = jax.tree.flatten(described, is_leaf=is_parameter)
        keys = jax.random.split(key, len(leaves))
        found = [p.init(k, p.shape, "float32") for k, p in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(tree, found)

    return init


def _leaves(part: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(part)[0]


def path_name(name: str, path: Any) -> str:
    """Returns the parameter name of a leaf: the part's name and the leaf's path, joined by "_"."""
    fields = (str(getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "_".join([*filter(None, [name]), *fields])
