"""What CTC says about a labelling that is being spelled: the score of joint CTC/attention decoding.

The probability of a prefix is that of all labellings that begin with it (Graves 2008, chapter 7,
prefix search decoding). A decoder that adds one token at a time asks for it after every token; what
has to be remembered of a prefix g are the forward variables of every frame t (Watanabe et al. 2017,
"Hybrid CTC/attention architecture for end-to-end speech recognition", algorithm 2). With gamma_t(g)
the probability that the first t frames spell g, the prefix g v has probability

    sum over t of gamma_{t-1}(g) p_t(v),

where only paths that end in the blank count in gamma for a v that repeats the last label of g. So
all v at once are one reduction over the frames, and the recursion over the frames is left for the
token that is chosen.

CTC and the decoder share one vocabulary. PAD doubles as the blank, because no decoder produces it.
EOS is no label: in its place stands the probability that the prefix is all. CTC should give EOS and
BOS no probability, else that share is missing from the extensions of a prefix.

One row to each hypothesis; a sentence with several hypotheses has its frames repeated.
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
    """What has been spelled; the rows are the first axis of every leaf.

    Attributes:
      label: (N, S + 1) log probability that the first t = 0 .. S frames spell the prefix and end in
        its last label.
      blank: (N, S + 1) the same, ending in the blank.
      last: (N,) int32 the last label; the blank of the empty prefix.
      log_prob: (N,) log probability of all labellings that begin with the prefix.
    """

    label: Float[Array, "N S1"]
    blank: Float[Array, "N S1"]
    last: Int[Array, " N"]
    log_prob: Float[Array, " N"]


def init(log_probs: Float[Array, "N S V"], lengths: Int[Array, " N"], blank: int = PAD) -> Prefixes:
    """Returns the empty prefix of every row.

    Args:
      log_probs: of the labels, the blank among them, in each frame.
      lengths: frames; those after are padding.
      blank: the label that stands for none.

    Raises UserError for a blank that is no label.
    """
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
    """Returns log p of each prefix with one more token, over all labellings that begin with it.

    At `eos` it is log p of the prefix as the whole labelling, at `blank` it is -inf. All other
    arguments are as for `init`. Cost: O(S V) to a row, without a recursion.

    Raises UserError for a blank or an end that is no label, or when they are the same.
    """
    frames = padded_frames(log_probs, lengths, blank)
    if not 0 <= eos < frames.shape[-1] or eos == blank:
        raise UserError(
            f"eos={eos} must be one of the labels 0 to {frames.shape[-1] - 1} and not the blank."
        )
    total = jnp.logaddexp(prefixes.label, prefixes.blank)
    scores = jax.nn.logsumexp(total[:, :-1, None] + frames, axis=1)
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
    """Returns the prefixes with one more token; a row whose token is the blank stays as it is.

    The other arguments are as for `init`. Cost: O(S) to a row, one scan over the frames
    (Watanabe et al. 2017, algorithm 2).

    Raises UserError for a blank that is no label.
    """
    frames = padded_frames(log_probs, lengths, blank)
    total = jnp.logaddexp(prefixes.label, prefixes.blank)
    # What can be followed by a new `token`: the same label again only after a blank.
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
    """Returns log p of each next token given the prefix; what has no probability stays -inf.

    Args:
      prefixes: what has been spelled.
      scores: what `extend` returned for it.
    """
    return jnp.where(jnp.isfinite(scores), scores - prefixes.log_prob[:, None], -jnp.inf)


def joint(
    step: Callable[[Any, Int[Array, " N"]], tuple[jax.Array, Any, jax.Array]],
    log_probs: Float[Array, "N S V"],
    lengths: Int[Array, " N"],
    weight: float,
) -> Callable[[Any, Int[Array, " N"]], tuple[jax.Array, Any, jax.Array]]:
    """Returns a decoding step that scores tokens by attention and CTC together.

    Summed over a hypothesis that ended, its scores are (1 - weight) log p_attention + weight
    log p_ctc; on the way p_ctc is that of the prefix (Watanabe et al. 2017, section IV.C, one-pass
    decoding). They are at most 0, but no distribution over the next token.

    Args:
      step: (state, last tokens) -> (log p (N, V) of the next tokens, state, weights), by attention.
      log_probs, lengths: as for `init`, the blank being PAD.
      weight: of CTC, lambda in the paper, 0 to 1.

    The state of the returned step is (state of `step`, prefixes); `init` returns the first of them.
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
