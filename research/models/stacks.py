"""Paths of the parameters of single layers, which models keep stacked.

The layers of a model are a stack of repeats of a pattern, so the path of an array has a place in
the pattern, its slot, and its first axis is over the repeats: layer i is in slot i % n of n. A
stack of layers that are alike has no slots ("cross", "layers", "query").
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

STACK = "layers"
"""Name of a stack of layers in a path."""

Path = tuple[str, ...]
Parameters = dict[Path, np.ndarray]
"""The parameters of a model by path, each layer on its own: ("layers", "3", "mixer", "key")."""


def own_paths(path: Path, shape: Sequence[int], every: Iterable[Path]) -> list[Path]:
    """Returns the path of each layer's parameter in a stacked array, [path] if it is not stacked.

    Args:
      path: path of the array.
      shape: its shape.
      every: paths of all arrays of the model.
    """
    if STACK not in path:
        return [path]
    at = path.index(STACK) + 1
    stack = path[:at]
    if not path[at].isdigit():
        return [(*stack, str(number), *path[at:]) for number in range(shape[0])]
    slots = len({other[at] for other in every if other[:at] == stack})
    numbers = (repeat * slots + int(path[at]) for repeat in range(shape[0]))
    return [(*stack, str(number), *path[at + 1 :]) for number in numbers]


def by_layer(params: PyTree, without: Collection[Path] = ()) -> Parameters:
    """Returns the parameters of a model by path, with the layers of its stacks taken apart.

    Args:
      params: the parameters.
      without: paths of arrays to leave out.
    """
    flat = flatten_dict(params)
    return {
        own: leaf[repeat] if STACK in path else leaf[...]
        for path, leaf in flat.items()
        if path not in without
        for repeat, own in enumerate(own_paths(path, leaf.shape, flat))
    }


def stacked(found: Parameters, like: PyTree, known: Mapping[Path, Any] | None = None) -> PyTree:
    """Inverse of `by_layer`, for a tree of arrays of the same shapes.

    Args:
      found: the parameters.
      like: a tree of arrays of their shapes.
      known: arrays that were left out.
    """
    flat, whole = flatten_dict(like), dict(known or {})
    for path, leaf in flat.items():
        if path in whole:
            continue
        own = own_paths(path, leaf.shape, flat)
        whole[path] = np.stack([found[one] for one in own]) if STACK in path else found[path]
    return unflatten_dict(whole)
