"""Continues token sequences with a decoder and its state (KV cache or recurrent state)."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.decoding.sampling import Sampling, draw
from research.decoding.streaming import Scores, score_tokens
from research.models.decoder import Decoder
from research.models.transformer import init_state

CHUNK = 16
"""Tokens per dispatch: few enough for output to appear as it is generated."""


class Generated(NamedTuple):
    """Generated tokens (B, n) int32 and their scores; host arrays once yielded."""

    tokens: jax.Array | np.ndarray
    scores: Scores


def continuation(
    model: Decoder,
    params: Any,
    prompt: np.ndarray,
    tokens: int,
    sampling: Sampling,
    key: jax.Array,
    streams: bool = False,
) -> Iterator[Generated]:
    """Yields continuations in chunks of n <= CHUNK tokens until `tokens` have been generated.

    The model's state holds `length` tokens. When it is full, decoding restarts from the last half
    of them, so that no token is at a position that training never saw. A streaming model, which has
    a rolling cache, reads the whole prompt and never restarts.

    Args:
      model: the decoder.
      params: its parameters.
      prompt: (B, T) int32, T >= 1; cut at the front if it does not fit.
      tokens: number of tokens to generate per row.
      sampling: settings of sampling.
      key: random key.
      streams: whether the model was made by `research.decoding.streaming.streaming`.
    """
    length = model.config.length
    chunk = min(CHUNK, max(length // 2, 1))
    text = np.asarray(prompt, np.int32)
    room, state, last = 0, None, None
    for number, done in enumerate(range(0, tokens, chunk)):
        if room < chunk:
            # Prefill with all tokens but the last, which is the first input of the next chunk.
            fits = max(length - chunk if state is None else length // 2, 1)
            kept = text if streams else text[:, -fits:]
            state = init_state(model.config, len(kept), length)
            if kept.shape[1] > 1:
                state = prefill(model, params, state, jnp.asarray(kept[:, :-1]))
            last = jnp.asarray(kept[:, -1])
            room = math.inf if streams else length - (kept.shape[1] - 1)
        new_key = jax.random.fold_in(key, number)
        state, last, new = generate_chunk(model, sampling, chunk, params, state, last, new_key)
        room -= chunk
        new = jax.tree.map(lambda a, left=tokens - done: np.asarray(a)[:, :left], new)
        text = np.concatenate([text, new.tokens], axis=1)[:, -length:]
        yield new


@functools.partial(jax.jit, static_argnums=0)
def prefill(model: Decoder, params: Any, state: Any, tokens: jax.Array) -> Any:
    """Returns the decoding state after reading (B, T) tokens."""
    return model.apply({"params": params}, tokens, state)[1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def generate_chunk(
    model: Decoder,
    sampling: Sampling,
    number: int,
    params: Any,
    state: Any,
    last: jax.Array,
    key: jax.Array,
) -> tuple[Any, jax.Array, Generated]:
    """Generates `number` tokens after `last`; returns the state, the last token (B,) and all."""

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, Any]:
        state, token = carry
        logits, state = model.apply({"params": params}, token[:, None], state)
        token = draw(key, logits[:, -1], sampling).astype(jnp.int32)
        return (state, token), Generated(token, score_tokens(logits[:, -1], token))

    (state, last), written = jax.lax.scan(step, (state, last), jax.random.split(key, number))
    return state, last, jax.tree.map(jnp.transpose, written)
