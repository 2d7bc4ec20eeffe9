"""Loss by position when a decoder streams long text through a bounded cache.

The comparison of Xiao et al. 2023, section 4.1: a rolling cache with and without attention sinks,
a sliding window with recomputation (the baseline that a cache has to match), and dense attention up
to the model's maximum length.

A position is the number of tokens before the predicted one, starting from 1.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.decoding.streaming import extend_scores, score_tokens, streaming
from research.errors import UserError
from research.models.decoder import Decoder
from research.models.transformer import init_state
from research.tasks.text.language_modeling import spread_pieces

CHUNK = 512
"""Tokens of a stream per dispatch: few enough for progress to be reported often."""
TOKENS_PER_DISPATCH = 16_384
"""Tokens per dispatch when windows are recomputed."""
PER_DOUBLING = 4
"""Bins of positions from one power of two to the next."""

Progress = Callable[[int], None]
"""Called with the number of tokens of each text that are done."""


class Curve(NamedTuple):
    """Loss of one way of reading a text, by position.

    Attributes:
      name: label of the curve, such as "4 sinks" or "dense".
      sinks: number of first tokens that the rolling cache keeps; -1 without a rolling cache.
      losses: (N,) float64 nats per token, mean over texts, at positions 1 to N.
    """

    name: str
    sinks: int
    losses: np.ndarray


class Summary(NamedTuple):
    """Summary statistics of a curve.

    Attributes:
      first, last: range of positions to average over, inclusive.
      loss: nats per token, mean over this range.
      perplexity: exp(loss).
      ratio: perplexity relative to the lowest of the curves that cover the whole text; NaN for a
        curve that does not.
    """

    first: int
    last: int
    loss: float
    perplexity: float
    ratio: float


def text_pieces(text: Any, tokens: int, max_pieces: int) -> Int[np.ndarray, "B N+1"]:
    """Returns evenly spaced pieces of a text, each of one start token and N tokens to predict.

    Args:
      text: M tokens, an array or anything with a length and slices.
      tokens: N.
      max_pieces: maximum number of pieces; a short text gives fewer, so that none overlap.

    Raises UserError for a text shorter than one piece.
    """
    number = min(max_pieces, len(text) // (tokens + 1))
    if not number:
        raise UserError(
            f"--tokens={tokens:,}: the text has {len(text):,} tokens; give at most "
            f"{max(len(text) - 1, 0):,}, or a longer text."
        )
    return spread_pieces(text, tokens, number)


def stream_models(
    model: Decoder, window: int, sinks: Sequence[int]
) -> list[tuple[str, int, Decoder]]:
    """Returns (name, sinks, decoder) for each number of sinks; see `streaming`.

    A model without a cache, whose layers have a state of fixed size, gives one decoder with
    sinks = -1.

    Raises UserError for sizes out of range, and for a model that cannot stream.
    """
    able = [(number, streaming(model, window, number)) for number in sinks]
    if all(one.config == model.config for _, one in able):
        return [("recurrent state", -1, model)]
    return [(f"{n} sink" + "s" * (n != 1), n, one) for n, one in able]


def streaming_losses(
    model: Decoder, params: Any, tokens: Int[np.ndarray, "B N+1"], progress: Progress
) -> Float[np.ndarray, " N"]:
    """Returns the losses of a decoder made by `streaming`, which reads one token at a time."""
    rows, number = tokens.shape[0], tokens.shape[1] - 1
    chunk = min(CHUNK, number)
    # Pad to whole chunks, so that one program is compiled; causality keeps padding out of losses.
    padded = np.pad(tokens, ((0, 0), (0, -number % chunk)))
    state, losses = init_state(model.config, rows, model.config.length), []
    for start in range(0, number, chunk):
        part = jnp.asarray(padded[:, start : start + chunk + 1])
        state, scores = extend_scores(model, params, state, part)
        losses.append(_mean_loss(scores.log_prob))
        progress(min(start + chunk, number))
    return np.concatenate(losses)[:number]


def full_attention_losses(
    model: Decoder, params: Any, tokens: Int[np.ndarray, "B N+1"]
) -> Float[np.ndarray, " N"]:
    """Returns the losses of a decoder that attends to all tokens; needs N <= its maximum length."""
    return _mean_loss(_whole(model, params, jnp.asarray(tokens)))


def recomputed_window_losses(
    model: Decoder, params: Any, tokens: Int[np.ndarray, "B N+1"], window: int, progress: Progress
) -> Float[np.ndarray, " N"]:
    """Returns the losses of a decoder that recomputes the latest `window` tokens for each token.

    Sliding window with recomputation, Xiao et al. 2023, figure 1 (c); `window` must be at most the
    model's maximum length.
    """
    number = tokens.shape[1] - 1
    losses = [full_attention_losses(model, params, tokens[:, : window + 1])]
    ending = np.lib.stride_tricks.sliding_window_view(tokens, window + 1, axis=1)[:, 1:]
    together = max(1, TOKENS_PER_DISPATCH // (window * len(tokens)))
    for start in range(0, ending.shape[1], together):
        part = ending[:, start : start + together]
        # Pad to whole parts, so that one program is compiled.
        padded = np.pad(part, ((0, 0), (0, together - part.shape[1]), (0, 0)))
        found = _last(model, params, jnp.asarray(padded.reshape(-1, window + 1)))
        losses.append(_mean_loss(found.reshape(len(tokens), -1))[: part.shape[1]])
        progress(min(window + start + together, number))
    return np.concatenate(losses)


@functools.partial(jax.jit, static_argnums=0)
def _whole(model: Decoder, params: Any, tokens: Int[Array, "B N"]) -> Float[Array, "B N-1"]:
    logits = model.apply({"params": params}, tokens[:, :-1])[0]
    return score_tokens(logits, tokens[:, 1:]).log_prob


@functools.partial(jax.jit, static_argnums=0)
def _last(model: Decoder, params: Any, tokens: Int[Array, "R N"]) -> Float[Array, " R"]:
    logits = model.apply({"params": params}, tokens[:, :-1])[0]
    return score_tokens(logits[:, -1], tokens[:, -1]).log_prob


def _mean_loss(log_prob: Float[Array, "B N"]) -> np.ndarray:
    return -np.asarray(log_prob, np.float64).mean(0)


def summaries(curves: Sequence[Curve], window: int) -> list[Summary]:
    """Returns the summary of each curve.

    Curves over the whole text are averaged from position window + 1 on, where tokens have left the
    window; shorter curves over all of their positions.

    Args:
      curves: curves of the same text.
      window: number of tokens that each token attends to.
    """
    longest = max(len(curve.losses) for curve in curves)
    whole = [len(curve.losses) == longest for curve in curves]
    firsts = [window + 1 if w else 1 for w in whole]
    losses = [float(c.losses[f - 1 :].mean()) for c, f in zip(curves, firsts, strict=True)]
    best = min(loss for loss, w in zip(losses, whole, strict=True) if w)
    return [
        Summary(
            first, len(c.losses), loss, math.exp(loss), math.exp(loss - best) if w else math.nan
        )
        for c, first, loss, w in zip(curves, firsts, losses, whole, strict=True)
    ]


def position_bins(last: int) -> list[tuple[int, int]]:
    """Returns inclusive ranges of positions from 1 to `last`, `PER_DOUBLING` per doubling."""
    edges = {1, last + 1}
    for i in range(PER_DOUBLING * (last.bit_length() + 1)):
        edges.add(min(round(2 ** (i / PER_DOUBLING)), last + 1))
    ordered = sorted(edges)
    return [(low, high - 1) for low, high in zip(ordered, ordered[1:], strict=False)]


def bin_means(losses: Float[np.ndarray, " N"], bins: Sequence[tuple[int, int]]) -> list[float]:
    """Returns the mean loss of each bin that the curve covers completely."""
    return [float(losses[low - 1 : high].mean()) for low, high in bins if high <= len(losses)]
