"""Transduction of random words, generated on the device inside the compiled step.

A source is a sequence of words drawn uniformly. A rule turns it into the target, so the source
position of each target word (the true alignment) is known:

    copy        the source itself
    reverse     the source backwards
    substitute  each word replaced by another one, backwards
    reorder     each word replaced by another one; in every clause of five words the second moves to
                the end, like a verb in a verb-final clause: 0 2 3 4 1. The shorter clause at the
                end (1 to 4 words) likewise: 0 2 1, ...; the clauses keep their order.
    verbs_last  each word replaced by another one; every third word of the vocabulary is a verb, and
                in every clause of five words the verbs move to the end. Here the alignment depends
                on the words themselves; in all other kinds it depends on positions only

Copying and reversing at lengths not seen in training are probes of Graves et al. 2014 (Neural
Turing Machines, section 4.1) and Grefenstette et al. 2015 (Learning to Transduce with Unbounded
Memory, section 4.1). Words are replaced according to a permutation of the vocabulary that is drawn
once, from `SUBSTITUTION_SEED`: it is part of the task, not of a run. Words may repeat within a
sequence.

Validation has only the lengths of training, so that model selection does not depend on longer ones;
the test has equally many sequences of each of `test_lengths`. Lengths count words, without the end
token.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from research.errors import UserError, check_name
from research.options import option
from research.tasks.options import Generated, check_ascending
from research.tasks.task import (
    BOS,
    EOS,
    FRACTION,
    PAD,
    WORDS,
    Batch,
    Scored,
    Sums,
    Task,
    TokenOutputs,
    cross_entropy,
    evaluation_key,
    predicted_tokens,
    sliced,
)

SUBSTITUTION_SEED = 20_150_817
"""Seed of the substitution, the same for every run."""

# Evaluation uses separate random streams, so that no seed ever trains on evaluation data.
EVALUATION_SEED = {"validation": 0x5EED0011, "test": 0x5EED0012}

CLAUSE = 5
# Row n is the order within a clause of n words; entries beyond the first n are never read.
CLAUSE_ORDERS = np.array(
    [[i for i in (0, 2, 3, 4, 1) if i < n] + list(range(n, CLAUSE)) for n in range(CLAUSE + 1)]
)

VERBS = 3
"""One in this many words of the vocabulary is a verb."""

SCORES = (
    "exact_match",
    "token_accuracy",
    "exact_match_training_lengths",
    "token_accuracy_training_lengths",
)
"""Metrics that `Transduction.score` returns; higher is better."""

Order = Callable[[Int[Array, " T"], Int[Array, ""], Int[Array, " T"]], Int[Array, " T"]]


def forwards(
    t: Int[Array, " T"], length: Int[Array, ""], words: Int[Array, " T"]
) -> Int[Array, " T"]:
    """Returns the source position of each target position `t` of a copied sequence."""
    return t


def backwards(
    t: Int[Array, " T"], length: Int[Array, ""], words: Int[Array, " T"]
) -> Int[Array, " T"]:
    """Returns the source position of each target position `t` of a reversed sequence."""
    return length - 1 - t


def clause_final(
    t: Int[Array, " T"], length: Int[Array, ""], words: Int[Array, " T"]
) -> Int[Array, " T"]:
    """Returns the source position of each target position `t` of a reordered sequence."""
    start = t - t % CLAUSE
    words = jnp.clip(length - start, 0, CLAUSE)
    return start + jnp.asarray(CLAUSE_ORDERS)[words, t % CLAUSE]


def verbs_last(
    t: Int[Array, " T"], length: Int[Array, ""], words: Int[Array, " T"]
) -> Int[Array, " T"]:
    """Returns the source position of each target position `t` when verbs end their clauses."""
    place = jnp.arange(len(words))
    is_verb = (words - WORDS) % VERBS == 0
    # Sort by clause, then verbs last; the sort is stable, so words keep their order otherwise.
    rank = jnp.where(place < length, 2 * (place // CLAUSE) + is_verb, 2 * len(words))
    return jnp.argsort(rank, stable=True)[t]


KINDS: Mapping[str, tuple[Order, bool]] = {
    "copy": (forwards, False),
    "reverse": (backwards, False),
    "substitute": (backwards, True),
    "reorder": (clause_final, True),
    "verbs_last": (verbs_last, True),
}
"""{task.kind: (order of the target, whether words are replaced)}."""


def substitution(vocab_size: int) -> np.ndarray:
    """Returns the replacement of each token, (V,) int32; special tokens map to themselves."""
    # The stream of RandomState is frozen (NEP 19); a Generator's may change with NumPy versions.
    words = np.random.RandomState(SUBSTITUTION_SEED).permutation(vocab_size - WORDS)
    return np.concatenate([np.arange(WORDS), WORDS + words]).astype(np.int32)


def pair(
    words: Int[Array, " T-1"], length: Int[Array, ""], order: Order, replaced: Int[Array, " V"]
) -> dict[str, Int[Array, "..."]]:
    """Returns one pair, with source and target padded to T.

    Args:
      words: words of the source; those from `length` on are not read.
      length: number of words of the source; 0 makes a filler row without targets.
      order: function that returns the source position of each target position.
      replaced: replacement of each token.

    Returns:
      source (T,), source_length (), inputs (T,), targets (T,) with -1 after the end token, and
      alignment (T,): the source position of each target word, -1 at the end token (which aligns
      with no word) and at padding.
    """
    t = jnp.arange(words.shape[0] + 1)
    padded = jnp.append(words, PAD)
    origin = jnp.clip(order(t, length, padded), 0, words.shape[0] - 1)
    target = replaced[words[origin]]
    is_word = t < length
    after = jnp.where((t == length) & (length > 0), EOS, -1)
    shifted = jnp.roll(target, 1).at[0].set(BOS)
    return {
        "source": jnp.where(is_word, padded, jnp.where(t == length, EOS, PAD)),
        "source_length": length + 1,
        "inputs": jnp.where(t <= length, shifted, PAD),
        "targets": jnp.where(is_word, target, after),
        "alignment": jnp.where(is_word, origin, -1),
    }


@dataclass(frozen=True, kw_only=True)
class Transduction(Task):
    """The transduction task; it has the attributes of `Task`, and

    Attributes:
      kind: name in `KINDS`.
      min_length, train_length: shortest and longest training sequence, in words; lengths are
        uniform between them.
      test_lengths: lengths of the test sequences, in words.
      test_sequences: number of test sequences of each length.
    """

    higher_is_better = {
        "loss": False,
        **dict.fromkeys(("accuracy", "accuracy_training_lengths", *SCORES), True),
    }
    ranges = {
        **Task.ranges,
        **dict.fromkeys(("accuracy_training_lengths", *SCORES), FRACTION),
    }
    kind: str
    min_length: int
    train_length: int
    test_lengths: tuple[int, ...]
    test_sequences: int
    models: Sequence[str] = ("encoder_decoder", "recurrent")
    decoded: Sequence[str] = ("test",)
    aligned: Sequence[str] = ("alignment_error", "diagonality", "entropy")
    scores: Sequence[str] = SCORES

    @property
    def slices(self) -> Mapping[str, Sequence[str]]:
        labels = [str(n) for n in self.test_lengths]
        names = ("accuracy_by_length", "exact_match_by_length", "token_accuracy_by_length")
        return dict.fromkeys(names, labels)

    @property
    def tokens(self) -> float:
        return self.batch_size * 2 * ((self.min_length + self.train_length) / 2 + 1)

    def lengths(self, split: str) -> tuple[int, ...]:
        """Returns the lengths of a split in words; its sequences cycle through them."""
        if split == "test":
            return self.test_lengths
        return tuple(range(self.min_length, self.train_length + 1))

    def batch(
        self, data: Any, key: Key[Array, ""], step: int | Int[Array, ""] = 0, bucket: int = 0
    ) -> Batch:
        """Returns `batch_size` new random pairs, padded to the longest training length."""
        of_lengths, of_words = jax.random.split(jax.random.fold_in(key, step))
        size = (self.batch_size,)
        lengths = jax.random.randint(of_lengths, size, self.min_length, self.train_length + 1)
        return self._pairs(jax.random.split(of_words, size), lengths, self.train_length)

    def evaluation(
        self, data: Any, split: str, index: int | Int[Array, ""], total: int, bucket: int = 0
    ) -> Batch:
        """Returns batch `index` of the split's random stream, padded to its longest length."""
        return self.rows(split, index * self.batch_size + jnp.arange(self.batch_size), data)

    def evaluation_batches(self, split: str, total: int) -> Sequence[int]:
        """Returns `total`, but for the test the number of batches that contain all of it."""
        return (-(-self.test_size // self.batch_size) if split == "test" else total,)

    def examples(self, split: str, total: int) -> int:
        """Returns the number of sequences in a split."""
        return self.test_size if split == "test" else total * self.batch_size

    def example(self, split: str, index: int, total: int) -> Batch:
        """Returns sequence `index` of a split."""
        return jax.jit(self.rows, static_argnums=0)(split, np.array([index], np.int32))

    @property
    def test_size(self) -> int:
        """Number of test sequences."""
        return len(self.test_lengths) * self.test_sequences

    def rows(self, split: str, numbers: Int[Array, " B"], data: Any = ()) -> Batch:
        """Returns the sequences of a split with the given numbers; empty rows past its end."""
        key = evaluation_key(EVALUATION_SEED[split], split, data)
        cycle = jnp.array(self.lengths(split))
        lengths = cycle[numbers % len(cycle)]
        if split == "test":
            lengths = jnp.where(numbers < self.test_size, lengths, 0)
        keys = jax.vmap(lambda n: jax.random.fold_in(key, n))(numbers)
        return self._pairs(keys, lengths, max(self.lengths(split)))

    def _pairs(self, keys: Key[Array, " B"], lengths: Int[Array, " B"], longest: int) -> Batch:
        order, replaces = KINDS[self.kind]
        replaced = substitution(self.vocab_size) if replaces else np.arange(self.vocab_size)

        def one(key: Key[Array, ""], length: Int[Array, ""]) -> dict[str, Int[Array, "..."]]:
            words = jax.random.randint(key, (longest,), WORDS, self.vocab_size)
            return pair(words, length, order, jnp.asarray(replaced, jnp.int32))

        return jax.vmap(one)(keys, lengths)

    def metrics(self, outputs: TokenOutputs, batch: Batch) -> dict[str, Sums]:
        """Returns loss (nats per target) and accuracy under teacher forcing, also by length.

        The end token counts as a target. "accuracy_training_lengths" is the accuracy on sequences
        of training lengths. Lengths outside `test_lengths` are in no slice.
        """
        targets = batch["targets"]
        weights = (targets >= 0).astype(jnp.float32)
        loss = cross_entropy(outputs, jnp.maximum(targets, 0)) * weights
        right = (predicted_tokens(outputs) == targets).astype(jnp.float32)
        words = jnp.broadcast_to(batch["source_length"][:, None] - 1, targets.shape)
        known = weights * ((words >= self.min_length) & (words <= self.train_length))
        number = len(self.test_lengths)
        is_length = words[..., None] == jnp.array(self.test_lengths)
        index = jnp.where(is_length.any(-1), is_length.argmax(-1), number)
        count = weights.sum()
        return {
            "loss": Sums(loss.sum(), count),
            "accuracy": Sums((right * weights).sum(), count),
            "accuracy_training_lengths": Sums((right * known).sum(), known.sum()),
            "accuracy_by_length": sliced(right, weights, index, number),
        }

    def sources(self, split: str) -> Batch:
        """Returns the test's "source" (N, S) and "source_length" (N,), host arrays."""
        whole = decoded_pairs(self, split)
        return {name: whole[name] for name in ("source", "source_length")}

    def score(self, split: str, hypotheses: Sequence[Sequence[int]]) -> Scored:
        """Returns the fractions of decoded sequences and of their words that are correct.

        exact_match: fraction of sequences equal to the reference, including where they end.
        token_accuracy: fraction of reference words that the hypothesis has at the same position;
          words missing from a short hypothesis are wrong, extra words do not count.
        Both also by length, and over the test lengths within training lengths (NaN if none).
        """
        whole = decoded_pairs(self, split)
        exact, part = [], []
        for length, targets, found in zip(
            whole["source_length"] - 1, whole["targets"], hypotheses, strict=True
        ):
            reference = targets[:length].tolist()
            exact.append(float(list(found) == reference))
            part.append(sum(a == b for a, b in zip(found, reference, strict=False)) / length)
        words = whole["source_length"] - 1
        known = (words >= self.min_length) & (words <= self.train_length)
        metrics, by_length = {}, {}
        for name, values in (("exact_match", exact), ("token_accuracy", part)):
            # token_accuracy is a mean over words, not sequences: weight sequences by length.
            weights = words if name == "token_accuracy" else np.ones_like(words)
            metrics[name] = _mean(values, weights)
            metrics[f"{name}_training_lengths"] = _mean(values, weights * known)
            by_length[f"{name}_by_length"] = [
                _mean(values, weights * (words == n)) for n in self.test_lengths
            ]
        return Scored(metrics, by_length, {})

    def alignments(self, split: str) -> Batch:
        """Returns the first batch of a split, with "alignment" (B, T), see `pair`."""
        return jax.jit(self.rows, static_argnums=0)(split, jnp.arange(self.batch_size))


@functools.lru_cache(maxsize=8)
def decoded_pairs(task: Transduction, split: str) -> dict[str, Any]:
    """Returns all sequences of a decoded split as host arrays, cached for all runs."""
    check_name("split", split, task.decoded)
    rows = jax.jit(task.rows, static_argnums=0)(split, jnp.arange(task.test_size))
    return {name: np.asarray(array) for name, array in rows.items()}


def _mean(values: Sequence[float], weights: np.ndarray) -> float:
    return float(np.average(values, weights=weights)) if weights.any() else float("nan")


@dataclass(frozen=True, kw_only=True)
class TransductionOptions(Generated):
    """Strings into strings by a rule, generated, with known alignment."""

    task = Transduction
    decodes = True
    source = "Graves et al. 2014, section 4.1; Grefenstette et al. 2015, section 4.1"
    vocab_size: int = option(64, f"{WORDS} special tokens, the others words", least=WORDS + 2)
    kind: str = option(
        "substitute", "rule that makes the target from the source", allowed=tuple(KINDS)
    )
    min_length: int = option(
        2, "minimum number of words in a training string, without the end token", least=1
    )
    train_length: int = option(20, "maximum number of words in a training string", least=1)
    test_lengths: tuple[int, ...] = option(
        (5, 10, 15, 20, 25, 30), "numbers of words in a test string", least=1
    )
    test_sequences: int = option(
        100, "number of test strings of each length in test_lengths", least=1
    )

    def make(self) -> Transduction:
        """Returns the task. Raises UserError for inconsistent sizes."""
        if self.train_length < self.min_length:
            raise UserError(
                f"task.train_length={self.train_length} must be at least "
                f"task.min_length={self.min_length}."
            )
        if not self.test_lengths:
            raise UserError("task.test_lengths=(): give one or more positive numbers.")
        check_ascending("test_lengths", self.test_lengths)
        longest = max(self.train_length, *self.test_lengths)
        if self.length < longest + 1:
            raise UserError(
                f"task.length={self.length} is too short for {longest} words and their end token; "
                f"at least {longest + 1}."
            )
        return Transduction(
            test_of_seed=self.test_of_seed,
            vocab_size=self.vocab_size,
            length=self.length,
            batch_size=self.batch_size,
            kind=self.kind,
            min_length=self.min_length,
            train_length=self.train_length,
            test_lengths=self.test_lengths,
            test_sequences=self.test_sequences,
        )
