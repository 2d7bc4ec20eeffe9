"""Continuing token sequences with a decoder and its state (KV cache or recurrent state)."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.decoding.sampling import Sampling, draw
from research.models.transformer import Decoder, init_state

CHUNK = 16
"""Tokens per dispatch: few enough to be seen as they come."""


def continuation(
    model: Decoder, params: Any, prompt: np.ndarray, tokens: int, sampling: Sampling, key: jax.Array
) -> Iterator[np.ndarray]:
    """Yields (B, n) int32 continuations, n <= CHUNK, until `tokens` have come.

    The model has room for `length` tokens. When its state is full, it starts again from the last
    half of them, so that no token is at a position that training never saw.

    Args:
      model: the decoder.
      params: its parameters.
      prompt: (B, T) int32, T >= 1; more than fits is cut at the front.
      tokens: how many to generate per row.
      sampling: how they are drawn.
      key: random key.
    """
    length = model.config.length
    chunk = min(CHUNK, max(length // 2, 1))
    text = np.asarray(prompt, np.int32)
    room, state, last = 0, None, None
    for number, done in enumerate(range(0, tokens, chunk)):
        if room < chunk:
            # All but the last token are read here; the last one is the first input of the chunk.
            kept = text[:, -max(length - chunk if state is None else length // 2, 1) :]
            state = init_state(model.config, len(kept), length)
            if kept.shape[1] > 1:
                state = read(model, params, state, jnp.asarray(kept[:, :-1]))
            last = jnp.asarray(kept[:, -1])
            room = length - (kept.shape[1] - 1)
        new_key = jax.random.fold_in(key, number)
        state, last, new = write(model, sampling, chunk, params, state, last, new_key)
        room -= chunk
        new = np.asarray(new)[:, : tokens - done]
        text = np.concatenate([text, new], axis=1)[:, -length:]
        yield new


@functools.partial(jax.jit, static_argnums=0)
def read(model: Decoder, params: Any, state: Any, tokens: jax.Array) -> Any:
    """Returns the state after (B, T) tokens."""
    return model.apply({"params": params}, tokens, state)[1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def write(
    model: Decoder,
    sampling: Sampling,
    number: int,
    params: Any,
    state: Any,
    last: jax.Array,
    key: jax.Array,
) -> tuple[Any, jax.Array, jax.Array]:
    """Returns the state, the last token (B,) and the `number` tokens (B, number) after `last`."""

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        state, token = carry
        logits, state = model.apply({"params": params}, token[:, None], state)
        token = draw(key, logits[:, -1], sampling).astype(jnp.int32)
        return (state, token), token

    (state, last), tokens = jax.lax.scan(step, (state, last), jax.random.split(key, number))
    return state, last, tokens.T
