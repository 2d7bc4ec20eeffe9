"""Log-probability of continuations of many texts, and whether greedy decoding would write them."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from research.decoding.streaming import stream_scores
from research.errors import UserError
from research.models.decoder import Decoder

TOKENS_PER_DISPATCH = 8_192
"""Tokens that are read side by side."""
LOGITS_AT_ONCE = 1_024
"""Tokens whose logits exist at once."""

Tokens = Sequence[int] | Int[np.ndarray, " N"]
Progress = Callable[[int], None]
"""Called with the number of continuations that are done."""


class ContinuationScores(NamedTuple):
    """Scores of N continuations.

    Attributes:
      log_prob: sum over a continuation's tokens of log p(token | all before), in nats.
      greedy: whether each of its tokens is the most probable one, so that greedy decoding of the
        context gives the continuation.
    """

    log_prob: Float[np.ndarray, " N"]
    greedy: Bool[np.ndarray, " N"]


def score_continuations(
    model: Decoder,
    params: Any,
    pairs: Sequence[tuple[Tokens, Tokens]],
    streams: bool = False,
    progress: Progress = lambda done: None,
) -> ContinuationScores:
    """Returns the scores of continuations, each after a context of its own.

    Texts of about the same length are read side by side, with padding after them that causality
    keeps out of the scores. What is too long for the model loses the beginning of its context.

    Args:
      model: the decoder.
      params: its parameters.
      pairs: (context, continuation) of each, tokens; the context has at least one.
      streams: whether the model was made by `research.decoding.streaming.streaming`, for which no
        text is too long.
      progress: told how far it is.

    Raises UserError for a continuation that the model cannot read at once.
    """
    longest = 0 if streams else model.config.length
    texts = [_fitted(context, continuation, longest) for context, continuation in pairs]
    scores = ContinuationScores(np.zeros(len(pairs)), np.ones(len(pairs), bool))

    def width_of(index: int) -> int:
        return padded_length(len(texts[index]) - 1, longest)

    done = 0
    # The longest first: what does not fit into memory fails at once.
    order = sorted(range(len(pairs)), key=width_of, reverse=True)
    for width, of_width in itertools.groupby(order, width_of):
        group = list(of_width)
        together = min(max(1, TOKENS_PER_DISPATCH // width), 1 << (len(group) - 1).bit_length())
        for first in range(0, len(group), together):
            part = group[first : first + together]
            tokens = np.zeros((together, width + 1), np.int32)
            counted = np.zeros((together, width), bool)
            for row, index in enumerate(part):
                stop = len(texts[index])
                tokens[row, :stop] = texts[index]
                counted[row, stop - 1 - len(pairs[index][1]) : stop - 1] = True
            log_prob, best = _token_scores(model, streams, params, jnp.asarray(tokens))
            total = np.where(counted, np.asarray(log_prob, np.float64), 0).sum(1)
            scores.log_prob[part] = total[: len(part)]
            scores.greedy[part] = (np.asarray(best) | ~counted).all(1)[: len(part)]
            done += len(part)
            progress(done)
    return scores


def padded_length(tokens: int, longest: int = 0) -> int:
    """Returns the length that a text is padded to: one of four between powers of two.

    So that few programs are compiled, and at most a fifth of what is read is padding.

    Args:
      tokens: number of tokens of the text.
      longest: most tokens that the model reads; 0: any number.
    """
    step = max(8, 1 << max(0, (tokens - 1).bit_length() - 3))
    padded = -(-tokens // step) * step
    return min(padded, longest) if longest else padded


def _fitted(context: Tokens, continuation: Tokens, longest: int) -> Int[np.ndarray, " N"]:
    """Returns context and continuation, without the beginning that the model has no room for."""
    if not len(context):
        raise UserError("a continuation needs a context of at least one token.")
    if longest and len(continuation) > longest:
        raise UserError(
            f"a continuation has {len(continuation):,} tokens; the model reads {longest:,} at once."
        )
    both = np.concatenate([np.asarray(context, np.int32), np.asarray(continuation, np.int32)])
    return both[-(longest + 1) :] if longest else both


@functools.partial(jax.jit, static_argnums=(0, 1))
def _token_scores(
    model: Decoder, streams: bool, params: Any, tokens: Int[Array, "B N"]
) -> tuple[Float[Array, "B N-1"], Bool[Array, "B N-1"]]:
    """Returns log p of every token but the first, and whether it is the most probable."""
    if streams:
        scores = stream_scores(model, params, tokens)
        return scores.log_prob, scores.rank == 0
    chunk = max(1, LOGITS_AT_ONCE // len(tokens))
    chunked = Decoder(dataclasses.replace(model.config, loss_chunk=chunk))
    targets = tokens[:, 1:]
    found: Any = chunked.apply({"params": params}, tokens[:, :-1], targets=targets)
    return -found[0].loss, found[0].predicted == targets
