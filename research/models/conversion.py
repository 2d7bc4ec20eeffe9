"""Converts trained parameters to a model whose layers mix by another mechanism.

Pure functions of trees of host arrays, one member at a time. What both models have is copied. What
the paper of a mechanism says how to convert is converted:

  multi-head to grouped-query or multi-query attention: `group_heads` (Ainslie et al. 2023);
  full attention to a window, sinks, another mask, or RoPE at another scale (Chen et al. 2023, Peng
    et al. 2023, Xiao et al. 2023): nothing to convert, these have no parameters;
  softmax to linear attention (Mercat et al. 2024, section 2; Zhang et al. 2024 (LoLCATs), section
    3.1): projections are copied, and what the new mechanism has of its own starts at its initial
    values;
  heads taken out (Michel et al. 2019, section 2.3): `without_heads`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float, PyTree

from research.errors import UserError
from research.models.model import Model
from research.models.stacks import (
    STACK,
    Parameters,
    Path,
    by_layer,
    own_paths,
    stacked,
)

WAYS = ("mean", "first", "random")
"""How the key and value heads of a group become one: see `group_heads`."""

PROJECTIONS = ("query", "key", "value", "out")
OF_EVERY_MIXER = frozenset(
    f"{name}{what}" for name in PROJECTIONS for what in ("", "_bias", "_scale")
)
"""Parameters that mean the same in all mixers that have them."""


class Converted(NamedTuple):
    """Converted parameters.

    Attributes:
      params: the parameters.
      fresh: names of those that start at their initial values, "*" for all layers that have one.
      unused: names of the source's parameters that nothing takes.
    """

    params: PyTree
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def convert(
    source: PyTree,
    source_model: Model,
    model: Model,
    shapes: PyTree,
    initial: Callable[[], PyTree],
    heads: str = "mean",
) -> Converted:
    """Returns the parameters of a model, made of those of another one.

    Args:
      source: parameters of `source_model`. Those that both models have, in the same layers of one
        stack, are not read, whatever they are.
      source_model: the model that was trained.
      model: the model to start; it has the layers of `source_model`, in another pattern if need be.
      shapes: shapes of its parameters.
      initial: returns its initial parameters; called only if some are needed.
      heads: how key and value heads become fewer, one of `WAYS`.

    Raises UserError that names the first parameter that does not fit, and both shapes.
    """
    wanted_tree = as_arrays(shapes)
    same = _same(source, wanted_tree, source_model, model)
    there, here = by_layer(source, same), by_layer(wanted_tree, same)
    axes = _axes_by_layer(model, wanted_tree)
    found: Parameters = {}
    for path, wanted in here.items():
        if _has_this(path, there, source_model, model):
            value = _fitted(path, there[path], wanted, axes[path], heads)
            if value is not None:
                found[path] = value
        elif not _of_mechanism(path):
            raise _misfit(path, there.get(path), wanted)
    unused = [
        path
        for path in there
        if path not in here or not _has_this(path, there, source_model, model)
    ]
    for path in unused:
        if path not in here and not _of_mechanism(path):
            raise _misfit(path, there[path], None)
    fresh = [path for path in here if path not in found]
    if fresh:
        ordinary = by_layer(initial(), same)
        found |= {path: ordinary[path] for path in fresh}
    every = by_layer(wanted_tree), by_layer(as_arrays(source))
    params = stacked(found, wanted_tree, same)
    return Converted(params, _names(fresh, every[0]), _names(unused, every[1]))


def _same(
    source: PyTree, wanted: PyTree, source_model: Model, model: Model
) -> dict[Path, np.ndarray]:
    """Returns the parameters of the source that are those of the model as they are, by path."""
    there, here, found = flatten_dict(source), flatten_dict(wanted), {}
    for path, leaf in there.items():
        if path in here and tuple(leaf.shape) == here[path].shape:
            own = own_paths(path, leaf.shape, there)
            known = dict.fromkeys(own)
            carried = all(_has_this(one, known, source_model, model) for one in own)
            if carried and own == own_paths(path, leaf.shape, here):
                found[path] = leaf
    return found


def _has_this(path: Path, there: Mapping[Path, Any], source_model: Model, model: Model) -> bool:
    """Returns whether the source has this parameter, with the same meaning."""
    if path not in there:
        return False
    if "mixer" not in path or path[-1] in OF_EVERY_MIXER:
        return True
    return type(_mixer(source_model, path)) is type(_mixer(model, path))


def _mixer(model: Model, path: Path) -> Any:
    """Returns the mixer of the layer that a parameter belongs to."""
    part = getattr(model.config, path[0], model.config)
    mixers = getattr(part, "mixers", (None,))
    number = int(path[path.index(STACK) + 1]) if STACK in path else 0
    return mixers[number % len(mixers)]


def _of_mechanism(path: Path) -> bool:
    """Returns whether a model with another mechanism may lack the parameter."""
    return "mixer" in path or path[-1] == "position"


def _attends(path: Path) -> bool:
    """Returns whether a parameter is that of a mixer or of attention to a source."""
    return "mixer" in path or "cross" in path


def _fitted(
    path: Path, value: np.ndarray, wanted: np.ndarray, axes: Sequence[str], heads: str
) -> np.ndarray | None:
    """Returns a parameter in the wanted shape; None if it shall start at its initial value."""
    if value.shape == wanted.shape:
        return value
    if path[-1] == "position" and value.ndim == 2 and value.shape[1] == wanted.shape[1]:
        if value.shape[0] < wanted.shape[0]:
            raise UserError(
                f"it has learned positions for {value.shape[0]} tokens, and task.length="
                f"{wanted.shape[0]} needs more; use at most {value.shape[0]}"
            )
        return value[: wanted.shape[0]]
    if path[-1].removesuffix("_bias") in ("key", "value") and _attends(path):
        axis = next((i for i, name in enumerate(axes) if name in KV_HEADS), None)
        if axis is not None and value.ndim == wanted.ndim:
            many, few = value.shape[axis], wanted.shape[axis]
            fits = value.shape[:axis] + (few,) + value.shape[axis + 1 :] == wanted.shape
            if fits and many % few == 0:
                return group_heads(value, axis, few, heads)
            if fits and few % many == 0:
                return np.repeat(value, few // many, axis)
    raise _misfit(path, value, wanted)


KV_HEADS = ("kv_heads", "heads")
"""Names of the axis of key and value heads, in mixers that can share them and in others."""


def group_heads(
    value: Float[np.ndarray, "..."], axis: int, groups: int, how: str
) -> np.ndarray | None:
    """Returns one key or value head for each group of heads, contiguous as queries share them.

    "mean" is the mean of the group's heads, "first" its first one, and "random" a new one: None, so
    that the caller draws it. Source: Ainslie et al. 2023, section 2.1 and Figure 4.

    Args:
      value: projection or bias with an axis of heads.
      axis: that axis.
      groups: number of groups, which divides the number of heads.
      how: one of `WAYS`.
    """
    if how == "random":
        return None
    before, after = value.shape[:axis], value.shape[axis + 1 :]
    grouped = value.reshape(*before, groups, -1, *after)
    if how == "first":
        return np.take(grouped, 0, axis + 1)
    return grouped.mean(axis + 1, dtype=value.dtype)


def parse_head(text: str) -> tuple[int, int] | None:
    """Returns (layer, head) of a text such as "2.1", counted from 0; None for another text."""
    match = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def without_heads(params: PyTree, model: Model, taken: Sequence[str]) -> PyTree:
    """Returns parameters in which the output projection of some heads is zero.

    A head then adds nothing to the residual stream; training can bring it back.

    Args:
      params: the parameters.
      model: their model.
      taken: heads as "layer.head", counted from 0.

    Raises UserError for a layer or a head that the model does not have.
    """
    if not taken:
        return params
    flat = by_layer(params)
    axes = _axes_by_layer(model, params)
    for text in taken:
        layer, head = parse_head(text) or (-1, -1)
        path = (STACK, str(layer), "mixer", "out")
        if (STACK, str(layer)) not in {path[:2] for path in flat}:
            number = len({path[1] for path in flat if path[0] == STACK})
            raise UserError(f"{text!r}: there are {number} layers that mix, counted from 0")
        if path not in flat or axes[path][0] != "heads":
            kind = type(_mixer(model, path)).__name__
            raise UserError(f"{text!r}: layer {layer} has no heads to take out ({kind})")
        if head >= len(flat[path]):
            raise UserError(f"{text!r}: layer {layer} has {len(flat[path])} heads, counted from 0")
        flat[path] = np.array(flat[path])
        flat[path][head] = 0
    return stacked(flat, params)


def as_arrays(shapes: PyTree) -> PyTree:
    """Returns zeros of these shapes, which take no memory."""
    return jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), shapes)


def _axes_by_layer(model: Model, params: PyTree) -> dict[Path, tuple[str, ...]]:
    """Returns the names of the axes of each parameter by path."""
    described = flatten_dict(model.parameter_axes(params))
    flat, found = flatten_dict(params), {}
    for path, leaf in flat.items():
        names = described[path].names
        own = own_paths(path, leaf.shape, flat)
        found |= dict.fromkeys(own, names[1:] if STACK in path else names)
    return found


def _names(paths: Sequence[Path], every: Collection[Path]) -> tuple[str, ...]:
    """Returns the names of parameters; one with "*" for all layers that have it."""
    found: dict[Path, list[Path]] = {}
    for path in paths:
        found.setdefault(_in_any_layer(path), []).append(path)
    number = {whole: 0 for whole in found}
    for path in every:
        if (whole := _in_any_layer(path)) in number:
            number[whole] += 1
    names: list[Path] = []
    for whole, own in found.items():
        names += [whole] if len(own) == number[whole] else own
    return tuple("/".join(path) for path in names)


def _in_any_layer(path: Path) -> Path:
    if STACK not in path:
        return path
    at = path.index(STACK) + 1
    return (*path[:at], "*", *path[at + 1 :])


def _misfit(path: Path, there: np.ndarray | None, here: np.ndarray | None) -> UserError:
    """Returns the error for a parameter that does not fit."""
    a, b = ("absent" if one is None else str(one.shape) for one in (there, here))
    return UserError(f"{'/'.join(path)} is {a} there, {b} here")
