"""The task interface: batches as a pure function of (seed, step), and metrics as sums.

A batch depends only on (seed, step), never on earlier batches, so a resumed run sees the same data
without saving any state, and the data do not depend on the number of devices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Shaped

Batch = Mapping[str, jax.Array]
"""Arrays with a leading batch axis, by name.

Every task has "inputs" (B, T) int32, the input tokens of the model; "targets" (B, T) are -1 at
positions without a target. Sequence-to-sequence tasks also have "source" (B, S), right-padded, and
"source_length" (B,) int32. Packed tasks have "segments" (B, T) int32, the ids of documents, and may
have "positions" (B, T) int32, which begin anew in each of them. Classification tasks have
right-padded "inputs", their "length" (B,) int32, at least 1, and "label" (B,) int32, -1 in filler
rows, which metrics ignore.
"""

PAD, BOS, EOS = 0, 1, 2
"""Special tokens of sequence-to-sequence tasks: padding, start of a target, end of a sequence.

Ordinary tokens start at `WORDS`. Source and target share one vocabulary.
"""
WORDS = 3
UNKNOWN = 1
"""Token of an unknown word in classification tasks; their padding is `PAD` too."""

Range = tuple[float | None, float | None]
"""Lowest and highest possible value of a metric; None where there is none."""
FRACTION: Range = (0.0, 1.0)

TEST_OF_SEED = 0x7E57
"""Folded into the key of per-seed test sets, so that no seed trains on the test of another."""


class Scored(NamedTuple):
    """Scores of decoded sequences.

    Attributes:
      metrics: {name: value}.
      slices: {name: value of each slice}, labelled by `Task.slices`.
      files: {file name: text} to write into the run directory.
    """

    metrics: dict[str, float]
    slices: dict[str, list[float]]
    files: dict[str, str]


class Stream(NamedTuple):
    """How a text is streamed through a rolling cache.

    Attributes:
      window: size of the cache in tokens, including the sinks.
      sinks: numbers of initial tokens that stay in the cache; the text is streamed once for each.
      tokens: length of each piece of text, in tokens.
    """

    window: int
    sinks: tuple[int, ...]
    tokens: int


class Sums(NamedTuple):
    """Numerator and denominator of a metric, which add up over batches and devices without bias.

    Attributes:
      total: numerator; a scalar, or (slices,) for a sliced metric.
      count: denominator, of the same shape.
    """

    total: jax.Array
    count: jax.Array


@dataclass(frozen=True, kw_only=True)
class Task:
    """The interface between data and training, with defaults. Batches and metrics are traceable.

    Attributes:
      higher_is_better: {metric: direction} of every metric, scores included; None if neither
        direction is better. A sliced metric METRIC_by_SLICE has the direction of METRIC.
      ranges: {metric: lowest and highest possible value}, None where there is none. Intervals end
        there, and the worse end is reported for diverged runs; a loss has none.
      vocab_size: number of distinct tokens, inputs and targets together.
      length: maximum number of tokens of a training sequence.
      batch_size: sequences per batch.
      classes: number of classes for sequence classification; 0: outputs are tokens.
      data: pytree of arrays that `batch` and `evaluation` read; passed to the compiled step as an
        argument, because constants would be compiled into the program. A leaf may also be anything
        with shape, dtype and [slices] that reads the part it is asked for.
      data_axes: {name in `data` or `chunk`: logical name of each axis}, for arrays that are not
        replicated on all devices; an axis "batch" is split like the rows of a batch.
      packed: whether batches have "segments", which models must keep apart.
      streamed: whether training reads `chunk` besides `data`.
      splits: evaluation splits; "validation", and "test" if the task has one.
      select: metric that selects the best checkpoint on validation.
      next_token: whether targets are the inputs shifted by one, so that models must be causal.
      models: names of the models that can learn the task.
      frequencies: fraction of steps of each bucket; the batches of a bucket have their own shapes.
        Most tasks have one bucket.
      decoded: splits whose sources are decoded and scored after training.
      scores: names of the metrics that `score` returns.
      aligned: names of the alignment measures (research/interpret/alignment_measures.py) that
        `alignments` supports.
      test_of_seed: whether each seed has its own test set, so that the spread over seeds includes
        that of the test. Decoding and analyses after training use a common test set.
      eval_lengths: ascending additional sequence lengths for evaluation, each in its own bucket
        after the buckets of training.
      stream: how text is streamed after training; None: not streamed.
      files: {name: sha256} of all files that the data come from.
      signatures: {score: details of its computation}, such as sacrebleu signatures.
    """

    higher_is_better: ClassVar[Mapping[str, bool | None]] = {"loss": False, "accuracy": True}
    ranges: ClassVar[Mapping[str, Range]] = {"loss": (0.0, None), "accuracy": FRACTION}
    vocab_size: int
    length: int
    batch_size: int
    classes: int = 0
    data: Any = ()
    data_axes: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)
    packed: bool = False
    streamed: bool = False
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
        """Whether a higher value of the metric `select` is better."""
        return bool(self.higher_is_better[self.select])

    @property
    def longest(self) -> int:
        """Maximum number of tokens of any sequence, `eval_lengths` included."""
        return max((self.length, *self.eval_lengths))

    @property
    def slices(self) -> Mapping[str, Sequence[str]]:
        """The labels of the entries of each sliced metric."""
        return {}

    @property
    def tokens(self) -> float:
        """Average number of tokens per step, without padding."""
        return float(self.batch_size * self.length)

    def frequencies_in(self, steps: int) -> Sequence[float]:
        """Returns the fraction of each bucket in a training of so many steps."""
        return self.frequencies

    def bucket(self, step: Int[Array, ""]) -> Int[Array, ""]:
        """Returns the bucket of a step's batch; it does not depend on the seed."""
        return jnp.int32(0)

    def batch(
        self, data: Any, key: jax.Array, step: int | Int[Array, ""] = 0, bucket: int = 0
    ) -> Batch:
        """Returns the training batch of a step.

        Args:
          data: the task's `data`.
          key: data key of the seed, the same at every step.
          step: 0, 1, ...
          bucket: the step's bucket.
        """
        raise NotImplementedError

    def chunk(
        self, seeds: Shaped[np.ndarray, " P"], key: Callable, start: int, stop: int, steps: int
    ) -> Mapping[str, Any]:
        """Returns what the batches of some steps read, on the host, if `streamed`.

        Its leaves with the axis "member" have one entry for each seed; `batch` gets its own.

        Args:
          seeds: the members' seeds.
          key: function from a seed to the data key that `batch` gets.
          start, stop: the steps are start .. stop - 1.
          steps: number of steps that there is room for, so that shapes are always the same.
        """
        raise NotImplementedError

    def data_shapes(self) -> Any:
        """Returns what `batch` reads of one member: arrays, or shapes where they are read later."""
        return self.data

    @property
    def evaluation_data(self) -> Any:
        """What `evaluation` reads, as arrays that any function can take."""
        return self.data

    def evaluation(
        self, data: Any, split: str, index: Int[Array, ""], total: int, bucket: int = 0
    ) -> Batch:
        """Returns batch `index` of `total` in a split's bucket, the same at every call and seed.

        Exception: with `test_of_seed`, `data` may be a seed that determines the test set.
        """
        raise NotImplementedError

    def evaluation_batches(self, split: str, total: int) -> Sequence[int]:
        """Returns the number of batches in each bucket of an evaluation, if possible `total`.

        Buckets of `eval_lengths` have about as many tokens in total.
        """
        longer = (max(1, total * self.length // length) for length in self.eval_lengths)
        return (total, *longer)

    def length_of(self, bucket: int) -> int:
        """Returns the sequence length of an evaluation's bucket."""
        return self.eval_lengths[bucket - 1] if bucket else self.length

    def with_eval_length(self, batch: Batch, bucket: int) -> Batch:
        """Adds "eval_length" to an evaluation batch of a bucket, for `split_by_eval_length`.

        It is (B,) int32, an index into `eval_lengths`, or -1 for the training length.
        """
        if not self.eval_lengths:
            return batch
        rows = batch["inputs"].shape[0]
        return {**batch, "eval_length": jnp.full(rows, bucket - 1, jnp.int32)}

    def examples(self, split: str, total: int) -> int:
        """Returns the number of sequences in a split if an evaluation has `total` batches."""
        return total * self.batch_size

    def example(self, split: str, index: int, total: int) -> Batch:
        """Returns sequence `index` of a split, in the split's order, as a batch of one."""
        make = jax.jit(self.evaluation, static_argnums=(1, 3))
        data = self.evaluation_data
        batch = jax.device_get(make(data, split, np.int32(index // self.batch_size), total))
        row = index % self.batch_size
        return {name: array[row : row + 1] for name, array in batch.items()}

    def metrics(self, outputs: Any, batch: Batch) -> dict[str, Sums]:
        """Returns the metrics of the model's outputs, usually logits (B, T, V), as sums.

        Training minimises "objective" if there is one, otherwise "loss" (nats per target). The sums
        of a batch are those of its rows, each as a batch of one, added up: `tasks.items` relies on
        it.
        """
        raise NotImplementedError

    def sources(self, split: str) -> Batch:
        """Returns the sources to decode, "source" (N, S) and "source_length" (N,), host arrays."""
        raise NotImplementedError

    def score(self, split: str, hypotheses: Sequence[Sequence[int]]) -> "Scored":
        """Scores decoded sequences, given without end tokens in the order of the split."""
        raise NotImplementedError

    def alignments(self, split: str) -> Batch:
        """Returns a batch with true alignments.

        They are "alignment" (B, T), the source position of each target, or "span" (B, T, 2).
        """
        raise NotImplementedError

    def streams(self, split: str) -> Int[Array, "B N"]:
        """Returns the pieces of a split's text to stream, N = `stream.tokens` + 1."""
        raise NotImplementedError

    def artifacts(self) -> Mapping[str, str]:
        """Returns {file name: text} to write into the run directory, such as the tokenizer."""
        return {}


def evaluation_key(number: int, split: str, data: Any) -> jax.Array:
    """Returns the random key from which the sequences of an evaluation split are generated.

    Args:
      number: seed of the split.
      split: name of the split; only "test" can depend on the run's seed.
      data: the run's seed, a scalar uint32; () for a test set common to all seeds.
    """
    key = jax.random.key(number)
    if split != "test" or isinstance(data, tuple):
        return key
    return jax.random.fold_in(jax.random.fold_in(key, TEST_OF_SEED), data)


class TokenScores(NamedTuple):
    """What metrics need of logits, from a model that does not keep them; all (B, T).

    Attributes:
      loss: -log p(target) in nats, float32, of the batch's targets; of no meaning where they are
        negative.
      predicted: the token with the largest logit, int32.
      log_normalizer: log of the sum of exp(logit), float32.
      mean: the mean of all logits, float32.
    """

    loss: jax.Array
    predicted: jax.Array
    log_normalizer: jax.Array
    mean: jax.Array


TokenOutputs = Float[Array, "B T V"] | TokenScores
"""Outputs of models that predict tokens, taken by the functions below."""


def cross_entropy(
    outputs: Float[Array, "*b V"] | TokenScores, targets: Int[Array, "*b"]
) -> Float[Array, "*b"]:
    """Returns -log p(target) in nats, computed in float32.

    Args:
      outputs: logits, or the scores of these targets.
      targets: where they are negative, the result has no meaning.
    """
    if isinstance(outputs, TokenScores):
        return outputs.loss
    return optax.softmax_cross_entropy_with_integer_labels(outputs.astype(jnp.float32), targets)


def predicted_tokens(outputs: Float[Array, "*b V"] | TokenScores) -> Int[Array, "*b"]:
    """Returns the tokens with the largest logits."""
    return outputs.predicted if isinstance(outputs, TokenScores) else outputs.argmax(-1)


def log_normalizer(outputs: Float[Array, "*b V"] | TokenScores) -> Float[Array, "*b"]:
    """Returns log Z, the log of the sum of exp(logit), in float32."""
    if isinstance(outputs, TokenScores):
        return outputs.log_normalizer
    return jax.nn.logsumexp(outputs.astype(jnp.float32), -1)


def mean_logit(outputs: Float[Array, "*b V"] | TokenScores) -> Float[Array, "*b"]:
    """Returns the mean of the logits over the vocabulary, in float32."""
    return outputs.mean if isinstance(outputs, TokenScores) else outputs.mean(-1, jnp.float32)


def sliced(
    values: Float[Array, "*b"], weights: Float[Array, "*b"], index: Int[Array, "*b"], number: int
) -> Sums:
    """Returns weighted sums of `values` by slice; ignores entries whose index is out of range.

    Args:
      values: the per-target metric.
      weights: weight of each target.
      index: slice of each target, in [0, number).
      number: number of slices.
    """
    one_hot = jax.nn.one_hot(index, number) * weights[..., None]
    axes = tuple(range(values.ndim))
    return Sums((one_hot * values[..., None]).sum(axes), one_hot.sum(axes))


def split_by_eval_length(
    task: Task, metric: str, values: Float[Array, "B T"], weights: Float[Array, "B T"], batch: Batch
) -> tuple[Float[Array, "B T"], dict[str, Sums]]:
    """Separates sequences of the training length from those of `task.eval_lengths`.

    Returns the weights with all other lengths set to zero, and the sums of the other lengths:
    "METRIC_by_length" for each of `task.eval_lengths`, and "METRIC_longest" for the last. For a
    batch that is not `Task.with_eval_length` it returns the weights unchanged and no sums.
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
