"""Induction: random tokens with a repeated segment, generated inside the compiled step.

The repeated random tokens of Olsson et al. 2022, "In-context Learning and Induction Heads" (section
"Argument 4"), with random start, length and distance of the repetition, so that a head cannot rely
on positions instead of tokens.

    inputs   7 3 9 4 1 8 3 9 4 6
    targets  - - - - - - 9 4 - -

All tokens of a sequence differ, except those of the segment. A token seen before is therefore in
the second occurrence of the segment, and its successor is the same as the first time. Every token
of the second occurrence has a target, except the last, whose successor is new. Induction heads
solve the task: a head in an earlier layer copies to each token its predecessor, and a head in a
later layer attends to the token whose predecessor is the current token.

The distance between the occurrences is uniform over all that fit the segment's length, so that
attending at a fixed distance does not help much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from research.errors import UserError
from research.options import option
from research.tasks.bins import bin_index, bin_label, power_of_two_bins
from research.tasks.options import Generated
from research.tasks.task import (
    Batch,
    Sums,
    Task,
    TokenOutputs,
    cross_entropy,
    evaluation_key,
    predicted_tokens,
    sliced,
)

# Evaluation uses separate random streams, so that no seed ever trains on evaluation data.
EVALUATION_SEED = {"validation": 0x5EED0021, "test": 0x5EED0022}

SHORTEST = 2
"""Tokens of the shortest segment: one that is recognized, and one that is predicted."""


def sequence(
    key: Key[Array, ""], length: int, vocab_size: int, segment: tuple[int, int]
) -> dict[str, Int[Array, " T"]]:
    """Generates one sequence.

    Args:
      key: random key.
      length: T, at least twice the longest segment.
      vocab_size: V, at least T.
      segment: minimum and maximum length of the segment; its length is uniform between them.

    Returns:
      inputs (T,) tokens; targets (T,), the next token, or -1 for no target; distances (T,), how
      far back the same token occurred, 0 without a target (an induction head attends to the
      position after it); places (T,), how many tokens of the segment have been repeated so far,
      this one included, 0 without a target.
    """
    of_length, of_distance, of_start, of_tokens = jax.random.split(key, 4)
    n = jax.random.randint(of_length, (), segment[0], segment[1] + 1)
    distance = jax.random.randint(of_distance, (), n, length - n + 1)
    first = jax.random.randint(of_start, (), 0, length - n - distance + 1)

    t = jnp.arange(length)
    again = t - (first + distance)
    fresh = jax.random.permutation(of_tokens, vocab_size)[:length]
    inputs = fresh[jnp.where((again >= 0) & (again < n), t - distance, t)]
    asked = (again >= 0) & (again < n - 1)
    return {
        "inputs": inputs,
        "targets": jnp.where(asked, jnp.roll(inputs, -1), -1),
        "distances": jnp.where(asked, distance, 0),
        "places": jnp.where(asked, again + 1, 0),
    }


@dataclass(frozen=True, kw_only=True)
class Induction(Task):
    """The induction task; it has the attributes of `Task`, and

    Attributes:
      segment: minimum and maximum length of the repeated segment.
      distance_bins, place_bins: inclusive ranges of the slices.
    """

    segment: tuple[int, int]
    next_token: bool = True
    distance_bins: list[tuple[int, int]] = field(init=False)
    place_bins: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        shortest, longest = self.segment
        nearest = 2 ** (shortest.bit_length() - 1)
        bins = power_of_two_bins(nearest, self.length - shortest)
        object.__setattr__(self, "distance_bins", bins)
        object.__setattr__(self, "place_bins", power_of_two_bins(1, longest - 1))

    @property
    def slices(self) -> Mapping[str, Sequence[str]]:
        return {
            "accuracy_by_distance": [bin_label(*b) for b in self.distance_bins],
            "accuracy_by_place": [bin_label(*b) for b in self.place_bins],
        }

    def batch(
        self, data: tuple, key: Key[Array, ""], step: int | Int[Array, ""] = 0, bucket: int = 0
    ) -> Batch:
        """Returns `batch_size` new random sequences."""
        keys = jax.random.split(jax.random.fold_in(key, step), self.batch_size)
        return jax.vmap(lambda k: sequence(k, self.length, self.vocab_size, self.segment))(keys)

    def evaluation(
        self, data: tuple, split: str, index: Int[Array, ""], total: int, bucket: int = 0
    ) -> Batch:
        """Returns batch `index` of the split's random stream."""
        return self.batch(data, evaluation_key(EVALUATION_SEED[split], split, data), index)

    def metrics(self, outputs: TokenOutputs, batch: Batch) -> dict[str, Sums]:
        """Returns loss (nats per target) and accuracy, also by distance and by place."""
        targets = batch["targets"]
        weights = (targets >= 0).astype(jnp.float32)
        loss = cross_entropy(outputs, jnp.maximum(targets, 0)) * weights
        right = (predicted_tokens(outputs) == targets).astype(jnp.float32)
        distances = bin_index(batch["distances"], self.distance_bins)
        places = bin_index(batch["places"], self.place_bins)
        count = weights.sum()
        return {
            "loss": Sums(loss.sum(), count),
            "accuracy": Sums((right * weights).sum(), count),
            "accuracy_by_distance": sliced(right, weights, distances, len(self.distance_bins)),
            "accuracy_by_place": sliced(right, weights, places, len(self.place_bins)),
        }


@dataclass(frozen=True, kw_only=True)
class InductionOptions(Generated):
    """Random tokens, a segment of which comes twice: what followed a token follows it again."""

    task = Induction
    source = "Olsson et al. 2022, Argument 4"
    vocab_size: int = option(
        64, "number of tokens; at least length, since tokens do not repeat outside the segment"
    )
    segment: tuple[int, ...] = option(
        (4, 16), "minimum and maximum number of tokens in the repeated segment"
    )

    def make(self) -> Induction:
        """Returns the task. Raises UserError for inconsistent sizes."""
        segment = self.segment
        if len(segment) != 2 or not SHORTEST <= segment[0] <= segment[1]:
            raise UserError(
                f"task.segment={segment}: give the least and the most tokens of the segment, at "
                f"least {SHORTEST}, for example (4, 16)."
            )
        if self.length < 2 * segment[1]:
            raise UserError(
                f"task.length={self.length} is too short for {segment[1]} tokens twice; at least "
                f"{2 * segment[1]}."
            )
        if self.vocab_size < self.length:
            raise UserError(
                f"task.vocab_size={self.vocab_size} must be at least task.length={self.length}: "
                "tokens do not repeat outside the segment."
            )
        return Induction(
            test_of_seed=self.test_of_seed,
            length=self.length,
            vocab_size=self.vocab_size,
            batch_size=self.batch_size,
            segment=segment,
        )
