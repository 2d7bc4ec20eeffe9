"""Which activations carry a difference between two inputs: each is copied from one run to another.

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

from research.interpret.capture import Change, record, stacked
from research.models.model import Model
from research.tasks.task import Batch

Input = TypeVar("Input")
Cache = TypeVar("Cache")

Run = Callable[[Input, Cache, Bool[Array, "*site"]], Float[Array, ""]]
"""(input, cache, sites) -> metric of the model on the input, with the activations at `sites` taken
from the cache. What a site is, an entry of (L, T) or of (L, T, H) perhaps, the run decides."""


Metric = Callable[[Any], Float[Array, ""]]
"""Of what a model makes of a batch."""


def patched_stream(
    model: Model, params: PyTree, metric: Metric, site: str = "entry"
) -> Run[Batch, Float[Array, "L B T M"]]:
    """Returns a run whose sites (L, T) are the residual stream at a layer and a position.

    Args:
      model: with self-attention.
      params: its parameters.
      metric: what is computed of its outputs.
      site: "entry", in front of each layer, or "exit", behind it.
    """

    def run(batch: Batch, cache: Float[Array, "L B T M"], sites: Bool[Array, "L T"]) -> Array:
        change = Change(cache, sites[:, None, :, None])
        return metric(record(model, params, batch, (), {site: change})[0])

    return run


def patched_heads(
    model: Model, params: PyTree, metric: Metric
) -> Run[Batch, Float[Array, "L B T H D"]]:
    """Returns a run whose sites (L, T, H) are what a head of a layer reads at a position.

    Arguments as in `patched_stream`.
    """

    def run(batch: Batch, cache: Float[Array, "L B T H D"], sites: Bool[Array, "L T H"]) -> Array:
        change = Change(cache, sites[:, None, :, :, None])
        return metric(record(model, params, batch, (), {"read": change})[0])

    return run


def cached(model: Model, params: PyTree, batch: Batch, site: str) -> Float[Array, "L B ..."]:
    """Returns the activations that runs take: `site` is "entry", "exit" or "read"."""
    return stacked(record(model, params, batch, (site,))[1], site)


def single_sites(*shape: int) -> Bool[Array, "N *site"]:
    """Returns a mask for each site alone, in the order of the flattened shape."""
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
    """Returns how much of the metric comes back when clean activations replace corrupted ones.

    (patched - corrupted) / (clean - corrupted): 0, nothing; 1, all of it; beyond both is possible.
    NaN or infinite where both inputs have the same metric. With the two inputs exchanged, and the
    cache of the corrupted one, it is how much of the metric the sites take away.

    Args:
      run: computes the metric; traceable.
      clean: the input with the behaviour.
      corrupted: the input without.
      cache: activations of the clean input, as `run` takes them.
      sites: what is patched together, a mask for each effect: `single_sites`, or groups.
      batch_size: patched runs at once.
    """
    sites = jnp.asarray(sites)
    none = jnp.zeros(sites.shape[1:], bool)
    low, high = run(corrupted, cache, none), run(clean, cache, none)
    size = min(batch_size, sites.shape[0])
    patched = jax.lax.map(lambda mask: run(corrupted, cache, mask), sites, batch_size=size)
    return (patched - low) / (high - low)
