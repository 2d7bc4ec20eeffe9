"""Decoding with a sequence-to-sequence model: one batch, or a whole set of sentences."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from research.decoding.ancestral import ancestral
from research.decoding.beams import beam_search, read
from research.decoding.search import Hypotheses, Search
from research.tasks.encoded_pairs import padded_rows
from research.tasks.task import BOS, EOS, PAD

SHORTEST = 8
"""The least number of source positions that a program is compiled for."""


@functools.partial(jax.jit, static_argnames=("model", "search", "with_weights"))
def decode(
    model: Any,
    params: Any,
    source: Int[Array, "B S"],
    source_length: Int[Array, " B"],
    search: Search,
    keys: Key[Array, " B"] | None = None,
    with_weights: bool = False,
) -> Hypotheses:
    """Returns the hypotheses of a batch of sources.

    What a sentence gets does not depend on the others, except for when the loop ends.

    Args:
      model: a sequence-to-sequence model (research/models/model.py).
      params: its parameters.
      source: tokens, EOS last, PAD after it.
      source_length: EOS included.
      search: what is searched for, or how it is drawn.
      keys: a random key to each sentence, needed by `search.sampling`.
      with_weights: also returns how each token read the source.

    Raises UserError for a search that the model cannot do, ValueError for sampling without keys.
    """
    limit = search.limit(model.config.length)
    if search.sampling is not None and keys is None:
        raise ValueError("sampling needs keys, one to each sentence.")
    if search.sampling is not None or search.beam == 1:
        reader = read(model, params, source, source_length, search.nbest, limit)
        found = ancestral(reader, search, limit, keys if search.sampling else None)
    else:
        reader = read(model, params, source, source_length, search.beam, limit)
        found = beam_search(reader, search, limit)
    if with_weights:
        found = found._replace(weights=_weights(model, params, source, source_length, found))
    return found


def _weights(
    model: Any, params: Any, source: jax.Array, source_length: jax.Array, found: Hypotheses
) -> Float[Array, "B N H T S"]:
    """Returns how each token read the source: cheaper read again than carried and reordered."""
    size, number, length = found.tokens.shape
    tokens = found.tokens.reshape(size * number, length)
    real = jnp.arange(length) < found.lengths.reshape(-1, 1)
    follows = jnp.concatenate([jnp.full_like(tokens[:, :1], BOS), tokens[:, :-1]], axis=1)
    batch = {
        "source": jnp.repeat(source, number, axis=0),
        "source_length": jnp.repeat(source_length, number, axis=0),
        "inputs": jnp.where(real, follows, PAD),
        "targets": jnp.where(real, tokens, -1),
    }
    weights = model.apply({"params": params}, batch, method="weights")
    weights = jnp.where(real[:, None, :, None], weights, 0.0)
    return weights.reshape(size, number, *weights.shape[1:])


class Hypothesis(NamedTuple):
    """One sequence that was found.

    Attributes:
      tokens: without EOS.
      score, log_prob: see `Search`; log_prob counts EOS. -inf when nothing was found.
      weights: (H, T, S) how each token (EOS last) read each source token (EOS last), or None.
    """

    tokens: list[int]
    score: float
    log_prob: float
    weights: np.ndarray | None


def decode_all(
    model: Any,
    params: Any,
    source: np.ndarray,
    source_length: np.ndarray,
    search: Search,
    batch_size: int = 64,
    *,
    seed: int = 0,
    with_weights: bool = False,
    lengths: Sequence[int] = (),
    progress: Callable[[int], None] | None = None,
) -> list[list[Hypothesis]]:
    """Returns the hypotheses of every sentence, at least one each, in the order of the sentences.

    Sentences of about the same length are decoded together. Batches come in few shapes, because
    each is compiled: `batch_size` rows (a power of two when there are fewer sentences), sources
    padded to one of `lengths`.

    Args:
      model, params, search, with_weights: see `decode`.
      source: (N, S) int32 tokens, EOS last, PAD after it.
      source_length: (N,) int32, EOS included.
      batch_size: sentences to a batch.
      seed: of sampling; what is drawn for sentence i depends on (seed, i) alone.
      lengths: ascending, the last one holds the longest source; none: powers of two from 8 on, and
        the model's length.
      progress: called with the number of sentences that are done.
    """
    source, source_length = np.asarray(source, np.int32), np.asarray(source_length, np.int32)
    number = len(source)
    size = min(batch_size, 1 << max(number - 1, 0).bit_length())
    lengths = lengths or static_lengths(int(model.config.length))
    order = np.argsort(source_length, kind="stable")
    found: list[list[Hypothesis]] = [[] for _ in range(number)]
    for start in range(0, number, size):
        rows = order[start : start + size]
        longest = int(source_length[rows].max())
        columns = next((n for n in lengths if n >= longest), longest)
        tokens, count = _filled(source[rows], source_length[rows], size, columns)
        keys = None
        if search.sampling is not None:
            sentence = np.resize(rows, size)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), sentence)
        batch = decode(model, params, tokens, count, search, keys, with_weights)
        for i, row in enumerate(_on_host(batch, source_length[rows])):
            found[rows[i]] = row
        if progress:
            progress(min(start + size, number))
    return found


def static_lengths(length: int) -> list[int]:
    """Returns the source lengths that programs are compiled for: powers of two up to `length`."""
    found = []
    while not found or 2 * found[-1] < length:
        found.append(2 * found[-1] if found else SHORTEST)
    return [n for n in found if n < length] + [length]


def padded(sentences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns source (N, S) and source_length (N,), int32, of token lists that end in EOS."""
    lengths = np.array([len(s) for s in sentences], np.int32)
    rows = [np.asarray(s, np.int32) for s in sentences]
    return padded_rows(rows, int(max(lengths, default=1))), lengths


def _filled(
    source: np.ndarray, source_length: np.ndarray, size: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `size` rows of `columns` tokens; those that are not sentences hold one EOS."""
    tokens = np.full((size, columns), PAD, np.int32)
    tokens[:, 0] = EOS
    width = min(columns, source.shape[1])
    tokens[: len(source), :width] = source[:, :width]
    lengths = np.ones(size, np.int32)
    lengths[: len(source)] = source_length
    return tokens, lengths


def _on_host(batch: Hypotheses, source_length: np.ndarray) -> list[list[Hypothesis]]:
    """Returns the hypotheses of the rows that are sentences, without padding."""
    batch = jax.tree.map(np.asarray, batch)
    found = []
    for row, positions in enumerate(source_length):
        here = []
        for n, length in enumerate(batch.lengths[row]):
            # The best one stays even when it is none: every sentence gets an answer.
            if not length and n:
                continue
            weights = None
            if batch.weights is not None:
                weights = batch.weights[row, n, :, :length, :positions]
            tokens = batch.tokens[row, n, : max(length - 1, 0)].tolist()
            score, log_prob = float(batch.scores[row, n]), float(batch.log_probs[row, n])
            here.append(Hypothesis(tokens, score, log_prob, weights))
        found.append(here)
    return found
