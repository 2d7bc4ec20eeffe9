"""Perplexity of a text longer than a model reads at once, by windows that overlap."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.decoding.streaming import score_tokens
from research.errors import UserError
from research.models.decoder import Decoder

TOKENS_PER_DISPATCH = 8_192
"""Tokens of the windows that are read side by side."""

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
    every = list(windows(len(tokens), length, stride))
    together = max(1, TOKENS_PER_DISPATCH // length)
    total, number = 0.0, 0
    for first in range(0, len(every), together):
        some = every[first : first + together]
        # Whole rows, so that one program is compiled; what fills them up is not counted.
        rows = np.zeros((together, length), np.int32)
        counted = np.zeros((together, length - 1), bool)
        for row, one in enumerate(some):
            inside = one.stop - one.start
            rows[row, :inside] = tokens[one.start : one.stop]
            counted[row, inside - 1 - one.counted : inside - 1] = True
        losses = np.asarray(_losses(model, params, jnp.asarray(rows)), np.float64)
        total, number = total + losses[counted].sum(), number + int(counted.sum())
        progress(some[-1].stop)
    nats = float(total / number)
    return TextLoss(number, nats, math.exp(nats))


@functools.partial(jax.jit, static_argnums=0)
def _losses(model: Decoder, params: Any, tokens: Int[Array, "B N"]) -> Float[Array, "B N-1"]:
    logits = model.apply({"params": params}, tokens[:, :-1])[0]
    return -score_tokens(logits, tokens[:, 1:]).log_prob
