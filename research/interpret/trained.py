"""A trained model as those see it who ask how it does what it does: examples, one by one."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from research.models.model import Model
from research.tasks.task import Batch, Task


class Trained(NamedTuple):
    """A model at the end of its training.

    Attributes:
      task: what was learned.
      model: what learned it.
      params: its best parameters.
      siblings: those of all members of its population, with a leading axis.
      member: which of them it is.
      split: what it is looked at on.
      examples: about how many of it.
      seed: of random choices.
    """

    task: Task
    model: Model
    params: PyTree
    siblings: PyTree
    member: int
    split: str
    examples: int
    seed: int


class Findings(NamedTuple):
    """What was found.

    Attributes:
      metrics: numbers by name.
      slices: several numbers by name.
      labels: what each of these is of.
    """

    metrics: dict[str, float]
    slices: dict[str, list[float]]
    labels: dict[str, list[str]]


def batches(task: Task, split: str, examples: int) -> Iterator[Batch]:
    """Yields evaluation batches of a split that hold about so many examples, as NumPy arrays.

    At least one. Of a task that always evaluates a whole split they are spread evenly over its
    batches.
    """
    total = max(1, -(-examples // task.batch_size))
    numbers = task.evaluation_batches(split, total)
    every = [(bucket, index) for bucket, number in enumerate(numbers) for index in range(number)]
    wanted = min(total, len(every))
    make = jax.jit(task.evaluation, static_argnums=(1, 3, 4))
    for place in range(wanted):
        bucket, index = every[place * len(every) // wanted]
        yield jax.device_get(make(task.data, split, np.int32(index), numbers[bucket], bucket))


def example_metric(
    task: Task, outputs: PyTree, batch: Batch, metric: str
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Returns a metric's sum and count of every example by itself.

    Args:
      task: whose metric it is.
      outputs: of the model; leaves without a batch axis are scalars.
      batch: what they were made of.
      metric: a scalar one, such as "loss".
    """

    rows = len(jax.tree.leaves(batch)[0])
    scalar = jax.tree.map(lambda a: jnp.ndim(a) == 0, outputs)

    def of_one(outputs: PyTree, batch: Batch) -> tuple[Array, Array]:
        whole = jax.tree.map(lambda a, s: a if s else a[None], outputs, scalar)
        sums = task.metrics(whole, jax.tree.map(lambda a: a[None], batch))[metric]
        return sums.total, sums.count

    spread = jax.tree.map(lambda a, s: jnp.broadcast_to(a, (rows,)) if s else a, outputs, scalar)
    return jax.vmap(of_one)(spread, batch)


def outputs_of(model: Model, params: PyTree, batch: Batch) -> Any:
    """Returns what a model makes of a batch, without dropout."""
    return model.apply({"params": params}, batch, method="of_batch")
