"""Speech recognition: outputs of a model, error rates, and edit distance on the device."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

RATES = ("wer", "cer", "substitutions", "insertions", "deletions", "sentence_error_rate")
"""Names of the metrics that `error_rates` returns; lower is better."""


class SpeechOutputs(NamedTuple):
    """Outputs of a speech recognizer for one batch.

    Attributes:
      logits: float32 logits of the targets under teacher forcing; None without a speller.
      ctc: float32 CTC logits of each listener state; None without CTC. PAD is the blank; BOS and
        EOS are not labels.
      ctc_length: number of listener states in each row.
      ctc_weight: lambda of the objective.
      labelling: result of greedy decoding, without end tokens, padded with PAD; None in training.
    """

    logits: Float[Array, "B T V"] | None
    ctc: Float[Array, "B S V"] | None
    ctc_length: Int[Array, " B"]
    ctc_weight: Float[Array, ""]
    labelling: Int[Array, "B L"] | None


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Returns error rates over a whole set; they may exceed 1. All are NaN if N = 0.

    wer: word errors per reference word. substitutions, insertions, deletions: its components.
    cer: character errors per reference character, the metric for languages without spaces between
    words, where a whole text is one word.
    sentence_error_rate: fraction of texts with any word error.

    Args:
      references: N texts, none of them empty.
      hypotheses: N texts.
    """
    # Imported lazily, because training on text does not need it.
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
    """Returns the edit distance: the fewest insertions, deletions and substitutions.

    Wagner and Fischer 1974, row by row. The dependence of an entry on its left neighbour is
    computed as a running minimum over the row, so that only the L rows are a sequential loop.

    Args:
      hypotheses: tokens; those from `lengths` on are not read.
      lengths: number of tokens of each hypothesis.
      references: tokens; those from `reference_lengths` on are not read.
      reference_lengths: number of tokens of each reference.
    """
    columns = jnp.arange(references.shape[1] + 1)

    def row(above: Int[Array, "B T1"], now: tuple) -> tuple[Int[Array, "B T1"], None]:
        number, token = now
        different = (references != token[:, None]).astype(jnp.int32)
        best = jnp.minimum(above[:, 1:] + 1, above[:, :-1] + different)
        # The first column, against an empty reference, is the number of tokens so far.
        best = jnp.concatenate([jnp.full_like(best[:, :1], number + 1), best], axis=1)
        # new_j = min over i <= j of best_i + (j - i), where j - i reference tokens are deleted.
        new = jax.lax.cummin(best - columns, axis=1) + columns
        return jnp.where((number < lengths)[:, None], new, above), None

    first = jnp.broadcast_to(columns, (len(references), len(columns))).astype(jnp.int32)
    numbers = jnp.arange(hypotheses.shape[1])
    last, _ = jax.lax.scan(row, first, (numbers, hypotheses.T))
    return jnp.take_along_axis(last, reference_lengths[:, None], axis=1)[:, 0]
