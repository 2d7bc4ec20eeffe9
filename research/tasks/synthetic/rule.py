"""Classification by a known rule, generated on the device inside the compiled step.

A sequence is random noise of random length with a few keywords at random positions, which alone
determine the class:

    keyword  one of 2 K keywords; its class is the class of the sequence
    pair     two keywords; the label is whether their classes are equal. One keyword alone is
             uninformative (the other's class is independent), so no linear bag of words solves it

"relevant" in a batch marks the deciding tokens, so that explanations of a model's decisions can be
compared with the truth.

Tokens: 0 is padding, 1 the unknown token (never drawn), 2 .. 1 + K are keywords of class 0, then K
keywords of class 1; the rest is noise.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from research.errors import UserError
from research.options import option
from research.tasks.bins import power_of_two_bins
from research.tasks.classification import Classification
from research.tasks.options import Generated
from research.tasks.task import (
    PAD,
    UNKNOWN,
    Batch,
    evaluation_key,
)

KINDS = {"keyword": 1, "pair": 2}
"""{task.kind: number of keywords in a sequence}."""
LABELS = {"keyword": ("first", "second"), "pair": ("different", "same")}
FIRST = UNKNOWN + 1
"""The first keyword."""

# Evaluation uses separate random streams, so that no seed ever trains on evaluation data.
EVALUATION_SEED = {"validation": 0x5EED0021, "test": 0x5EED0022}


def sequence(
    key: Key[Array, ""], kind: str, length: int, min_length: int, vocab_size: int, keywords: int
) -> dict[str, Array]:
    """Generates one sequence: a row of a batch, with "relevant" (T,) bool.

    Args:
      key: random key.
      kind: a name in `KINDS`.
      length: T.
      min_length: minimum length without padding, at least `KINDS[kind]`.
      vocab_size: V.
      keywords: K, number of keywords of each class.
    """
    of_length, of_noise, of_places, of_class, of_word = jax.random.split(key, 5)
    number = KINDS[kind]
    size = jax.random.randint(of_length, (), min_length, length + 1)
    there = jnp.arange(length) < size
    noise = jax.random.randint(of_noise, (length,), FIRST + 2 * keywords, vocab_size)
    # The positions of the largest of T random numbers are a draw without replacement; padding gets
    # -1, so it is never drawn.
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
    """The rule task; it has the attributes of `Classification`, and

    Attributes:
      kind: a name in `KINDS`.
      min_length: length of the shortest sequence; lengths are uniform from it to `length`.
      keywords: K, number of keywords of each class.
    """

    kind: str
    min_length: int
    keywords: int

    @property
    def tokens(self) -> float:
        return self.batch_size * (self.min_length + self.length) / 2

    def batch(
        self, data: Any, key: Key[Array, ""], step: int | Int[Array, ""] = 0, bucket: int = 0
    ) -> Batch:
        """Returns `batch_size` new random sequences; "relevant" (B, T) marks the keywords."""
        keys = jax.random.split(jax.random.fold_in(key, step), self.batch_size)
        sizes = self.length, self.min_length, self.vocab_size, self.keywords
        return jax.vmap(lambda k: sequence(k, self.kind, *sizes))(keys)

    def evaluation(
        self, data: Any, split: str, index: Int[Array, ""], total: int, bucket: int = 0
    ) -> Batch:
        """Returns batch `index` of the split's random stream."""
        return self.batch(data, evaluation_key(EVALUATION_SEED[split], split, data), index)


@dataclass(frozen=True, kw_only=True)
class RuleOptions(Generated):
    """Noise with keywords in it that decide the class."""

    task = Rule
    vocab_size: int = option(64, "number of tokens: padding, the unknown token, keywords and noise")
    kind: str = option(
        "keyword",
        "what decides the class: one keyword, or whether two keywords agree",
        allowed=tuple(KINDS),
    )
    min_length: int = option(2, "minimum number of tokens in a sequence")
    num_keywords: int = option(4, "number of keywords of each of the two classes", least=1)

    def make(self) -> Rule:
        """Returns the task. Raises UserError for inconsistent sizes."""
        least = FIRST + 2 * self.num_keywords + 1
        if self.vocab_size < least:
            raise UserError(
                f"task.vocab_size={self.vocab_size} must be at least {least}: padding, unknown, "
                f"{2 * self.num_keywords} keywords and noise."
            )
        number = KINDS[self.kind]
        if not number <= self.min_length <= self.length:
            raise UserError(
                f"task.min_length={self.min_length} must be from {number}, the keywords of a "
                f"sequence, to task.length={self.length}."
            )
        lengths = [
            (max(low, self.min_length), high)
            for low, high in power_of_two_bins(1, self.length)
            if high >= self.min_length
        ]
        return Rule(
            test_of_seed=self.test_of_seed,
            vocab_size=self.vocab_size,
            length=self.length,
            batch_size=self.batch_size,
            classes=2,
            labels=LABELS[self.kind],
            length_bins=lengths,
            kind=self.kind,
            min_length=self.min_length,
            keywords=self.num_keywords,
        )
