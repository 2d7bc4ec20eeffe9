"""Greedy and prefix beam search decoding for connectionist temporal classification (CTC).

A path assigns a label or the blank to every frame; its labelling is the path with repeated labels
collapsed and then blanks removed (Graves et al. 2006, section 3.1). The probability of a labelling
is the sum over its paths. Everything is compiled, runs in float32, and has static shapes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from research.errors import UserError
from research.tasks.task import PAD


class Labellings(NamedTuple):
    """Label sequences.

    Attributes:
      tokens: (..., S) int32, the blank after the last label; S is the number of frames.
      lengths: (...) int32.
      log_probs: (...) float32; -inf where there is no labelling.
    """

    tokens: Int[Array, "*b S"]
    lengths: Int[Array, "*b"]
    log_probs: Float[Array, "*b"]


def padded_frames(
    log_probs: Float[Array, "B S V"], lengths: Int[Array, " B"], blank: int = PAD
) -> Float[Array, "B S V"]:
    """Returns the frames as float32, with blanks of probability 1 from `lengths` on.

    Blanks of probability 1 at the end change neither labellings nor probabilities, so no other
    function has to handle padding.

    Raises UserError for a blank that is not one of the labels.
    """
    vocab = log_probs.shape[-1]
    if not 0 <= blank < vocab:
        raise UserError(f"blank={blank} must be one of the labels 0 to {vocab - 1}.")
    real = jnp.arange(log_probs.shape[1]) < lengths[:, None]
    silence = jnp.where(jnp.arange(vocab) == blank, 0.0, -jnp.inf)
    return jnp.where(real[:, :, None], log_probs.astype(jnp.float32), silence)


@functools.partial(jax.jit, static_argnames="blank")
def greedy(
    log_probs: Float[Array, "B S V"], lengths: Int[Array, " B"], blank: int = PAD
) -> Labellings:
    """Returns the labelling of the most probable path (Graves et al. 2006, section 3.2).

    The returned `log_probs` is that of the path, a lower bound of that of the labelling.

    Args:
      log_probs: log p of the labels in each frame, the blank included.
      lengths: number of frames without padding.
      blank: index of the blank.
    """
    frames = padded_frames(log_probs, lengths, blank)
    path = frames.argmax(-1)
    before = jnp.concatenate([jnp.full_like(path[:, :1], blank), path[:, :-1]], axis=1)
    kept = (path != blank) & (path != before)
    number = path.shape[1]
    # Frames that emit no label get an index out of range, which the scatter drops.
    place = jnp.where(kept, kept.cumsum(-1) - 1, number)
    tokens = jnp.full(path.shape, blank, jnp.int32)
    tokens = tokens.at[jnp.arange(len(path))[:, None], place].set(path, mode="drop")
    return Labellings(tokens, kept.sum(-1), frames.max(-1).sum(-1))


class _Beam(NamedTuple):
    """The K most probable prefixes so far, best first, all different.

    Attributes:
      tokens: (K, S), filled with the blank after the last label.
      lengths: (K,) number of labels.
      blank: (K,) log probability of the paths that spell the prefix and end in the blank.
      label: (K,) log probability of the paths that spell it and end in its last label.
      begins: (K, K) whether prefix i is a proper prefix of prefix j; False if either has
        probability 0.
    """

    tokens: Int[Array, "K S"]
    lengths: Int[Array, " K"]
    blank: Float[Array, " K"]
    label: Float[Array, " K"]
    begins: Bool[Array, "K K"]


@functools.partial(jax.jit, static_argnames=("beam", "blank"))
def prefix_beam(
    log_probs: Float[Array, "B S V"], lengths: Int[Array, " B"], beam: int, blank: int = PAD
) -> Labellings:
    """Returns the `beam` most probable labellings found by prefix beam search, best first.

    Algorithm 1 of Hannun et al. 2014 ("First-pass large vocabulary continuous speech recognition
    using bi-directional recurrent DNNs") without its language model, and without its memory of
    prefixes that have left the beam: a prefix that re-enters starts with probability 0. Exact if
    the beam holds every prefix; otherwise the probabilities are lower bounds.

    Args:
      log_probs: log p of the labels in each frame, the blank included.
      lengths: number of frames without padding.
      beam: beam width, K.
      blank: index of the blank.

    Returns tokens (B, K, S), lengths (B, K) and log_probs (B, K); if fewer than K labellings exist,
    the rest are empty with log probability -inf.

    Raises UserError for a beam below 1 and for a blank that is not one of the labels.
    """
    if beam < 1:
        raise UserError(f"--beam={beam} must be at least 1.")

    def search(frames: Float[Array, "S V"]) -> Labellings:
        first = _Beam(
            tokens=jnp.full((beam, len(frames)), blank, jnp.int32),
            lengths=jnp.zeros(beam, jnp.int32),
            # One empty prefix; K of them would be duplicates.
            blank=jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf),
            label=jnp.full(beam, -jnp.inf),
            begins=jnp.zeros((beam, beam), bool),
        )
        step = functools.partial(_next_beam, blank=blank)
        last, _ = jax.lax.scan(lambda old, frame: (step(old, frame), None), first, frames)
        total = jnp.logaddexp(last.blank, last.label)
        there = jnp.isfinite(total)
        tokens = jnp.where(there[:, None], last.tokens, blank)
        return Labellings(tokens, jnp.where(there, last.lengths, 0), total)

    return jax.vmap(search)(padded_frames(log_probs, lengths, blank))


def _next_beam(old: _Beam, frame: Float[Array, " V"], blank: int) -> _Beam:
    """Returns the beam after one more frame.

    Two candidates coincide only if prefix i extended by a label equals prefix j of the beam, that
    is, if i is j without its last label. The probability of the extension is then added to j.
    """
    width, vocab = len(old.lengths), len(frame)
    # For the empty prefix this is the blank; its `old.label` is -inf, so it has no effect.
    last = old.tokens[jnp.arange(width), old.lengths - 1]
    total = jnp.logaddexp(old.blank, old.label)
    stay_blank, stay_label = total + frame[blank], old.label + frame[last]
    number = jnp.arange(vocab)
    # Repeating the last label extends the prefix only after a blank; otherwise it collapses.
    grown = jnp.where(number == last[:, None], old.blank[:, None], total[:, None]) + frame
    grown = jnp.where(number == blank, -jnp.inf, grown)

    parent = old.begins & (old.lengths == old.lengths[:, None] + 1)
    stay_label = jnp.logaddexp(stay_label, jnp.where(parent, grown[:, last], -jnp.inf).max(0))
    # Remove the extension that was merged; without a parent, index `width` is dropped.
    giver = jnp.where(parent.any(0), parent.argmax(0), width)
    grown = grown.at[giver, last].set(-jnp.inf, mode="drop")

    stay = jnp.logaddexp(stay_blank, stay_label)
    candidates = jnp.concatenate([stay[:, None], grown], axis=1).reshape(-1)
    values, index = jax.lax.top_k(candidates, width)
    origin, label = index // (vocab + 1), index % (vocab + 1) - 1
    grows = label >= 0
    tokens, lengths = old.tokens[origin], old.lengths[origin]
    place = jnp.where(grows, lengths, tokens.shape[1])
    return _Beam(
        tokens=tokens.at[jnp.arange(width), place].set(label, mode="drop"),
        lengths=lengths + grows,
        blank=jnp.where(grows, -jnp.inf, stay_blank[origin]),
        label=jnp.where(grows, values, stay_label[origin]),
        begins=_next_begins(old, origin, label) & jnp.isfinite(values[:, None] + values),
    )


def _next_begins(
    old: _Beam, origin: Int[Array, " K"], label: Int[Array, " K"]
) -> Bool[Array, "K K"]:
    """Returns the new `begins` matrix, derived from that of the old beam.

    A prefix that left the beam can return while longer ones are still in it, so the matrix covers
    all pairs of prefixes, not only those that differ by one label.

    Args:
      old: the beam before.
      origin: index of the old prefix that each new one equals or extends.
      label: the label that extends it; negative if it is unchanged.
    """
    began = old.begins[origin[:, None], origin]
    follows = old.tokens[origin][:, old.lengths[origin]].T
    grew = label >= 0
    same = (origin[:, None] == origin) & grew
    return jnp.where(grew[:, None], began & (follows == label[:, None]), began | same)
