"""Errors of recognition: word and character error rates, and edit distances on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

RATES = ("wer", "cer", "substitutions", "insertions", "deletions", "sentence_error_rate")
"""What `error_rates` returns. Lower is better."""


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Returns rates over a whole set; 1 is as many errors as there are words, and more can be.

    wer: word errors per word of the references. substitutions, insertions, deletions: its parts.
    cer: character errors per character, which is what counts in a language that puts no spaces
    between words: there a whole text is one word.
    sentence_error_rate: part of the texts that are not right.

    Args:
      references: N texts, none of them empty.
      hypotheses: N texts.

    NaN everywhere when N = 0.
    """
    # Imported here: whoever trains on text does not need it.
    import jiwer

    if not references:
        return dict.fromkeys(RATES, float("nan"))
    words = jiwer.process_words(list(references), list(hypotheses))
    characters = jiwer.process_characters(list(references), list(hypotheses))
    count = words.hits + words.substitutions + words.deletions
    wrong = [a.split() != b.split() for a, b in zip(references, hypotheses, strict=True)]
    return {
        "wer": words.wer,
        "cer": characters.cer,
        "substitutions": words.substitutions / count,
        "insertions": words.insertions / count,
        "deletions": words.deletions / count,
        "sentence_error_rate": float(np.mean(wrong)),
    }


def edit_distance(
    hypotheses: Int[Array, "B L"],
    lengths: Int[Array, " B"],
    references: Int[Array, "B T"],
    reference_lengths: Int[Array, " B"],
) -> Int[Array, " B"]:
    """Returns the fewest insertions, deletions and substitutions between token sequences.

    Wagner and Fischer 1974, row by row: what a row takes from its own left neighbour is a running
    minimum, so that only the L rows are a loop.

    Args:
      hypotheses: tokens; those from `lengths` on are not read.
      references: the same.
    """
    columns = jnp.arange(references.shape[1] + 1)

    def row(above: Int[Array, "B T1"], now: tuple) -> tuple[Int[Array, "B T1"], None]:
        number, token = now
        different = (references != token[:, None]).astype(jnp.int32)
        best = jnp.minimum(above[:, 1:] + 1, above[:, :-1] + different)
        # The first column: all tokens so far inserted.
        best = jnp.concatenate([jnp.full_like(best[:, :1], number + 1), best], axis=1)
        new = jax.lax.cummin(best - columns, axis=1) + columns
        return jnp.where((number < lengths)[:, None], new, above), None

    first = jnp.broadcast_to(columns, (len(references), len(columns))).astype(jnp.int32)
    numbers = jnp.arange(hypotheses.shape[1])
    last, _ = jax.lax.scan(row, first, (numbers, hypotheses.T))
    return jnp.take_along_axis(last, reference_lengths[:, None], axis=1)[:, 0]
