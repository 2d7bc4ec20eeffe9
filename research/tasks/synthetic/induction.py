"""Induction: random tokens, a segment of which comes twice, generated inside the compiled step.

The repeated random tokens of Olsson et al. 2022, "In-context Learning and Induction Heads" (section
"Argument 4"), with everything random that a head could rely on in place of the tokens: where the
segment begins, how long it is and how far behind it comes back.

    inputs   7 3 9 4 1 8 3 9 4 6
    targets  - - - - - - 9 4 - -

All tokens of a sequence differ, but for those of the segment. A token that has been there before is
therefore inside the segment's second occurrence, and what followed it then follows now: the answer
is determined by what came before. It is asked at every token of the second occurrence but the last,
whose successor is new. An induction head solves it: one head writes to every token which token came
before it, another looks for its own token there, in a later layer.

The distance between the occurrences is uniform over all that fit the segment's length, so that no
fixed distance is worth much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from research.errors import UserError
from research.tasks.task import (
    Batch,
    Sums,
    Task,
    bin_index,
    bin_label,
    cross_entropy,
    evaluation_key,
    power_of_two_bins,
    sliced,
)

# Evaluation draws from streams of its own, so that no seed ever trains on them.
EVALUATION_SEED = {"validation": 0x5EED0021, "test": 0x5EED0022}

SHORTEST = 2
"""Tokens of the shortest segment: one that is found again, one that is predicted."""


def sequence(
    key: Key[Array, ""], length: int, vocab_size: int, segment: tuple[int, int]
) -> dict[str, Int[Array, " T"]]:
    """Returns one sequence.

    Args:
      key: random key.
      length: T, at least twice the longest segment.
      vocab_size: V, at least T.
      segment: least and most tokens of the segment; its length is uniform between them.

    Returns:
      inputs (T,) tokens; targets (T,), the next token where it is asked and -1 elsewhere;
      distances (T,), how far back a token stands that is asked about, 0 elsewhere (an induction
      head reads the position after it); places (T,), how many tokens of the segment have come
      again so far where it is asked, the first counted, 0 elsewhere.
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
    """The task of this file; the attributes are those of `Task`, and

    Attributes:
      segment: least and most tokens of what comes twice.
      distance_bins, place_bins: inclusive ranges of the slices.
    """

    options = {"vocab_size": 64, "segment": (4, 16), "test_of_seed": False}
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
        """Returns `batch_size` fresh sequences."""
        keys = jax.random.split(jax.random.fold_in(key, step), self.batch_size)
        return jax.vmap(lambda k: sequence(k, self.length, self.vocab_size, self.segment))(keys)

    def evaluation(
        self, data: tuple, split: str, index: Int[Array, ""], total: int, bucket: int = 0
    ) -> Batch:
        """Returns batch `index` of the split's own stream."""
        return self.batch(data, evaluation_key(EVALUATION_SEED[split], split, data), index)

    def metrics(self, outputs: Float[Array, "B T V"], batch: Batch) -> dict[str, Sums]:
        """Returns loss (nats per target) and accuracy, also by distance and by place."""
        targets = batch["targets"]
        weights = (targets >= 0).astype(jnp.float32)
        loss = cross_entropy(outputs, jnp.maximum(targets, 0)) * weights
        right = (outputs.argmax(-1) == targets).astype(jnp.float32)
        distances = bin_index(batch["distances"], self.distance_bins)
        places = bin_index(batch["places"], self.place_bins)
        count = weights.sum()
        return {
            "loss": Sums(loss.sum(), count),
            "accuracy": Sums((right * weights).sum(), count),
            "accuracy_by_distance": sliced(right, weights, distances, len(self.distance_bins)),
            "accuracy_by_place": sliced(right, weights, places, len(self.place_bins)),
        }


def make_induction(config: ConfigDict) -> Induction:
    """Returns the task of `config.task`. Raises UserError for sizes that do not fit."""
    segment = tuple(config.segment)
    if len(segment) != 2 or not SHORTEST <= segment[0] <= segment[1]:
        raise UserError(
            f"task.segment={segment}: give the least and the most tokens of the segment, at least "
            f"{SHORTEST}, for example (4, 16)."
        )
    if config.length < 2 * segment[1]:
        raise UserError(
            f"task.length={config.length} is too short for {segment[1]} tokens twice; at least "
            f"{2 * segment[1]}."
        )
    if config.vocab_size < config.length:
        raise UserError(
            f"task.vocab_size={config.vocab_size} must be at least task.length={config.length}: "
            "tokens do not repeat outside the segment."
        )
    return Induction(
        test_of_seed=config.test_of_seed,
        length=config.length,
        vocab_size=config.vocab_size,
        batch_size=config.batch_size,
        segment=segment,
    )
