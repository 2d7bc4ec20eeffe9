"""Activation patching: finds the activations responsible for a difference between two inputs.

Causal tracing of Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 2.1,
and activation patching of Wang et al. 2022, "Interpretability in the Wild: a Circuit for Indirect
Object Identification in GPT-2 small".
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from research.interpret.capture import Intervention, record, stacked
from research.models.model import Model
from research.tasks.task import Batch

Input = TypeVar("Input")
Cache = TypeVar("Cache")

Run = Callable[[Input, Cache, Bool[Array, "*site"]], Float[Array, ""]]
"""(input, cache, sites) -> metric of the model on the input, with the activations at `sites` taken
from the cache. The run defines the shape of `sites`, for example (L, T) or (L, T, H)."""


Metric = Callable[[Any], Float[Array, ""]]
"""Scalar function of a model's outputs on a batch."""


def patched_stream(
    model: Model, params: PyTree, metric: Metric, site: str = "entry"
) -> Run[Batch, Float[Array, "L B T M"]]:
    """Returns a run whose sites (L, T) are the residual stream at a layer and a position.

    Args:
      model: a model with self-attention.
      params: its parameters.
      metric: metric to compute from its outputs.
      site: "entry", before each layer, or "exit", after it.
    """

    def run(batch: Batch, cache: Float[Array, "L B T M"], sites: Bool[Array, "L T"]) -> Array:
        change = Intervention(cache, sites[:, None, :, None])
        return metric(record(model, params, batch, (), {site: change})[0])

    return run


def patched_heads(
    model: Model, params: PyTree, metric: Metric
) -> Run[Batch, Float[Array, "L B T H D"]]:
    """Returns a run whose sites (L, T, H) are the outputs of a head at a layer and a position.

    Arguments as in `patched_stream`.
    """

    def run(batch: Batch, cache: Float[Array, "L B T H D"], sites: Bool[Array, "L T H"]) -> Array:
        change = Intervention(cache, sites[:, None, :, :, None])
        return metric(record(model, params, batch, (), {"read": change})[0])

    return run


def record_activations(
    model: Model, params: PyTree, batch: Batch, site: str
) -> Float[Array, "L B ..."]:
    """Returns the activations to pass to a run as `cache`: `site` is "entry", "exit" or "read"."""
    return stacked(record(model, params, batch, (site,))[1], site)


def single_sites(*shape: int) -> Bool[Array, "N *site"]:
    """Returns one mask per site that selects it alone, in the order of the flattened shape."""
    count = math.prod(shape)
    return jnp.eye(count, dtype=bool).reshape(count, *shape)


def patch_effects(
    run: Run,
    clean: Input,
    corrupted: Input,
    cache: Cache,
    sites: Bool[Array, "N *site"],
    batch_size: int = 8,
) -> Float[Array, " N"]:
    """Returns the fraction of the metric restored when clean activations replace corrupted ones.

    (patched - corrupted) / (clean - corrupted): 0 restores nothing, 1 all of it; values outside
    0 to 1 are possible. NaN or infinite if both inputs have the same metric. With the two inputs
    exchanged, and the cache of the corrupted one, it is the fraction of the metric removed.

    Args:
      run: computes the metric; traceable.
      clean: the input with the behaviour.
      corrupted: the input without the behaviour.
      cache: activations of the clean input, in the form that `run` takes.
      sites: one mask per effect, which selects the sites to patch together; see `single_sites`.
      batch_size: patched runs computed at once.
    """
    sites = jnp.asarray(sites)
    none = jnp.zeros(sites.shape[1:], bool)
    low, high = run(corrupted, cache, none), run(clean, cache, none)
    size = min(batch_size, sites.shape[0])
    patched = jax.lax.map(lambda mask: run(corrupted, cache, mask), sites, batch_size=size)
    return (patched - low) / (high - low)
