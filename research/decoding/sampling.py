"""Samples the next token from logits: temperature, top-k and nucleus sampling."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from research.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling tokens.

    Attributes:
      temperature: divides the logits; 0 takes the most probable token.
      top_k: keeps the k most probable tokens; 0 keeps all.
      top_p: keeps the smallest set of most probable tokens whose total probability reaches this
        value (nucleus sampling, Holtzman 2020, section 3.1); 1 keeps all. Applied after top_k.

    Raises UserError for values out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(f"--temperature={self.temperature} must be at least 0 (0: greedy).")
        if self.top_k < 0:
            raise UserError(f"--top_k={self.top_k} must be at least 0 (0: all tokens).")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top_p={self.top_p} must be in (0, 1].")


def restrict(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """Returns logits / temperature with -inf for excluded tokens; temperature must be above 0."""
    logits = logits / sampling.temperature
    descending = jnp.sort(logits, axis=-1)[:, ::-1]
    if 0 < sampling.top_k < logits.shape[-1]:
        # Tokens that tie with the k-th most probable one are all kept.
        least = descending[:, sampling.top_k - 1, None]
        logits = jnp.where(logits < least, -jnp.inf, logits)
        descending = jnp.where(descending < least, -jnp.inf, descending)
    if sampling.top_p < 1:
        p = jax.nn.softmax(descending, axis=-1)
        # Keep a token while the more probable ones sum to less than top_p: always the first.
        stays = jnp.cumsum(p, axis=-1) - p < sampling.top_p
        least = jnp.min(jnp.where(stays, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def draw(key: Key[Array, ""], logits: Float[Array, "B V"], sampling: Sampling) -> Int[Array, " B"]:
    """Samples one token per row; takes the most probable one if the temperature is 0."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return jax.random.categorical(key, restrict(logits, sampling))
