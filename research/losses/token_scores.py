"""Scores of targets under logits that never exist all at once, forward or backward.

Logits of a real vocabulary are the largest array of a training step: 8 sequences of 1,024 tokens
and 50,304 words are 1.6 GB in float32, and again for their gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.tasks.task import TokenScores


def token_scores(
    logits_of: Callable[[Float[Array, "B t M"]], Float[Array, "B t V"]],
    x: Float[Array, "B T M"],
    targets: Int[Array, "B T"],
    chunk: int,
) -> TokenScores:
    """Returns the scores of targets, computed for `chunk` positions of all sequences at a time.

    The backward pass computes the logits of a chunk again (Chen et al. 2016, "Training deep nets
    with sublinear memory cost"), which costs a third of the products with the output matrix once
    more.

    Args:
      logits_of: maps final hidden vectors of some positions to their logits.
      x: the final hidden vectors.
      targets: negative ones have a loss of no meaning.
      chunk: number of positions; the last chunk may be padded.
    """
    batch, length = targets.shape
    chunk = min(chunk, length)
    number = -(-length // chunk)

    # Positions, not sequences, are what is cut, so that sequences stay on their devices.
    def cut(a: jax.Array) -> jax.Array:
        padding = ((0, 0), (0, number * chunk - length)) + ((0, 0),) * (a.ndim - 2)
        return jnp.moveaxis(jnp.pad(a, padding).reshape(batch, number, chunk, *a.shape[2:]), 1, 0)

    def one(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, TokenScores]:
        logits = logits_of(part[0]).astype(jnp.float32)
        index = jnp.maximum(part[1], 0)[..., None]
        total = jax.nn.logsumexp(logits, -1)
        loss = total - jnp.take_along_axis(logits, index, -1)[..., 0]
        return None, TokenScores(loss, logits.argmax(-1), total, logits.mean(-1))

    # The loop keeps XLA from merging the recomputation with the forward pass.
    scores = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), None, (cut(x), cut(targets)))[1]
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(batch, -1)[:, :length], scores)
