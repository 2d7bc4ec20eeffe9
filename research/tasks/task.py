"""What a task is: batches as a pure function of a key, and sums of metrics.

A batch depends on (seed, step) alone, never on what ran before, so a resumed run sees the same
batches with nothing to save, and changing the number of devices changes no data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

Batch = Mapping[str, jax.Array]
"""Arrays with a leading batch axis, by name.

Every task has "inputs" (B, T) int32, the tokens that the model continues. What is translated has
also "source" (B, S), right-padded, and "source_length" (B,) int32; "targets" (B, T) are -1 where
nothing is asked. What is classified has right-padded "inputs", their "length" (B,) int32, from 1,
and "label" (B,) int32, -1 in a row that counts for nothing.
"""

PAD, BOS, EOS = 0, 1, 2
"""Tokens of sequence-to-sequence tasks: padding, what a target starts from, what ends a sequence.

Words follow from `WORDS` on. Source and target share one vocabulary.
"""
WORDS = 3
UNKNOWN = 1
"""Token of classified texts that says nothing: an unknown word. Their padding is `PAD`, too."""

COMMON = ("name", "length", "batch_size")
"""Keys of `config.task` that every task reads."""

TEST_OF_SEED = 0x7E57
"""Folded into the key of a test of a seed's own, so that no seed trains on that of another one."""

LEAST_IN_SLICE = 20
"""Sentences of each split, in every range of `word_bins`."""


class Scored(NamedTuple):
    """What became of decoded sequences.

    Attributes:
      metrics: numbers by name.
      slices: numbers by slice, by name; the labels are those of `Task.slices`.
      files: {file name: text} that the run keeps.
    """

    metrics: dict[str, float]
    slices: dict[str, list[float]]
    files: dict[str, str]


class Stream(NamedTuple):
    """How a text is streamed through a rolling cache.

    Attributes:
      window: tokens of the cache.
      sinks: how many of them are the first of the text; one stream for each of these numbers.
      tokens: of each piece of the text.
    """

    window: int
    sinks: tuple[int, ...]
    tokens: int


class Sums(NamedTuple):
    """A metric before the division: adds up over batches and devices without bias.

    Attributes:
      total: scalar, or (slices,) for a metric that is cut by difficulty.
      count: what it is divided by, same shape.
    """

    total: jax.Array
    count: jax.Array


@dataclass(frozen=True, kw_only=True)
class Task:
    """The interface between data and training. Everything is pure and traceable.

    Tasks inherit from it what most of them have in common.

    Attributes:
      higher_is_better: {metric: direction} of every metric that it gives, scores included; None
        where neither way is better. A sliced one, METRIC_by_SLICE, goes the way of METRIC.
      worst: {metric: value of a model that does nothing right}, of the metrics that have one. A run
        that diverges counts as that; a loss has none.
      options: {key of `config.task` that it reads: default}, beside `COMMON`.
      vocab_size: number of tokens, inputs and targets.
      length: the most tokens of a sequence that is trained on.
      batch_size: sequences per batch.
      classes: number of classes, where a whole sequence has one; 0: outputs are tokens.
      data: pytree of device arrays that `batch` and `evaluation` read; an argument of the compiled
        step, because constants would be compiled into the program.
      splits: evaluation splits; always "validation", "test" where one exists.
      select: metric that chooses the best checkpoint on validation.
      next_token: whether targets are the inputs one step later, so that no token may see ahead.
      models: names of the models that can learn it.
      frequencies: batches come in buckets, each with shapes of its own; the part of all steps that
        each bucket has. Most tasks have one bucket.
      decoded: splits whose sources are decoded, and the result scored, when training ends.
      scores: names of the metrics that `score` gives.
      aligned: names of the measures of how the source is read, of
        research/interpret/alignment_measures.py, that `alignments` allows.
      test_of_seed: whether each seed has a test of its own, drawn from it: its spread over seeds is
        then that of the test, too. What is decoded or asked when training ends is of one test.
      eval_lengths: ascending lengths of sequences that it is evaluated at besides, in buckets of
        their own that follow those of training.
      stream: how its text is streamed when training ends; None: not at all.
      files: {name: sha256} of all files that its data come from.
      signatures: {name of a score: what it is computed with}, where that is not the name alone.
    """

    higher_is_better: ClassVar[Mapping[str, bool | None]] = {"loss": False, "accuracy": True}
    worst: ClassVar[Mapping[str, float]] = {"accuracy": 0.0}
    options: ClassVar[Mapping[str, Any]] = {}
    vocab_size: int
    length: int
    batch_size: int
    classes: int = 0
    data: Any = ()
    splits: Sequence[str] = ("validation", "test")
    select: str = "accuracy"
    next_token: bool = False
    models: Sequence[str] = ("decoder",)
    frequencies: Sequence[float] = (1.0,)
    decoded: Sequence[str] = ()
    scores: Sequence[str] = ()
    aligned: Sequence[str] = ()
    test_of_seed: bool = False
    eval_lengths: Sequence[int] = ()
    stream: "Stream | None" = None
    files: Mapping[str, str] = field(default_factory=dict, hash=False)
    signatures: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def select_higher(self) -> bool:
        """Whether a higher value of the metric that chooses checkpoints is better."""
        return bool(self.higher_is_better[self.select])

    @property
    def longest(self) -> int:
        """The most tokens of any sequence."""
        return max((self.length, *self.eval_lengths))

    @property
    def slices(self) -> Mapping[str, Sequence[str]]:
        """The labels of the entries of each sliced metric."""
        return {}

    @property
    def tokens(self) -> float:
        """Tokens that a step reads, on average and without padding."""
        return float(self.batch_size * self.length)

    def bucket(self, step: Int[Array, ""]) -> Int[Array, ""]:
        """Returns which bucket the batch of a step is from: the same for every seed."""
        return jnp.int32(0)

    def batch(
        self, data: Any, key: jax.Array, step: int | Int[Array, ""] = 0, bucket: int = 0
    ) -> Batch:
        """Returns the training batch of a step.

        Args:
          data: as `data`.
          key: of the seed's data; the same at every step.
          step: 0, 1, ...
          bucket: that of the step.
        """
        raise NotImplementedError

    def evaluation(
        self, data: Any, split: str, index: Int[Array, ""], total: int, bucket: int = 0
    ) -> Batch:
        """Returns batch `index` of `total` of a split's bucket: the same at every call and seed.

        With `test_of_seed` the test is that of the seed which `data` is, where it is one.
        """
        raise NotImplementedError

    def evaluation_batches(self, split: str, total: int) -> Sequence[int]:
        """Returns how many batches of each bucket an evaluation has, `total` wherever possible.

        Those of `eval_lengths` have about as many tokens.
        """
        longer = (max(1, total * self.length // length) for length in self.eval_lengths)
        return (total, *longer)

    def length_of(self, bucket: int) -> int:
        """Returns the tokens of the sequences of an evaluation's bucket."""
        return self.eval_lengths[bucket - 1] if bucket else self.length

    def marked(self, batch: Batch, bucket: int) -> Batch:
        """Returns a batch of an evaluation's bucket that says which one, for `of_lengths`.

        "eval_length" (B,) int32 is the index into `eval_lengths`, -1 for the length of training.
        """
        if not self.eval_lengths:
            return batch
        rows = batch["inputs"].shape[0]
        return {**batch, "eval_length": jnp.full(rows, bucket - 1, jnp.int32)}

    def examples(self, split: str, total: int) -> int:
        """Returns how many sequences a split has, where an evaluation asks for `total` batches."""
        return total * self.batch_size

    def example(self, split: str, index: int, total: int) -> Batch:
        """Returns sequence `index` of a split, in the split's order, as a batch of one."""
        make = jax.jit(self.evaluation, static_argnums=(1, 3))
        batch = jax.device_get(make(self.data, split, np.int32(index // self.batch_size), total))
        row = index % self.batch_size
        return {name: array[row : row + 1] for name, array in batch.items()}

    def metrics(self, outputs: Any, batch: Batch) -> dict[str, Sums]:
        """Returns sums of metrics of what the model made of a batch, logits (B, T, V) mostly.

        "loss" (nats per target) is what training minimises, unless there is an "objective".
        """
        raise NotImplementedError

    def sources(self, split: str) -> Batch:
        """Returns what is decoded: "source" (N, S) and "source_length" (N,), host arrays."""
        raise NotImplementedError

    def score(self, split: str, hypotheses: Sequence[Sequence[int]]) -> "Scored":
        """Returns how good decoded sequences, without end tokens, are, in the split's order."""
        raise NotImplementedError

    def alignments(self, split: str) -> Batch:
        """Returns a batch with "alignment" (B, T), source positions of the targets, or "span"."""
        raise NotImplementedError

    def streams(self, split: str) -> Int[Array, "B N"]:
        """Returns the pieces of a split's text that are streamed, N = `stream.tokens` + 1."""
        raise NotImplementedError

    def artifacts(self) -> Mapping[str, str]:
        """Returns {file name: text} that a run keeps, such as its tokenizer."""
        return {}


def evaluation_key(number: int, split: str, data: Any) -> jax.Array:
    """Returns the key that sequences of an evaluation are generated from.

    Args:
      number: of the task's split.
      split: "test" may be that of a seed.
      data: scalar uint32, the seed; () of a test that all seeds have.
    """
    key = jax.random.key(number)
    if split != "test" or isinstance(data, tuple):
        return key
    return jax.random.fold_in(jax.random.fold_in(key, TEST_OF_SEED), data)


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


def of_lengths(
    task: Task, metric: str, values: Float[Array, "B T"], weights: Float[Array, "B T"], batch: Batch
) -> tuple[Float[Array, "B T"], dict[str, Sums]]:
    """Returns weights of sequences as long as those of training, and sums of those that are not.

    The sums are "METRIC_by_length", of every one of `task.eval_lengths`, and "METRIC_longest", of
    the last of them. There are none for a batch that is not `Task.marked`.
    """
    if "eval_length" not in batch:
        return weights, {}
    index = jnp.broadcast_to(batch["eval_length"][:, None], values.shape)
    number = len(task.eval_lengths)
    by_length = sliced(values, weights, index, number)
    return weights * (index < 0), {
        f"{metric}_by_length": by_length,
        f"{metric}_longest": Sums(by_length.total[-1], by_length.count[-1]),
    }


def power_of_two_bins(first: int, last: int) -> list[tuple[int, int]]:
    """Returns inclusive ranges that double in width from `first` and end at `last`.

    power_of_two_bins(1, 10) = [(1, 1), (2, 3), (4, 7), (8, 10)]; `first` is a power of two.
    """
    bins, low = [], first
    while low <= last:
        bins.append((low, min(2 * low - 1, last)))
        low *= 2
    return bins


def word_bins(words: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Returns ranges of 5 words, or of as many more as hold `LEAST_IN_SLICE` sentences.

    Args:
      words: for each split the words of every sentence; ranges suit them all.
    """
    longest = max(1, *(int(split.max(initial=0)) for split in words))
    bins, low = [], 0
    for high in range(5, longest + 5, 5):
        if min(((low <= w) & (w <= high)).sum() for w in words) >= LEAST_IN_SLICE:
            bins.append((max(low, 1), high))
            low = high + 1
    # What is left over is too little for a range of its own.
    return [*bins[:-1], (bins[-1][0] if bins else 1, longest)]


def bin_label(low: int, high: int) -> str:
    """Returns "8-15", or "8" for a bin of one."""
    return str(low) if low == high else f"{low}-{high}"


def bin_index(values: Int[Array, "*b"], bins: Sequence[tuple[int, int]]) -> Int[Array, "*b"]:
    """Returns which of the ascending, adjacent `bins` each value lies in."""
    return jnp.searchsorted(jnp.array([high for _, high in bins]), values)
