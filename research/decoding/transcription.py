"""Transcribing recordings: what `research.transcribe` does with files."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from research.decoding.decode import Hypothesis, decode_all
from research.decoding.search import Search
from research.tasks.speech.audio import read_audio
from research.tasks.speech.features import log_mel, normalize
from research.tasks.task import EOS
from research.tasks.text.tokenizer import Tokenizer

SHORTEST = 128
"""The least number of frames that a program is compiled for."""


class Transcriber(NamedTuple):
    """What it takes to transcribe.

    Attributes:
      model: a model of speech.
      params: its parameters.
      tokenizer: of the run.
      search: how transcripts are found.
      batch_size: recordings to a batch.
    """

    model: Any
    params: Any
    tokenizer: Tokenizer
    search: Search
    batch_size: int = 16


class Transcript(NamedTuple):
    """One transcript of one recording.

    Attributes:
      text: on one line, words parted by single spaces.
      confidence: exp of the mean log probability of the tokens, the end among them, under the
        search's score (joint with CTC when the search is), 0 to 1: how sure the model is of a
        token on average, no calibrated probability of being right.
      pieces: of the tokens, the end among them.
      weights: (H, T, S) how each piece read each frame of the listener, or None.
      complete: whether it ended before the limit, at which an end is forced.
    """

    text: str
    confidence: float
    pieces: list[str]
    weights: Any
    complete: bool


def read_features(path: Path, task: ConfigDict) -> Float[np.ndarray, "F num_mels"]:
    """Returns the normalised features of a WAV or FLAC file, as the task `config.task` has them.

    Raises UserError for a file that cannot be read, or is longer than `task.max_seconds`.
    """
    samples = read_audio(path, task.sample_rate, task.max_seconds)
    return normalize(log_mel(samples, task.sample_rate, task.num_mels))


def frame_lengths(longest: int) -> list[int]:
    """Returns the numbers of frames that programs are compiled for: 128, 192, 256, 384, 512, ...

    They are the same for every set of files, so that compiled programs are found again, and no
    recording of 128 frames or more is filled up by more than half.
    """
    found = [SHORTEST]
    while found[-1] < longest:
        power_of_two = found[-1] & (found[-1] - 1) == 0
        found.append(found[-1] * 3 // 2 if power_of_two else found[-1] * 4 // 3)
    return found


def transcribe(
    transcriber: Transcriber,
    features: Sequence[Float[np.ndarray, "F num_mels"]],
    with_weights: bool = False,
) -> list[list[Transcript]]:
    """Returns the transcripts of each recording, best first.

    Args:
      transcriber: the model and how it searches.
      features: of each recording; see `read_features`.
      with_weights: also returns how the frames were read.

    Raises UserError for a search that the model cannot do.
    """
    if not features:
        return []
    found = decode_all(
        transcriber.model,
        transcriber.params,
        *stacked(features),
        transcriber.search,
        transcriber.batch_size,
        with_weights=with_weights,
        lengths=frame_lengths(max(map(len, features))),
    )
    limit = transcriber.search.limit(transcriber.model.config.length)
    return [[_transcript(transcriber.tokenizer, h, limit) for h in row] for row in found]


def stacked(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns source (N, S, F) float32, zeros at padding, and source_length (N,) int32."""
    lengths = np.array([len(f) for f in features], np.int32)
    source = np.zeros((len(features), max(lengths), features[0].shape[1]), np.float32)
    for row, frames in zip(source, features, strict=True):
        row[: len(frames)] = frames
    return source, lengths


def confidence(hypothesis: Hypothesis) -> float:
    """Returns exp of the mean log probability of the tokens; see `Transcript`."""
    # Sums of log probabilities are above 0 by rounding alone.
    return math.exp(min(0.0, hypothesis.log_prob) / (len(hypothesis.tokens) + 1))


def _transcript(tokenizer: Tokenizer, hypothesis: Hypothesis, limit: int) -> Transcript:
    tokens = hypothesis.tokens
    # A tab or line break of a byte-level vocabulary would make columns and lines of its own.
    text = " ".join(tokenizer.decode(tokens).split())
    pieces = tokenizer.pieces([*tokens, EOS])
    complete = len(tokens) + 1 < limit
    return Transcript(text, confidence(hypothesis), pieces, hypothesis.weights, complete)


def label_posteriors(
    transcriber: Transcriber, features: Float[np.ndarray, "F num_mels"]
) -> Float[np.ndarray, "S V"]:
    """Returns the probability of each label of CTC, PAD the blank, in each frame of the listener.

    Raises UserError for a model without CTC.
    """
    frames, (length,) = stacked([features])
    columns = next(n for n in frame_lengths(length) if n >= length)
    source = np.pad(frames, ((0, 0), (0, columns - length), (0, 0)))
    log_probs, numbers = _label_log_probs(
        transcriber.model, transcriber.params, source, np.array([length], np.int32)
    )
    return np.exp(np.asarray(log_probs[0, : int(numbers[0])]))


@functools.partial(jax.jit, static_argnums=0)
def _label_log_probs(model: Any, params: Any, source: Any, lengths: Any) -> Any:
    variables = {"params": params}
    memory = model.apply(variables, source, lengths, method="encode")
    return model.apply(variables, memory, method="ctc")
