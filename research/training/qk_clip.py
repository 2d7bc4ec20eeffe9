"""QK-clip: bounds attention scores by scaling the weights that make them, after an optimizer step.

Kimi Team 2025 (Kimi K2), section 2.1 and algorithm 1.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree


def clip_heads(params: PyTree, found: PyTree, most: float) -> PyTree:
    """Returns parameters in which heads with a score above `most` are scaled down.

    With gamma = most / S for a head with the largest score S > most, a parameter is multiplied by
    gamma^p, and the powers p of those that make a score add up to 1.

    Args:
      params: the parameters of a model.
      found: a tree of `HeadScores` with the paths of the parameters that they are about.
      most: tau.
    """
    flat = dict(flatten_dict(params))
    for path, (largest, power) in flatten_dict(found).items():
        gamma = jnp.where(largest > most, most / jnp.maximum(largest, most), 1)
        flat[path] = flat[path] * (gamma**power).astype(flat[path].dtype)
    return unflatten_dict(flat)


def largest_of_all(found: PyTree) -> Float[Array, ""]:
    """Returns the largest score of all heads and layers, from a tree of `HeadScores`."""
    scores: list[Any] = [one.largest.max() for one in flatten_dict(found).values()]
    return jax.tree.reduce(jnp.maximum, scores)
