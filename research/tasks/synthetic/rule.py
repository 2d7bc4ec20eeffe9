"""Classification by a known rule, generated on the device inside the compiled step.

A sequence is random noise of random length in which a few keywords stand at random places; they
decide the class, and nothing else does:

    keyword  one of 2 K keywords; its class is that of the sequence
    pair     two of them; the class is whether theirs are the same. One keyword alone says nothing
             (the other one's class is drawn on its own), so no weighted sum of words decides it

What decides is known, as "relevant" of a batch, so that an explanation of what a model decides can
be checked against it.

Tokens: 0 is padding, 1 the unknown one (never drawn), 2 .. 1 + K are keywords of class 0, then K of
class 1; the rest is noise.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key
from ml_collections import ConfigDict

from research.errors import UserError, check_name
from research.tasks.task import PAD, UNKNOWN, Batch, evaluation_key, power_of_two_bins
from research.tasks.text.classification import Classification

KINDS = {"keyword": 1, "pair": 2}
"""{task.kind: keywords of a sequence}."""
LABELS = {"keyword": ("first", "second"), "pair": ("different", "same")}
FIRST = UNKNOWN + 1
"""The first keyword."""

# Evaluation draws from streams of its own, so that no seed ever trains on them.
EVALUATION_SEED = {"validation": 0x5EED0021, "test": 0x5EED0022}


def sequence(
    key: Key[Array, ""], kind: str, length: int, min_length: int, vocab_size: int, keywords: int
) -> dict[str, Array]:
    """Returns one sequence: a row of a batch, with "relevant" (T,) bool.

    Args:
      key: random key.
      kind: a name in `KINDS`.
      length: T.
      min_length: of the part that is no padding, at least `KINDS[kind]`.
      vocab_size: V.
      keywords: K, of each class.
    """
    of_length, of_noise, of_places, of_class, of_word = jax.random.split(key, 5)
    number = KINDS[kind]
    size = jax.random.randint(of_length, (), min_length, length + 1)
    there = jnp.arange(length) < size
    noise = jax.random.randint(of_noise, (length,), FIRST + 2 * keywords, vocab_size)
    # The largest of as many random numbers as there are places are a draw without replacement.
    draws = jnp.where(there, jax.random.uniform(of_places, (length,)), -1.0)
    places = jax.lax.top_k(draws, number)[1]
    classes = jax.random.randint(of_class, (number,), 0, 2)
    words = FIRST + classes * keywords + jax.random.randint(of_word, (number,), 0, keywords)
    inputs = jnp.where(there, noise, PAD).at[places].set(words)
    label = classes[0] if kind == "keyword" else (classes[0] == classes[1]).astype(jnp.int32)
    return {
        "inputs": inputs.astype(jnp.int32),
        "length": size,
        "label": label,
        "relevant": jnp.zeros(length, bool).at[places].set(True),
    }


@dataclass(frozen=True, kw_only=True)
class Rule(Classification):
    """The task of this file; the attributes are those of `Classification`, and

    Attributes:
      kind: a name in `KINDS`.
      min_length: of a sequence; lengths are uniform from it to `length`.
      keywords: K, of each class.
    """

    options = {
        "vocab_size": 64,
        "kind": "substitute",
        "min_length": 2,
        "num_keywords": 4,
        "test_of_seed": False,
    }
    kind: str
    min_length: int
    keywords: int

    @property
    def tokens(self) -> float:
        return self.batch_size * (self.min_length + self.length) / 2

    def batch(
        self, data: Any, key: Key[Array, ""], step: int | Int[Array, ""] = 0, bucket: int = 0
    ) -> Batch:
        """Returns `batch_size` fresh sequences, with "relevant" (B, T): which tokens decide."""
        keys = jax.random.split(jax.random.fold_in(key, step), self.batch_size)
        sizes = self.length, self.min_length, self.vocab_size, self.keywords
        return jax.vmap(lambda k: sequence(k, self.kind, *sizes))(keys)

    def evaluation(
        self, data: Any, split: str, index: Int[Array, ""], total: int, bucket: int = 0
    ) -> Batch:
        """Returns batch `index` of the split's own stream."""
        return self.batch(data, evaluation_key(EVALUATION_SEED[split], split, data), index)


def make_rule(config: ConfigDict) -> Rule:
    """Returns the task of `config.task`. Raises UserError for sizes that do not fit."""
    check_name("task.kind", config.kind, KINDS)
    if config.num_keywords < 1:
        raise UserError(f"task.num_keywords={config.num_keywords} must be at least 1.")
    least = FIRST + 2 * config.num_keywords + 1
    if config.vocab_size < least:
        raise UserError(
            f"task.vocab_size={config.vocab_size} must be at least {least}: padding, unknown, "
            f"{2 * config.num_keywords} keywords and noise."
        )
    number = KINDS[config.kind]
    if not number <= config.min_length <= config.length:
        raise UserError(
            f"task.min_length={config.min_length} must be from {number}, the keywords of a "
            f"sequence, to task.length={config.length}."
        )
    lengths = [
        (max(low, config.min_length), high)
        for low, high in power_of_two_bins(1, config.length)
        if high >= config.min_length
    ]
    return Rule(
        test_of_seed=config.test_of_seed,
        vocab_size=config.vocab_size,
        length=config.length,
        batch_size=config.batch_size,
        classes=2,
        labels=LABELS[config.kind],
        length_bins=lengths,
        kind=config.kind,
        min_length=config.min_length,
        keywords=config.num_keywords,
    )
