"""What the tasks of classifying whole sequences have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from research.tasks.bins import bin_index, bin_label
from research.tasks.task import Batch, Sums, Task, cross_entropy, sliced


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """A task of classifying whole sequences; outputs of its model are logits (B, C).

    Attributes (those not listed here are those of `Task`):
      labels: names of the C classes.
      length_bins: ascending, adjacent ranges of lengths by which accuracy is sliced.
    """

    labels: tuple[str, ...]
    length_bins: Sequence[tuple[int, int]]
    models: Sequence[str] = ("classifier",)

    @property
    def slices(self) -> Mapping[str, Sequence[str]]:
        return {
            "accuracy_by_length": [bin_label(*b) for b in self.length_bins],
            "accuracy_by_class": list(self.labels),
        }

    def metrics(self, outputs: Float[Array, "B C"], batch: Batch) -> dict[str, Sums]:
        """Returns loss (nats per sequence) and accuracy, also by length and by true class."""
        label = batch["label"]
        weights = (label >= 0).astype(jnp.float32)
        loss = cross_entropy(outputs, jnp.maximum(label, 0)) * weights
        right = (outputs.argmax(-1) == label).astype(jnp.float32)
        count, bins = weights.sum(), self.length_bins
        return {
            "loss": Sums(loss.sum(), count),
            "accuracy": Sums((right * weights).sum(), count),
            "accuracy_by_length": sliced(
                right, weights, bin_index(batch["length"], bins), len(bins)
            ),
            "accuracy_by_class": sliced(right, weights, label, len(self.labels)),
        }
