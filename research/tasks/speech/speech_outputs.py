"""Outputs of a speech recognizer: the interface between the model and the task's metrics."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


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
