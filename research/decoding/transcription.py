"""Transcribes recordings, for `research.transcribe`."""

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
"""Smallest padded number of frames to compile for."""


class Transcriber(NamedTuple):
    """A model with everything needed to transcribe.

    Attributes:
      model: a speech recognition model.
      params: its parameters.
      tokenizer: tokenizer of the run.
      search: search settings.
      batch_size: recordings per batch.
    """

    model: Any
    params: Any
    tokenizer: Tokenizer
    search: Search
    batch_size: int = 16


class Transcript(NamedTuple):
    """One transcript of one recording.

    Attributes:
      text: one line, words separated by single spaces.
      confidence: exp of the mean log probability of the tokens, EOS included, under the score of
        the search (joint with CTC if the search is), 0 to 1: the model's average certainty per
        token, not a calibrated probability of being right.
      pieces: text of each token, EOS included.
      weights: (H, T, S) attention of each piece to each frame of the listener, or None.
      complete: whether it ended before the length limit, where EOS is forced.
    """

    text: str
    confidence: float
    pieces: list[str]
    weights: Any
    complete: bool


def read_features(path: Path, task: ConfigDict) -> Float[np.ndarray, "F num_mels"]:
    """Returns the normalised features of a WAV or FLAC file, computed as `config.task` says.

    Raises UserError for a file that cannot be read, or is longer than `task.max_seconds`.
    """
    samples = read_audio(path, task.sample_rate, task.max_seconds)
    return normalize(log_mel(samples, task.sample_rate, task.num_mels))


def frame_lengths(longest: int) -> list[int]:
    """Returns the padded numbers of frames to compile for: 128, 192, 256, 384, 512, ...

    They do not depend on the files, so that compiled programs are reused from the cache, and no
    recording of 128 frames or more is padded by more than half its length.
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
      transcriber: the model and its search settings.
      features: features of each recording; see `read_features`.
      with_weights: whether to return attention weights too.

    Raises UserError for a search that the model does not support.
    """
    if not features:
        return []
    found = decode_all(
        transcriber.model,
        transcriber.params,
        *pad_features(features),
        transcriber.search,
        transcriber.batch_size,
        with_weights=with_weights,
        lengths=frame_lengths(max(map(len, features))),
    )
    limit = transcriber.search.limit(transcriber.model.config.length)
    return [[_transcript(transcriber.tokenizer, h, limit) for h in row] for row in found]


def pad_features(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pads features: returns source (N, S, F) float32, 0 at padding, and lengths (N,) int32."""
    lengths = np.array([len(f) for f in features], np.int32)
    source = np.zeros((len(features), max(lengths), features[0].shape[1]), np.float32)
    for row, frames in zip(source, features, strict=True):
        row[: len(frames)] = frames
    return source, lengths


def confidence(hypothesis: Hypothesis) -> float:
    """Returns exp of the mean log probability of the tokens; see `Transcript`."""
    # Rounding can make the sum slightly positive; the confidence must not exceed 1.
    return math.exp(min(0.0, hypothesis.log_prob) / (len(hypothesis.tokens) + 1))


def _transcript(tokenizer: Tokenizer, hypothesis: Hypothesis, limit: int) -> Transcript:
    tokens = hypothesis.tokens
    # A byte-level vocabulary can produce tabs and line breaks, which would break tabular output.
    text = " ".join(tokenizer.decode(tokens).split())
    pieces = tokenizer.pieces([*tokens, EOS])
    complete = len(tokens) + 1 < limit
    return Transcript(text, confidence(hypothesis), pieces, hypothesis.weights, complete)


def label_posteriors(
    transcriber: Transcriber, features: Float[np.ndarray, "F num_mels"]
) -> Float[np.ndarray, "S V"]:
    """Returns the CTC probability of each label in each frame of the listener; PAD is the blank.

    Raises UserError for a model without CTC.
    """
    frames, (length,) = pad_features([features])
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
