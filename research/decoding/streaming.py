"""Texts without end through a decoder with a rolling cache, and what each token costs there."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.errors import Unsupported
from research.attention.mixers.streaming import stream
from research.attention.parts.positions import MODEL_POSITIONS
from research.errors import UserError
from research.models.transformer import Decoder, init_state


class Scores(NamedTuple):
    """How probable a token was under the model, before any temperature; arrays of one shape.

    Attributes:
      log_prob: of the token, in nats.
      entropy: of the distribution that it is from, in nats.
      rank: how many tokens were more probable; 0: none.
    """

    log_prob: Array
    entropy: Array
    rank: Array


def score_tokens(logits: Float[Array, "*b V"], tokens: Int[Array, "*b"]) -> Scores:
    """Returns the scores of tokens under the logits of their places."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)
    # What cannot be, at -inf, adds nothing.
    entropy = -jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0).sum(-1)
    return Scores(own[..., 0], entropy, (log_p > own).sum(-1))


def streaming(model: Decoder, window: int, sinks: int) -> Decoder:
    """Returns a decoder of the same parameters for texts of any length; see `Streaming`.

    Args:
      model: the decoder.
      window: tokens that a token sees, itself among them.
      sinks: how many of them are the first of the text.

    Raises UserError for sizes that do not fit, and a model that cannot.
    """
    if window < 1:
        raise UserError(f"--window={window} must be at least 1.")
    if not 0 <= sinks < window:
        raise UserError(f"--sinks={sinks} must be at least 0 and less than --window={window}.")
    position = model.config.position
    if position in MODEL_POSITIONS and position != "none":
        raise UserError(
            f"model.position={position!r} is added to the input at its place in the text, which a "
            "rolling cache cannot change; rope, alibi, t5 and none can."
        )
    try:
        mixers = tuple(stream(mixer, window, sinks) for mixer in model.config.mixers)
    except Unsupported as error:
        raise UserError(f"a text cannot stream through this model: {error}.") from None
    return Decoder(dataclasses.replace(model.config, mixers=mixers))


def stream_scores(model: Decoder, params: Any, tokens: Int[Array, "B N"]) -> Scores:
    """Returns how probable each token but the first is, given those before that the model sees.

    Args:
      model: a decoder, made by `streaming` for texts longer than it has room for.
      params: its parameters.
      tokens: B texts.

    Returns:
      Scores (B, N - 1).
    """
    state = init_state(model.config, tokens.shape[0], model.config.length)
    return extend_scores(model, params, state, tokens)[1]


@functools.partial(jax.jit, static_argnums=0)
def extend_scores(
    model: Decoder, params: Any, state: Any, tokens: Int[Array, "B N"]
) -> tuple[Any, Scores]:
    """Returns the state after all tokens but the last, and the scores of all but the first.

    Arguments and scores as of `stream_scores`, with the state that the texts go on from; the last
    token of one part of a text is the first of the next.
    """

    def step(state: Any, pair: tuple[Array, Array]) -> tuple[Any, Scores]:
        token, following = pair
        logits, state = model.apply({"params": params}, token[:, None], state)
        return state, score_tokens(logits[:, 0], following)

    state, scores = jax.lax.scan(step, state, (tokens[:, :-1].T, tokens[:, 1:].T))
    return state, jax.tree.map(jnp.transpose, scores)
