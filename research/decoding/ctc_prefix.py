"""CTC prefix scores for joint CTC/attention decoding.

The probability of a prefix is the total probability of all labellings that begin with it (Graves
2008, chapter 7, prefix search decoding). Autoregressive decoding needs it after every token; the
state of a prefix g is its forward variables at every frame t (Watanabe et al. 2017, "Hybrid
CTC/attention architecture for end-to-end speech recognition", algorithm 2). With gamma_t(g) the
probability that the first t frames spell g, the prefix g v has probability

    sum over t of gamma_{t-1}(g) p_t(v),

where, if v repeats the last label of g, gamma counts only paths that end in the blank. The scores
of all v are therefore a single reduction over the frames, and only the chosen token needs the
recursion over the frames.

CTC and the decoder share one vocabulary. PAD doubles as the blank, because no decoder produces it.
EOS is not a label: its entry holds the probability that the prefix is the whole labelling. CTC
should give EOS and BOS probability 0; any mass on them is missing from the extensions of a prefix.

Each hypothesis is one row; the frames of a sentence are repeated for each of its hypotheses.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.errors import UserError
from research.losses.ctc import padded_frames
from research.tasks.task import BOS, EOS, PAD


class Prefixes(NamedTuple):
    """Prefixes and their forward variables; the first axis of every leaf is the row.

    Attributes:
      label: (N, S + 1) log probability that the first t = 0 .. S frames spell the prefix and end in
        its last label.
      blank: (N, S + 1) the same for paths that end in the blank.
      last: (N,) int32 the last label; the blank for the empty prefix.
      log_prob: (N,) log probability of all labellings that begin with the prefix.
    """

    label: Float[Array, "N S1"]
    blank: Float[Array, "N S1"]
    last: Int[Array, " N"]
    log_prob: Float[Array, " N"]


def init(log_probs: Float[Array, "N S V"], lengths: Int[Array, " N"], blank: int = PAD) -> Prefixes:
    """Returns the empty prefix for every row.

    Args:
      log_probs: log p of the labels in each frame, the blank included.
      lengths: number of frames without padding.
      blank: index of the blank.

    Raises UserError for a blank that is not one of the labels.
    """
    # Only paths of blanks spell the empty prefix.
    silence = padded_frames(log_probs, lengths, blank)[:, :, blank].cumsum(axis=1)
    silence = jnp.pad(silence, ((0, 0), (1, 0)))
    rows = jnp.zeros_like(silence[:, 0])
    last = jnp.full(rows.shape, blank, jnp.int32)
    return Prefixes(jnp.full_like(silence, -jnp.inf), silence, last, rows)


def extend(
    prefixes: Prefixes,
    log_probs: Float[Array, "N S V"],
    lengths: Int[Array, " N"],
    blank: int = PAD,
    eos: int = EOS,
) -> Float[Array, "N V"]:
    """Returns log p of each prefix extended by each token, over all labellings that begin with it.

    The entry at `eos` is log p of the prefix as the whole labelling; the entry at `blank` is -inf.
    Other arguments are as for `init`. Cost: O(S V) per row, without a recursion.

    Raises UserError for a `blank` or `eos` that is not one of the labels, or if they are equal.
    """
    frames = padded_frames(log_probs, lengths, blank)
    if not 0 <= eos < frames.shape[-1] or eos == blank:
        raise UserError(
            f"eos={eos} must be one of the labels 0 to {frames.shape[-1] - 1} and not the blank."
        )
    total = jnp.logaddexp(prefixes.label, prefixes.blank)
    scores = jax.nn.logsumexp(total[:, :-1, None] + frames, axis=1)
    # A token that repeats the last label counts only paths that end in the blank.
    again = prefixes.blank[:, :-1] + _of_label(frames, prefixes.last)
    rows = jnp.arange(len(scores))
    scores = scores.at[rows, prefixes.last].set(jax.nn.logsumexp(again, axis=1))
    return scores.at[:, blank].set(-jnp.inf).at[:, eos].set(total[:, -1])


def advance(
    prefixes: Prefixes,
    log_probs: Float[Array, "N S V"],
    lengths: Int[Array, " N"],
    tokens: Int[Array, " N"],
    blank: int = PAD,
) -> Prefixes:
    """Returns the prefixes extended by one token each; rows whose token is the blank are unchanged.

    Other arguments are as for `init`. Cost: O(S) per row, one scan over the frames (Watanabe et al.
    2017, algorithm 2).

    Raises UserError for a blank that is not one of the labels.
    """
    frames = padded_frames(log_probs, lengths, blank)
    total = jnp.logaddexp(prefixes.label, prefixes.blank)
    # Probability that a new label can start here: a repeated label must follow a blank.
    repeats = (tokens == prefixes.last)[:, None]
    before = jnp.where(repeats, prefixes.blank, total)[:, :-1]
    emitted, silence = _of_label(frames, tokens), frames[:, :, blank]

    def step(now: tuple[jax.Array, jax.Array], frame: tuple[jax.Array, ...]):
        (label, silent), (entering, of_label, of_blank) = now, frame
        new = (
            jnp.logaddexp(label, entering) + of_label,
            jnp.logaddexp(label, silent) + of_blank,
        )
        return new, new

    none = jnp.full_like(prefixes.log_prob, -jnp.inf)
    by_frame = (before.T, emitted.T, silence.T)
    _, found = jax.lax.scan(step, (none, none), by_frame)
    label, silent = (jnp.concatenate([none[:, None], leaf.T], axis=1) for leaf in found)
    log_prob = jax.nn.logsumexp(before + emitted, axis=1)
    grown = Prefixes(label, silent, tokens.astype(jnp.int32), log_prob)

    def chosen(new: jax.Array, old: jax.Array) -> jax.Array:
        stays = (tokens == blank).reshape(-1, *(1,) * (new.ndim - 1))
        return jnp.where(stays, old, new)

    return jax.tree.map(chosen, grown, prefixes)


def conditional_log_probs(prefixes: Prefixes, scores: Float[Array, "N V"]) -> Float[Array, "N V"]:
    """Returns log p of each next token given the prefix; impossible tokens stay at -inf.

    Args:
      prefixes: the prefixes so far.
      scores: result of `extend` for these prefixes.
    """
    # The mask avoids -inf - -inf = NaN for prefixes of probability 0.
    return jnp.where(jnp.isfinite(scores), scores - prefixes.log_prob[:, None], -jnp.inf)


def joint_step(
    step: Callable[[Any, Int[Array, " N"]], tuple[jax.Array, Any, jax.Array]],
    log_probs: Float[Array, "N S V"],
    lengths: Int[Array, " N"],
    weight: float,
) -> Callable[[Any, Int[Array, " N"]], tuple[jax.Array, Any, jax.Array]]:
    """Returns a decoding step that scores tokens jointly by attention and CTC.

    The scores of a finished hypothesis sum to (1 - weight) log p_attention + weight log p_ctc;
    before it ends, p_ctc is the prefix probability (Watanabe et al. 2017, section IV.C, one-pass
    decoding). Scores are at most 0, but do not form a distribution over the next token.

    Args:
      step: the attention decoder, (state, last tokens) -> (log p (N, V) of the next tokens, state,
        weights).
      log_probs, lengths: as for `init`, with PAD as the blank.
      weight: weight of CTC, lambda in the paper, 0 to 1.

    The state of the returned step is (state of `step`, prefixes), starting with those of `init`.
    """

    def both(state: Any, tokens: Int[Array, " N"]) -> tuple[jax.Array, Any, jax.Array]:
        inner, prefixes = state
        attention, inner, weights = step(inner, tokens)
        prefixes = advance(prefixes, log_probs, lengths, jnp.where(tokens == BOS, PAD, tokens))
        given = conditional_log_probs(prefixes, extend(prefixes, log_probs, lengths))
        return (1 - weight) * attention + weight * given, (inner, prefixes), weights

    return both


def _of_label(frames: Float[Array, "N S V"], labels: Int[Array, " N"]) -> Float[Array, "N S"]:
    """Returns frames[n, :, labels[n]]."""
    return jnp.take_along_axis(frames, labels[:, None, None], axis=2)[:, :, 0]
