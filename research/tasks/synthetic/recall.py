"""Multi-query associative recall (MQAR), generated on the device inside the compiled step.

Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language Models", section
4.1 and the synthetic-data appendix. A sequence starts with n key-value pairs; later, at gaps drawn
from a power law, every key occurs once more, and the model must predict its value there:

    inputs   k3 v7 k1 v2  .  .  k1  .  k3  .
    targets  -  -  -  -   -  -  v2  -  v7  -

Tokens: 0 is the filler, 1 .. V/2 - 1 are keys, V/2 .. V - 1 are values. As in Zoology, neither keys
nor values repeat within a sequence. Guessing one of the sequence's values scores 1 / n. Unlike in
Zoology, a key may be asked several times (`queries`), and positions without a query always hold the
filler. (Zoology's generator can fill them with random tokens, which may repeat a key with another
successor.)

A look-up among thousands of fillers takes long to learn. `shorter` is a curriculum (Bengio et al.
2009; for lengths Li et al. 2022, "The Stability-Efficiency Dilemma"): training begins with shorter
sequences, of which a step has as many more, so that all steps have equally many tokens and queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from research.errors import UserError
from research.options import option
from research.tasks.bins import bin_index, bin_label, power_of_two_bins
from research.tasks.options import Generated, WithEvalLengths, check_ascending
from research.tasks.task import (
    FRACTION,
    Batch,
    Sums,
    Task,
    TokenOutputs,
    cross_entropy,
    evaluation_key,
    predicted_tokens,
    sliced,
    split_by_eval_length,
)

# Evaluation uses separate random streams, so that no seed ever trains on evaluation data.
EVALUATION_SEED = {"validation": 0x5EED0001, "test": 0x5EED0002}


def sequence(
    key: Key[Array, ""],
    length: int,
    vocab_size: int,
    num_pairs: Sequence[int],
    gap_power: float,
    queries: int = 1,
) -> dict[str, Int[Array, "..."]]:
    """Generates one sequence.

    Args:
      key: random key.
      length: T, at least 2 (1 + queries) times the largest number of pairs.
      vocab_size: V, even.
      num_pairs: numbers of key-value pairs; one is drawn uniformly.
      gap_power: a of the power law p(gap) ~ gap^(a - 1), gap counted in slots of two tokens.
      queries: number of times each key is asked.

    Returns:
      inputs (T,); targets (T,), -1 except at queries; gaps (T,), the distance in tokens from each
      query back to its key, 0 except at queries; pairs (), the index into `num_pairs`.
    """
    of_pairs, of_keys, of_values, of_gaps = jax.random.split(key, 4)
    most = max(num_pairs)
    half = vocab_size // 2
    pairs = jax.random.randint(of_pairs, (), 0, len(num_pairs))
    n = jnp.array(num_pairs)[pairs]
    keys = 1 + jax.random.permutation(of_keys, half - 1)[:most]
    values = half + jax.random.permutation(of_values, vocab_size - half)[:most]

    # Gumbel top-k: the k largest of log p + Gumbel noise are k draws without replacement, in order.
    slots = jnp.arange(length // 2)
    log_p = (gap_power - 1.0) * jnp.log(slots + 1.0)
    log_p = jnp.where(slots < length // 2 - n, log_p, -jnp.inf)
    _, slot = jax.lax.top_k(log_p + jax.random.gumbel(of_gaps, log_p.shape), most * queries)

    # Shapes are static, so write what lies beyond n past the end, where mode="drop" discards it.
    index = jnp.arange(most)
    shown = jnp.where(index < n, 2 * index, length)
    query = jnp.arange(most * queries)
    of_query = query % n
    asked = jnp.where(query < n * queries, 2 * n + 2 * slot, length)
    inputs = jnp.zeros(length, jnp.int32)
    inputs = inputs.at[shown].set(keys, mode="drop").at[shown + 1].set(values, mode="drop")
    return {
        "inputs": inputs.at[asked].set(keys[of_query], mode="drop"),
        "targets": jnp.full(length, -1).at[asked].set(values[of_query], mode="drop"),
        "gaps": jnp.zeros(length, jnp.int32).at[asked].set(asked - 2 * of_query, mode="drop"),
        "pairs": pairs,
    }


def queries_at(length: int, full: int, queries: int) -> int:
    """Returns how often a key is asked in fewer tokens than the full length: in proportion."""
    return max(1, queries * length // full) if length < full else queries


ACCURACIES = ("accuracy", "accuracy_most_pairs", "accuracy_longest")


@dataclass(frozen=True, kw_only=True)
class Recall(Task):
    """The recall task; see `Task` for the attributes and `sequence` for the others."""

    higher_is_better = {
        "loss": False,
        **dict.fromkeys(ACCURACIES, True),
    }
    ranges = {**Task.ranges, **dict.fromkeys(ACCURACIES, FRACTION)}
    num_pairs: tuple[int, ...]
    gap_power: float
    queries: int = 1
    shorter: tuple[int, ...] = ()
    shorter_steps: int = 0
    gap_bins: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        # The largest gap is from a query at position length - 2 to the first key at 0.
        object.__setattr__(self, "gap_bins", power_of_two_bins(2, self.length - 2))

    @property
    def slices(self) -> Mapping[str, Sequence[str]]:
        labels = {
            "accuracy_by_gap": [bin_label(*b) for b in self.gap_bins],
            "accuracy_by_pairs": [str(n) for n in self.num_pairs],
        }
        if self.eval_lengths:
            labels["accuracy_by_length"] = [str(n) for n in self.eval_lengths]
        return labels

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of training by bucket, the full one first."""
        return (self.length, *self.shorter)

    def frequencies_in(self, steps: int) -> Sequence[float]:
        """Returns the fraction of `steps` steps of each bucket."""
        ends = [min(i * self.shorter_steps, steps) for i in range(len(self.lengths))]
        short = [end - start for start, end in pairwise(ends)]
        return [part / steps for part in (steps - sum(short), *short)]

    def bucket(self, step: Int[Array, ""]) -> Int[Array, ""]:
        """Returns the bucket of a step's batch: the shorter lengths in turn, then the full one."""
        turn = step // max(self.shorter_steps, 1)
        return jnp.where(turn < len(self.lengths) - 1, turn + 1, 0)

    def batch(
        self, data: tuple, key: Key[Array, ""], step: int | Int[Array, ""] = 0, bucket: int = 0
    ) -> Batch:
        """Returns new random sequences with `batch_size * length` tokens in all."""
        length = self.lengths[bucket]
        rows = self.batch_size * (self.length // length)
        return self._sequences(jax.random.fold_in(key, step), length, rows)

    def evaluation(
        self, data: tuple, split: str, index: Int[Array, ""], total: int, bucket: int = 0
    ) -> Batch:
        """Returns batch `index` of the random stream of a split; each length has its own stream."""
        key = evaluation_key(EVALUATION_SEED[split], split, data)
        if bucket:
            key = jax.random.fold_in(key, bucket)
        batch = self._sequences(
            jax.random.fold_in(key, index), self.length_of(bucket), self.batch_size
        )
        return self.with_eval_length(batch, bucket)

    def _sequences(self, key: Key[Array, ""], length: int, rows: int) -> Batch:
        queries = queries_at(length, self.length, self.queries)
        return jax.vmap(
            lambda k: sequence(k, length, self.vocab_size, self.num_pairs, self.gap_power, queries)
        )(jax.random.split(key, rows))

    def metrics(self, outputs: TokenOutputs, batch: Batch) -> dict[str, Sums]:
        """Returns loss (nats per query) and accuracy, also by gap and by number of pairs.

        All are for the training length, except "accuracy_by_length" and "accuracy_longest".
        "accuracy_most_pairs" is the accuracy on the sequences with the most pairs.
        """
        targets = batch["targets"]
        weights = (targets >= 0).astype(jnp.float32)
        right = (predicted_tokens(outputs) == targets).astype(jnp.float32)
        weights, others = split_by_eval_length(self, "accuracy", right, weights, batch)
        loss = cross_entropy(outputs, jnp.maximum(targets, 0)) * weights
        pairs = jnp.broadcast_to(batch["pairs"][:, None], targets.shape)
        gaps = bin_index(batch["gaps"], self.gap_bins)
        count = weights.sum()
        hardest = weights * (pairs == jnp.argmax(jnp.array(self.num_pairs)))
        return {
            "loss": Sums(loss.sum(), count),
            "accuracy": Sums((right * weights).sum(), count),
            "accuracy_most_pairs": Sums((right * hardest).sum(), hardest.sum()),
            "accuracy_by_gap": sliced(right, weights, gaps, len(self.gap_bins)),
            "accuracy_by_pairs": sliced(right, weights, pairs, len(self.num_pairs)),
            **others,
        }


@dataclass(frozen=True, kw_only=True)
class RecallOptions(WithEvalLengths, Generated):
    """Multi-query associative recall: pairs of key and value, then keys that ask for values."""

    task = Recall
    source = "Arora et al. 2023, section 4.1"
    vocab_size: int = option(
        64, "number of tokens: half of them keys, half values; token 0 is the filler"
    )
    num_pairs: tuple[int, ...] = option(
        (4,), "numbers of key-value pairs, of which each sequence draws one", least=1
    )
    gap_power: float = option(
        0.01,
        "exponent of the power law by which the gaps before queries are drawn; smaller: "
        "shorter gaps",
    )
    queries: int = option(
        1, "times that each key is asked in a sequence; in shorter ones in proportion", least=1
    )
    shorter: tuple[int, ...] = option(
        (),
        "curriculum: lengths that training begins with, one after the other, with as many tokens "
        "per step; those below `length` are used",
        least=1,
    )
    shorter_steps: int = option(0, "steps at each of the lengths of `shorter`", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ascending("shorter", self.shorter)
        if bool(self.shorter) != bool(self.shorter_steps):
            raise UserError(
                f"task.shorter={self.shorter} and task.shorter_steps={self.shorter_steps}: "
                "give both or neither."
            )

    def make(self) -> Recall:
        """Returns the task. Raises UserError for inconsistent sizes."""
        if not self.num_pairs:
            raise UserError("task.num_pairs=(): give one or more positive numbers.")
        most = max(self.num_pairs)
        shorter = tuple(n for n in self.shorter if n < self.length)
        lengths = {
            "length": (self.length,),
            "eval_lengths": self.eval_lengths,
            "shorter": shorter,
        }
        for key, length in ((key, n) for key, numbers in lengths.items() for n in numbers):
            if length % 2:
                raise UserError(f"task.{key}={length} must be even: pairs take two tokens.")
            shortest = 2 * most * (1 + queries_at(length, self.length, self.queries))
            if length < shortest:
                raise UserError(
                    f"task.{key}={length} is too short for {most} pairs and their queries; "
                    f"at least {shortest}."
                )
            # A step then has a multiple of the batch size, which accumulation and devices divide.
            if key == "shorter" and self.length % length:
                raise UserError(f"task.shorter={length} must divide task.length={self.length}.")
        if self.vocab_size % 2 or self.vocab_size // 2 - 1 < most:
            raise UserError(
                f"task.vocab_size={self.vocab_size} must be even and at least {2 * most + 2} "
                f"for {most} distinct keys."
            )
        return Recall(
            test_of_seed=self.test_of_seed,
            length=self.length,
            vocab_size=self.vocab_size,
            batch_size=self.batch_size,
            eval_lengths=self.eval_lengths,
            num_pairs=self.num_pairs,
            gap_power=self.gap_power,
            queries=self.queries,
            shorter=shorter,
            shorter_steps=self.shorter_steps,
        )
