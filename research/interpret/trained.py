"""Access to a trained model for analysis: its parameters and its evaluation examples."""

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
      task: the task it was trained on.
      model: the model.
      params: its best parameters.
      population_params: parameters of all members of its population, with a leading axis.
      member: index of this model in the population.
      split: the split to analyse it on.
      examples: approximate number of examples of the split to use.
      seed: seed of random choices in the analysis.
    """

    task: Task
    model: Model
    params: PyTree
    population_params: PyTree
    member: int
    split: str
    examples: int
    seed: int


class Findings(NamedTuple):
    """Results of an analysis.

    Attributes:
      metrics: {name: value}.
      slices: {name: several values}.
      labels: {name of a slice: label of each of its values}.
    """

    metrics: dict[str, float]
    slices: dict[str, list[float]]
    labels: dict[str, list[str]]


def batches(task: Task, split: str, examples: int) -> Iterator[Batch]:
    """Yields evaluation batches of a split with about `examples` examples, as NumPy arrays.

    Yields at least one batch. If the task always evaluates the whole split, the batches are spread
    evenly over it.
    """
    total = max(1, -(-examples // task.batch_size))
    numbers = task.evaluation_batches(split, total)
    every = [(bucket, index) for bucket, number in enumerate(numbers) for index in range(number)]
    wanted = min(total, len(every))
    make, data = jax.jit(task.evaluation, static_argnums=(1, 3, 4)), task.evaluation_data
    for place in range(wanted):
        bucket, index = every[place * len(every) // wanted]
        yield jax.device_get(make(data, split, np.int32(index), numbers[bucket], bucket))


def example_metric(
    task: Task, outputs: PyTree, batch: Batch, metric: str
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Returns the sum and count of a metric for each example.

    Args:
      task: the task that defines the metric.
      outputs: outputs of the model; leaves without a batch axis are scalars.
      batch: the batch that the outputs were computed from.
      metric: name of a scalar metric, such as "loss".
    """

    rows = len(jax.tree.leaves(batch)[0])
    scalar = jax.tree.map(lambda a: jnp.ndim(a) == 0, outputs)

    def of_one(outputs: PyTree, batch: Batch) -> tuple[Array, Array]:
        whole = jax.tree.map(lambda a, s: a if s else a[None], outputs, scalar)
        sums = task.metrics(whole, jax.tree.map(lambda a: a[None], batch))[metric]
        return sums.total, sums.count

    # vmap needs a batch axis on every leaf, so broadcast scalars over the rows.
    spread = jax.tree.map(lambda a, s: jnp.broadcast_to(a, (rows,)) if s else a, outputs, scalar)
    return jax.vmap(of_one)(spread, batch)


def model_outputs(model: Model, params: PyTree, batch: Batch) -> Any:
    """Returns the outputs of a model on a batch, without dropout."""
    return model.apply({"params": params}, batch, method="forward")
