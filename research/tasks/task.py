"""What a task is: batches as a pure function of a key, and sums of metrics.

A batch depends on (seed, step) alone, never on what ran before, so a resumed run sees the same
batches with nothing to save, and changing the number of devices changes no data.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Batch = Mapping[str, jax.Array]
"""Arrays with a leading batch axis; at least "inputs" (B, T) int32, the tokens of the model."""


class Sums(NamedTuple):
    """A metric before the division: adds up over batches and devices without bias.

    Attributes:
      total: scalar, or (slices,) for a metric that is cut by difficulty.
      count: what it is divided by, same shape.
    """

    total: jax.Array
    count: jax.Array


class Task(Protocol):
    """The interface between data and training. Everything is pure and traceable.

    Attributes:
      vocab_size: number of tokens, inputs and targets.
      length: tokens per sequence.
      data: pytree of device arrays that `batch` and `evaluation` read; an argument of the compiled
        step, because constants would be compiled into the program.
      splits: evaluation splits; always "validation", "test" where one exists.
      select: metric that chooses the best checkpoint on validation, and whether higher is better.
      next_token: whether targets are the inputs one step later, so that no token may see ahead.
      slices: {sliced metric: labels of its entries}.
    """

    vocab_size: int
    length: int
    data: Any
    splits: Sequence[str]
    select: tuple[str, bool]
    next_token: bool
    slices: Mapping[str, Sequence[str]]

    def batch(self, data: Any, key: jax.Array) -> Batch:
        """Returns a training batch."""
        ...

    def evaluation(self, data: Any, split: str, index: Int[Array, ""], total: int) -> Batch:
        """Returns batch `index` of `total` of a split: the same at every call, for every seed."""
        ...

    def metrics(self, logits: Float[Array, "B T V"], batch: Batch) -> dict[str, Sums]:
        """Returns sums of metrics; "loss" (nats per target) is what training minimises."""
        ...

    def artifacts(self) -> Mapping[str, str]:
        """Returns {file name: text} that a run keeps, such as its tokenizer."""
        ...


def cross_entropy(logits: Float[Array, "*b V"], targets: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """Returns -log p(target) in nats, float32."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)


def sliced(
    values: Float[Array, "*b"], weights: Float[Array, "*b"], index: Int[Array, "*b"], number: int
) -> Sums:
    """Returns weighted sums of `values` by slice; entries whose index is out of range are left out.

    Args:
      values: the per-target metric.
      weights: what each target counts.
      index: slice of each target, in [0, number).
      number: number of slices.
    """
    one_hot = jax.nn.one_hot(index, number) * weights[..., None]
    axes = tuple(range(values.ndim))
    return Sums((one_hot * values[..., None]).sum(axes), one_hot.sum(axes))


def power_of_two_bins(first: int, last: int) -> list[tuple[int, int]]:
    """Returns inclusive ranges that double in width from `first` and end at `last`.

    power_of_two_bins(1, 10) = [(1, 1), (2, 3), (4, 7), (8, 10)]; `first` is a power of two.
    """
    bins, low = [], first
    while low <= last:
        bins.append((low, min(2 * low - 1, last)))
        low *= 2
    return bins


def bin_label(low: int, high: int) -> str:
    """Returns "8-15", or "8" for a bin of one."""
    return str(low) if low == high else f"{low}-{high}"


def bin_index(values: Int[Array, "*b"], bins: Sequence[tuple[int, int]]) -> Int[Array, "*b"]:
    """Returns which of the ascending, adjacent `bins` each value lies in."""
    return jnp.searchsorted(jnp.array([high for _, high in bins]), values)
