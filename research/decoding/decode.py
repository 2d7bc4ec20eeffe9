"""Decodes one batch, or a whole set of sources, with a sequence-to-sequence model.

A source is a sentence of tokens or the features of a recording.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from research.decoding.ancestral import ancestral
from research.decoding.beam_search import beam_search, encode_sources
from research.decoding.search import Hypotheses, Search, check_model, ctc_share
from research.losses.ctc import Labellings, greedy, prefix_beam
from research.tasks.special_tokens import SpecialTokens
from research.tasks.task import BOS, EOS, PAD
from research.tasks.text.encoded_pairs import padded_rows

SHORTEST = 8
"""Smallest padded source length to compile for."""


@functools.partial(jax.jit, static_argnames=("model", "search", "with_weights"))
def decode(
    model: Any,
    params: Any,
    source: Array,
    source_length: Int[Array, " B"],
    search: Search,
    keys: Key[Array, " B"] | None = None,
    with_weights: bool = False,
) -> Hypotheses:
    """Returns the hypotheses of a batch of sources.

    The result for a sentence does not depend on the rest of the batch; only the number of loop
    iterations does.

    Args:
      model: a sequence-to-sequence model (research/models/model.py).
      params: its parameters.
      source: (B, S) tokens, EOS last, PAD after it, or (B, S, F) features, zeros after the last.
      source_length: length of each source without padding, EOS included.
      search: settings of the search or of sampling.
      keys: one random key per sentence, required for `search.sampling`.
      with_weights: whether to return the attention of each token over the source too.

    Raises UserError for a search that the model does not support, ValueError for sampling without
    keys.
    """
    limit, weight = search.limit(model.config.length), search.ctc_weight
    check_model(search, model.config)
    if ctc_share(model.config) == 1:
        # A CTC-only model has no attention; its weights have H = 0 heads.
        found = _labelled(model, params, source, source_length, search, limit)
    elif search.sampling is not None and keys is None:
        raise ValueError("sampling needs keys, one to each sentence.")
    elif search.sampling is not None or search.beam == 1:
        decoder = encode_sources(model, params, source, source_length, search.nbest, limit, weight)
        found = ancestral(decoder, search, limit, keys if search.sampling else None)
    else:
        decoder = encode_sources(model, params, source, source_length, search.beam, limit, weight)
        found = beam_search(decoder, search, limit)
    if with_weights:
        found = found._replace(
            weights=_weights(model, params, source, source_length, found, search.special)
        )
    return found


def _labelled(
    model: Any,
    params: Any,
    source: jax.Array,
    source_length: jax.Array,
    search: Search,
    limit: int,
) -> Hypotheses:
    """Returns the labellings of a CTC-only model, with EOS appended and cut to `limit` tokens.

    Log probabilities are those of the labelling, summed over its paths; for a narrow beam they are
    lower bounds, see `prefix_beam`.
    """
    variables = {"params": params}
    memory = model.apply(variables, source, source_length, method="encode")
    frames, lengths = model.apply(variables, memory, method="ctc")
    # BOS and EOS are not labels; a wide beam would find their small probabilities.
    number = jnp.arange(frames.shape[-1])
    labels = jnp.where((number == BOS) | (number == EOS), -jnp.inf, frames)
    if search.beam == 1:
        best = jax.tree.map(lambda leaf: leaf[:, None], greedy(labels, lengths))
    else:
        best = jax.tree.map(
            lambda leaf: leaf[:, : search.nbest], prefix_beam(labels, lengths, search.beam)
        )
    tokens, count = _ended(best, limit)
    log_probs = best.log_probs
    if search.beam == 1:
        # Greedy search only yields the probability of the best path, so score the labelling anew.
        missing = jnp.arange(frames.shape[1]) >= lengths[:, None]
        beyond = jnp.arange(limit) >= count - 1
        found = optax.ctc_loss(frames, missing, tokens[:, 0], beyond, blank_id=PAD)
        log_probs = -found[:, None]
    return Hypotheses(tokens, count, log_probs, log_probs, lengths)


def _ended(labellings: Labellings, limit: int) -> tuple[Int[Array, "B N T"], Int[Array, "B N"]]:
    """Returns the labels with EOS appended, at most `limit` tokens, and the number of tokens."""
    labels, at = labellings.tokens, jnp.arange(limit)
    number = jnp.minimum(labellings.lengths, limit - 1)[..., None]
    room = max(0, limit - labels.shape[-1])
    labels = jnp.pad(labels, ((0, 0), (0, 0), (0, room)))[..., :limit]
    tokens = jnp.where(at < number, labels, jnp.where(at == number, EOS, PAD))
    there = jnp.isfinite(labellings.log_probs)
    return jnp.where(there[..., None], tokens, PAD), jnp.where(there, number[..., 0] + 1, 0)


def _weights(
    model: Any,
    params: Any,
    source: jax.Array,
    source_length: jax.Array,
    found: Hypotheses,
    special: SpecialTokens,
) -> Float[Array, "B N H T S"]:
    """Returns the attention of each token over the source, from one teacher-forced pass.

    That is cheaper than carrying the weights through the search and reordering them at each step.
    """
    size, number, length = found.tokens.shape
    tokens = found.tokens.reshape(size * number, length)
    real = jnp.arange(length) < found.lengths.reshape(-1, 1)
    follows = jnp.concatenate([jnp.full_like(tokens[:, :1], special.start), tokens[:, :-1]], axis=1)
    batch = {
        "source": jnp.repeat(source, number, axis=0),
        "source_length": jnp.repeat(source_length, number, axis=0),
        "inputs": jnp.where(real, follows, special.pad),
        "targets": jnp.where(real, tokens, -1),
    }
    weights = model.apply({"params": params}, batch, method="weights")
    weights = jnp.where(real[:, None, :, None], weights, 0.0)
    return weights.reshape(size, number, *weights.shape[1:])


class Hypothesis(NamedTuple):
    """One decoded sequence.

    Attributes:
      tokens: tokens without EOS.
      score, log_prob: see `Search`; log_prob includes EOS. -inf if nothing was found.
      weights: (H, T, S) attention of each token (EOS last) over the encoder memory, that is the
        source tokens (EOS last) or the frames of a listener; or None.
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
    """Returns the hypotheses of every source, at least one each, in the order of the sources.

    Sources of similar length are decoded together. To limit compilation, batches have few distinct
    shapes: `batch_size` rows (a power of two if there are fewer sources), padded to one of
    `lengths`.

    Args:
      model, params, search, with_weights: see `decode`.
      source: (N, S) int32 tokens, EOS last, PAD after it, or (N, S, F) float32 features.
      source_length: (N,) int32, length of each source without padding, EOS included.
      batch_size: sources per batch.
      seed: seed of sampling; the samples of source i depend only on (seed, i).
      lengths: padded source lengths in ascending order, the last one at least the longest source;
        empty: powers of two from 8 on, and the model's maximum length in tokens.
      progress: called with the number of sources decoded so far.
    """
    source, source_length = np.asarray(source), np.asarray(source_length, np.int32)
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
            # Rows that only fill the batch reuse keys of real sources; their samples are dropped.
            sentence = np.resize(rows, size)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), sentence)
        batch = decode(model, params, tokens, count, search, keys, with_weights)
        for i, row in enumerate(_on_host(batch, len(rows))):
            found[rows[i]] = row
        if progress:
            progress(min(start + size, number))
    return found


def static_lengths(length: int) -> list[int]:
    """Returns the padded source lengths to compile for: powers of two from 8 on, and `length`."""
    found = []
    while not found or 2 * found[-1] < length:
        found.append(2 * found[-1] if found else SHORTEST)
    return [n for n in found if n < length] + [length]


def padded(sentences: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Pads token lists that end in EOS: returns source (N, S) and source_length (N,), int32."""
    lengths = np.array([len(s) for s in sentences], np.int32)
    rows = [np.asarray(s, np.int32) for s in sentences]
    return padded_rows(rows, int(max(lengths, default=1))), lengths


def _filled(
    source: np.ndarray, source_length: np.ndarray, size: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pads a batch to `size` rows of `columns`; added rows hold one EOS, or one frame of zeros."""
    kind = np.float32 if np.issubdtype(source.dtype, np.floating) else np.int32
    filled = np.zeros((size, columns, *source.shape[2:]), kind)
    if source.ndim == 2:
        filled[:, 0] = EOS
    width = min(columns, source.shape[1])
    filled[: len(source), :width] = source[:, :width]
    lengths = np.ones(size, np.int32)
    lengths[: len(source)] = source_length
    return filled, lengths


def _on_host(batch: Hypotheses, number: int) -> list[list[Hypothesis]]:
    """Returns the hypotheses of the first `number` rows, without padding."""
    batch = jax.tree.map(np.asarray, batch)
    found = []
    for row, positions in enumerate(batch.positions[:number]):
        here = []
        for n, length in enumerate(batch.lengths[row]):
            # Keep the first even if it is empty: every sentence gets at least one hypothesis.
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
