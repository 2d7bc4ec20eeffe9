"""Greedy decoding and ancestral sampling, one token at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from research.decoding.beam_search import StepDecoder
from research.decoding.sampling import Sampling, draw
from research.decoding.search import (
    Hypotheses,
    Search,
    attention_received,
    hypothesis_scores,
    next_log_probs,
)

GREEDY = Sampling(temperature=0.0)


class Rows(NamedTuple):
    """State of R sequences that are generated in parallel, each of at most T tokens."""

    num_tokens: jax.Array
    tokens: jax.Array
    log_probs: jax.Array
    coverage: jax.Array
    state: Any
    ended: jax.Array


def ancestral(
    decoder: StepDecoder, search: Search, limit: int, keys: Key[Array, " B"] | None
) -> Hypotheses:
    """Returns `search.nbest` sequences for each sentence, in the order of drawing.

    The samples of a sentence depend only on its key, not on the other sentences of the batch.

    Args:
      decoder: the sources, read with `search.nbest` copies.
      search: settings of sampling (`search.sampling` None: greedy) and of scoring.
      limit: maximum number of tokens of a sequence, EOS included.
      keys: one random key per sentence; None: greedy.
    """
    size, length = decoder.valid.shape
    rows = size * search.nbest
    sampling, special = search.sampling or GREEDY, search.special
    if keys is not None:
        of_row = jax.vmap(lambda key: jax.random.split(key, search.nbest))(keys).reshape(-1)

    def choose(logits: jax.Array, num_tokens: jax.Array) -> jax.Array:
        if keys is None:
            return draw(jax.random.key(0), logits, GREEDY)
        # One key per sentence, sample and position: samples do not depend on the batch.
        now = jax.vmap(jax.random.fold_in, (0, None))(of_row, num_tokens)
        return jax.vmap(lambda key, row: draw(key, row[None], sampling)[0])(now, logits)

    def step(old: Rows) -> Rows:
        last = jnp.where(old.num_tokens == 0, special.start, old.tokens[:, old.num_tokens - 1])
        log_probs, state, weights = decoder.step(old.state, last)
        log_probs = next_log_probs(log_probs, old.num_tokens, limit, special)
        chosen = choose(log_probs, old.num_tokens)
        gain = jnp.take_along_axis(log_probs, chosen[:, None], axis=1)[:, 0]
        token = jnp.where(old.ended, special.pad, chosen).astype(jnp.int32)
        seen = jnp.where(old.ended[:, None], 0.0, attention_received(weights, search))
        return Rows(
            num_tokens=old.num_tokens + 1,
            tokens=old.tokens.at[:, old.num_tokens].set(token),
            log_probs=old.log_probs + jnp.where(old.ended, 0.0, gain),
            coverage=old.coverage + seen,
            state=state,
            ended=old.ended | (token == special.end),
        )

    first = Rows(
        num_tokens=jnp.int32(0),
        tokens=jnp.full((rows, limit), special.pad, jnp.int32),
        log_probs=jnp.zeros(rows),
        coverage=jnp.zeros((rows, length if search.coverage_penalty else 0)),
        state=decoder.state,
        ended=jnp.zeros(rows, bool),
    )
    last = jax.lax.while_loop(lambda r: (r.num_tokens < limit) & ~r.ended.all(), step, first)
    lengths = (last.tokens != special.pad).sum(-1)
    valid = jnp.repeat(decoder.valid, search.nbest, axis=0)
    scores = hypothesis_scores(last.log_probs, lengths, last.coverage, valid, search)
    found = (last.tokens, lengths, scores, last.log_probs)
    found = (leaf.reshape(size, search.nbest, *leaf.shape[1:]) for leaf in found)
    return Hypotheses(*found, positions=decoder.positions)
