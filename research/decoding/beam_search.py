"""Beam search over a sequence-to-sequence model as one compiled loop.

Every step extends each of K live hypotheses by every token. A candidate that ends in EOS and is
among the K best finishes; the K best of the others stay live. A sentence is done when K hypotheses
have finished or no live one can still enter the n-best list: log probabilities only fall, so a live
hypothesis scores at most log p / lp(limit). Live hypotheses all have the same length and are
compared by log probability alone. Ties go to the better parent, then to the lower token id.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from research.decoding import ctc_prefix
from research.decoding.search import (
    Hypotheses,
    Search,
    attention_received,
    hypothesis_scores,
    length_divisor,
    next_log_probs,
)

SHARED = -1
"""Marks a leaf without a batch axis, shared by all rows."""


def batch_axes(init: Callable[[int], Any]) -> Any:
    """Returns the batch axis of each leaf, or SHARED if it has none, as a tree of ints.

    Args:
      init: batch size -> pytree; evaluated only for its shapes, at two batch sizes.

    Raises ValueError for a leaf whose shape depends on the batch size in any other way.
    """
    sizes = (2, 3)
    trees = [jax.eval_shape(lambda size=size: init(size)) for size in sizes]

    def axis(few: jax.ShapeDtypeStruct, many: jax.ShapeDtypeStruct) -> int:
        pairs = list(zip(few.shape, many.shape, strict=True))
        found = [i for i, (m, n) in enumerate(pairs) if m != n]
        if not found:
            return SHARED
        if len(found) > 1 or pairs[found[0]] != sizes:
            raise ValueError(f"no axis of {few.shape} is the batch: {many.shape} for one row more.")
        return found[0]

    return jax.tree.map(axis, *trees)


def take_rows(tree: Any, axes: Any, rows: Int[Array, " R"]) -> Any:
    """Returns the tree with its batch rows gathered: row r of the result is row rows[r]."""

    def take(leaf: jax.Array, axis: int) -> jax.Array:
        return leaf if axis == SHARED else jnp.take(leaf, rows, axis=axis)

    return jax.tree.map(take, tree, axes)


class StepDecoder(NamedTuple):
    """A model that has encoded a batch of sources, each repeated in `copies` consecutive rows.

    Attributes:
      step: (state, tokens (R,)) -> (log p (R, V) of the next tokens, state, weights (R, H, S)), R =
        B * copies.
      state: decoding state before the first token.
      axes: batch axis of each leaf of the state; see `batch_axes`.
      valid: (B, S), False at padding of the memory.
    """

    step: Callable[[Any, Int[Array, " R"]], tuple[jax.Array, Any, jax.Array]]
    state: Any
    axes: Any
    valid: Bool[Array, "B S"]

    @property
    def positions(self) -> Int[Array, " B"]:
        """Number of positions of the memory without padding."""
        return self.valid.sum(-1).astype(jnp.int32)


def encode_sources(
    model: Any,
    params: Any,
    source: Array,
    source_length: Int[Array, " B"],
    copies: int,
    limit: int,
    ctc_weight: float = 0.0,
) -> StepDecoder:
    """Encodes the sources and returns the model ready for decoding.

    Args:
      model: a sequence-to-sequence model (research/models/model.py).
      params: its parameters.
      source: (B, S) tokens, EOS last, PAD after it, or (B, S, F) features.
      source_length: length of each source without padding.
      copies: decoding rows per source.
      limit: maximum number of tokens to decode.
      ctc_weight: see `Search`; above 0 only for a model with CTC.
    """
    variables = {"params": params}

    def encoded(tokens: jax.Array, lengths: jax.Array) -> Any:
        return model.apply(variables, tokens, lengths, method="encode")

    def started(memory: Any) -> Any:
        return model.apply(variables, memory, limit, method="init_state")

    def shapes(size: int) -> tuple[Any, Any]:
        stand_in = jnp.zeros((size, *source.shape[1:]), source.dtype)
        memory = encoded(stand_in, jnp.ones(size, jnp.int32))
        return memory, started(memory)

    memory_axes, state_axes = batch_axes(shapes)
    rows = jnp.repeat(jnp.arange(source.shape[0]), copies)
    once = encoded(source, source_length)
    memory = take_rows(once, memory_axes, rows)

    def step(state: Any, tokens: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        logits, state, weights = model.apply(variables, memory, state, tokens, method="step")
        # Scores are sums over many tokens, so compute them in float32 whatever the model's dtype.
        return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), state, weights

    decoder = StepDecoder(step, started(memory), state_axes, once["valid"])
    if not ctc_weight:
        return decoder
    frames = model.apply(variables, memory, method="ctc")
    prefixes = ctc_prefix.init(*frames)
    return decoder._replace(
        step=ctc_prefix.joint_step(step, *frames, ctc_weight),
        state=(decoder.state, prefixes),
        axes=(decoder.axes, jax.tree.map(lambda _: 0, prefixes)),
    )


class Beam(NamedTuple):
    """State of the search after some tokens, with length limit T and N hypotheses to return.

    Attributes:
      num_tokens: number of tokens so far.
      tokens: (B, K, T) tokens of the live hypotheses.
      log_probs: (B, K) their log probabilities, best first; -inf in unused places.
      coverage: (B, K, S2) attention received so far, see `search.received`.
      state: decoding state of B * K rows.
      finished: the N best finished hypotheses, best first.
      count: (B,) number of finished hypotheses.
      done: (B,) whether the search of a sentence is over.
    """

    num_tokens: jax.Array
    tokens: jax.Array
    log_probs: jax.Array
    coverage: jax.Array
    state: Any
    finished: Hypotheses
    count: jax.Array
    done: jax.Array


def beam_search(decoder: StepDecoder, search: Search, limit: int) -> Hypotheses:
    """Returns the `search.nbest` best hypotheses of each sentence.

    Args:
      decoder: the sources, read with `search.beam` copies.
      search: beam width, penalties and number of hypotheses to return.
      limit: maximum number of tokens of a hypothesis, EOS included.
    """
    width, special = search.beam, search.special

    def step(beam: Beam) -> Beam:
        size = beam.tokens.shape[0]
        last = jnp.where(
            beam.num_tokens == 0, special.start, beam.tokens[:, :, beam.num_tokens - 1]
        )
        log_probs, state, weights = decoder.step(beam.state, last.reshape(-1))
        coverage = beam.coverage + attention_received(weights, search).reshape(size, width, -1)
        log_probs = next_log_probs(log_probs, beam.num_tokens, limit, special)
        total = beam.log_probs[:, :, None] + log_probs.reshape(size, width, -1)
        # At most K candidates end in EOS (one per parent), so the 2 K best include K others.
        values, parent, token = _best(total, 2 * width)
        tokens = _rows(beam.tokens, parent).at[:, :, beam.num_tokens].set(token)
        candidates = beam._replace(
            tokens=tokens, log_probs=values, coverage=_rows(coverage, parent)
        )
        best_k = jnp.arange(2 * width) < width
        ends = (token == special.end) & best_k & jnp.isfinite(values) & ~beam.done[:, None]
        finished = _merge(candidates, ends, decoder, search)
        values, kept = jax.lax.top_k(jnp.where(token == special.end, -jnp.inf, values), width)
        count = beam.count + ends.sum(-1)
        # Ties count as hopeless, also -inf against -inf when no live hypothesis is left.
        reachable = values[:, 0] / length_divisor(limit, search)
        hopeless = ~(reachable > finished.scores[:, -1])
        rows = jnp.arange(size)[:, None] * width + _rows(parent, kept)
        return Beam(
            num_tokens=beam.num_tokens + 1,
            tokens=_rows(tokens, kept),
            log_probs=values,
            coverage=_rows(candidates.coverage, kept),
            state=take_rows(state, decoder.axes, rows.reshape(-1)),
            finished=finished,
            count=count,
            done=beam.done | (count >= width) | hopeless,
        )

    def goes_on(beam: Beam) -> jax.Array:
        return (beam.num_tokens < limit) & ~beam.done.all()

    return jax.lax.while_loop(goes_on, step, _first(decoder, search, limit)).finished


def _first(decoder: StepDecoder, search: Search, limit: int) -> Beam:
    """Returns the state before the first token: the empty hypothesis is the only live one."""
    size, length = decoder.valid.shape
    width, number = search.beam, search.nbest
    none = jnp.full((size, number), -jnp.inf)
    finished = Hypotheses(
        tokens=jnp.full((size, number, limit), search.special.pad, jnp.int32),
        lengths=jnp.zeros((size, number), jnp.int32),
        scores=none,
        log_probs=none,
        positions=decoder.positions,
    )
    return Beam(
        num_tokens=jnp.int32(0),
        tokens=jnp.full((size, width, limit), search.special.pad, jnp.int32),
        # Equal copies of the empty hypothesis would fill the beam with duplicates.
        log_probs=jnp.where(jnp.arange(width) == 0, jnp.zeros((size, width)), -jnp.inf),
        coverage=jnp.zeros((size, width, length if search.coverage_penalty else 0)),
        state=decoder.state,
        finished=finished,
        count=jnp.zeros(size, jnp.int32),
        done=jnp.zeros(size, bool),
    )


def _best(total: Float[Array, "B K V"], number: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the largest totals (B, number), best first, with their indices in K and V.

    Takes the top of each row first, then the top of these: a single top_k over K V takes five times
    as long for V = 8,000. Ties go to the lower index in K, then in V.
    """
    values, token = jax.lax.top_k(total, min(number, total.shape[-1]))
    size, each = len(total), values.shape[-1]
    values, index = jax.lax.top_k(values.reshape(size, -1), number)
    return values, index // each, _rows(token.reshape(size, -1), index)


def _merge(candidates: Beam, ends: jax.Array, decoder: StepDecoder, search: Search) -> Hypotheses:
    """Returns the best finished hypotheses, including the candidates marked by `ends` (B, C)."""
    old = candidates.finished
    lengths = jnp.full(ends.shape, candidates.num_tokens + 1)
    scores = hypothesis_scores(
        candidates.log_probs, lengths, candidates.coverage, decoder.valid[:, None], search
    )
    new = (candidates.tokens, lengths, jnp.where(ends, scores, -jnp.inf), candidates.log_probs)
    both = [jnp.concatenate(pair, axis=1) for pair in zip(old[:4], new, strict=True)]
    scores, index = jax.lax.top_k(both[2], search.nbest)
    merged = old._replace(
        tokens=_rows(both[0], index), lengths=_rows(both[1], index), log_probs=_rows(both[3], index)
    )
    # Places without a finished hypothesis hold unfinished candidates with score -inf: clear them.
    there = jnp.isfinite(scores)
    return merged._replace(
        tokens=jnp.where(there[..., None], merged.tokens, search.special.pad),
        lengths=jnp.where(there, merged.lengths, 0),
        scores=scores,
        log_probs=jnp.where(there, merged.log_probs, -jnp.inf),
    )


def _rows(array: Float[Array, "B K ..."], index: Int[Array, "B C"]) -> Float[Array, "B C ..."]:
    """Returns array[b, index[b, c]]."""
    return jnp.take_along_axis(array, index.reshape(index.shape + (1,) * (array.ndim - 2)), axis=1)
