"""What a model of speech makes of a batch: the interface between it and the task's metrics."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class SpeechOutputs(NamedTuple):
    """Attributes:

    logits: of the targets given those before, float32; None without a speller.
    ctc: logits of CTC in each frame of the listener, float32; None without such a head. PAD is the
      blank; BOS and EOS are no labels.
    ctc_length: frames of the listener that are there.
    ctc_weight: lambda of the objective.
    labelling: what greedy decoding finds, without end tokens, PAD after the last one; None while
      training.
    """

    logits: Float[Array, "B T V"] | None
    ctc: Float[Array, "B S V"] | None
    ctc_length: Int[Array, " B"]
    ctc_weight: Float[Array, ""]
    labelling: Int[Array, "B L"] | None
