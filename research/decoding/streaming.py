"""Streams texts of any length through a decoder with a rolling cache, and scores their tokens."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.errors import Unsupported
from research.attention.mixers.streaming import make_streaming
from research.attention.parts.positions import MODEL_POSITIONS
from research.errors import UserError
from research.models.decoder import Decoder
from research.models.transformer import init_state


class Scores(NamedTuple):
    """Scores of tokens under the model, before any temperature; arrays of the same shape.

    Attributes:
      log_prob: log probability of the token, in nats.
      entropy: entropy of the predicted distribution, in nats.
      rank: number of tokens that were more probable; 0 for the most probable one.
    """

    log_prob: Array
    entropy: Array
    rank: Array


def score_tokens(logits: Float[Array, "*b V"], tokens: Int[Array, "*b"]) -> Scores:
    """Returns the scores of tokens under the logits that predict them."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)
    # Tokens at -inf contribute 0 to the entropy; without the mask 0 * -inf would give NaN.
    entropy = -jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * log_p, 0.0).sum(-1)
    return Scores(own[..., 0], entropy, (log_p > own).sum(-1))


def streaming(model: Decoder, window: int, sinks: int) -> Decoder:
    """Returns a decoder with the same parameters that takes texts of any length; see `Streaming`.

    Args:
      model: the decoder.
      window: number of tokens that each token attends to, itself included.
      sinks: how many of these are the first tokens of the text.

    Raises UserError for sizes out of range, and for a model that cannot stream.
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
        mixers = tuple(make_streaming(mixer, window, sinks) for mixer in model.config.mixers)
    except Unsupported as error:
        raise UserError(f"a text cannot stream through this model: {error}.") from None
    return Decoder(dataclasses.replace(model.config, mixers=mixers))


def stream_scores(model: Decoder, params: Any, tokens: Int[Array, "B N"]) -> Scores:
    """Returns the scores of every token but the first, given the tokens before in the cache.

    Args:
      model: a decoder, made by `streaming` for texts longer than the model's maximum length.
      params: its parameters.
      tokens: tokens of B texts.

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

    Arguments and scores are as in `stream_scores`; `state` is the decoding state to continue from.
    To score a text in parts, start each part with the last token of the part before.
    """

    def step(state: Any, pair: tuple[Array, Array]) -> tuple[Any, Scores]:
        token, following = pair
        logits, state = model.apply({"params": params}, token[:, None], state)
        return state, score_tokens(logits[:, 0], following)

    state, scores = jax.lax.scan(step, state, (tokens[:, :-1].T, tokens[:, 1:].T))
    return state, jax.tree.map(jnp.transpose, scores)
