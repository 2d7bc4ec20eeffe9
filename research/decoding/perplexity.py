"""Perplexity of a text longer than a model reads at once, by windows that overlap."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from research.decoding.continuation_scores import score_continuations
from research.errors import UserError
from research.models.decoder import Decoder

Progress = Callable[[int], None]
"""Called with the number of tokens that are done."""


class TextLoss(NamedTuple):
    """Loss of a text.

    Attributes:
      tokens: number of tokens that were predicted: all but the first.
      nats: mean loss of a token, in nats.
      perplexity: exp(nats).
    """

    tokens: int
    nats: float
    perplexity: float


class Window(NamedTuple):
    """A window of a text: tokens start .. stop - 1, of which the last `counted` are predicted."""

    start: int
    stop: int
    counted: int


def windows(tokens: int, length: int, stride: int) -> Iterator[Window]:
    """Yields windows that together predict every token but the first once.

    Each begins `stride` tokens after the one before, and predicts those that the one before did not
    reach: so a token that is not of the first window has at least length - stride tokens before
    it. Without overlap (stride = length), the first token of each window has no context and is not
    predicted.

    Source: "Perplexity of fixed-length models" in the documentation of transformers.

    Args:
      tokens: number of tokens of the text.
      length: most tokens of a window.
      stride: from the start of a window to that of the next, at most `length`.
    """
    reached = 0
    for start in range(0, tokens, stride):
        stop = min(start + length, tokens)
        # The first token of a window has nothing before it.
        yield Window(start, stop, min(stop - reached, stop - start - 1))
        reached = stop
        if stop == tokens:
            return


def text_loss(
    model: Decoder,
    params: Any,
    tokens: Int[np.ndarray, " N"],
    length: int,
    stride: int,
    progress: Progress = lambda done: None,
) -> TextLoss:
    """Returns the loss of a text, read in windows; see `windows`.

    Args:
      model: the decoder.
      params: its parameters.
      tokens: the text.
      length: most tokens of a window, at most one more than the model's longest sequence.
      stride: from the start of a window to that of the next.
      progress: told how far it is.

    Raises UserError for sizes out of range, or a text of less than two tokens.
    """
    if not 2 <= length <= model.config.length + 1:
        raise UserError(
            f"--window={length} must be from 2 to {model.config.length + 1}: the model reads "
            f"{model.config.length} tokens at once, and predicts one more."
        )
    if not 1 <= stride <= length:
        raise UserError(f"--stride={stride} must be from 1 to the window of {length} tokens.")
    if len(tokens) < 2:
        raise UserError(f"the text has {len(tokens)} tokens; two are needed to predict one.")
    every = [one for one in windows(len(tokens), length, stride) if one.counted]
    pairs = []
    for one in every:
        begin = one.stop - one.counted
        pairs.append((tokens[one.start : begin], tokens[begin : one.stop]))
    found = score_continuations(
        model, params, pairs, progress=lambda done: progress(done * len(tokens) // len(every))
    )
    number = sum(one.counted for one in every)
    nats = float(-found.log_prob.sum() / number)
    return TextLoss(number, nats, math.exp(nats))
