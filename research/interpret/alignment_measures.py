"""How well weights over a source match known alignments, and what they look like without any.

Measures are `Sums`: totals and what to divide them by, so that they add up over batches. Weights
are those of one head, (B, T, S): how the target at t reads the source; `alignment_scores` takes all
heads of a model. Arrays are of NumPy or JAX; everything can be traced.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from research.tasks.task import Sums

HIGHER_IS_BETTER: Mapping[str, bool | None] = {
    "alignment_error": False,
    "diagonality": None,
    "entropy": None,
    "monotonicity": None,
    "on_span": True,
    "coverage": True,
}
"""Direction of each measure of `alignment_scores`; None where neither way is better."""
WORST: Mapping[str, float] = {"on_span": 0.0, "coverage": 0.0}
"""Value of each measure that has a worst one, for a model that does nothing right."""


def argmax_links(weights: Float[Array, "*b T S"]) -> Bool[Array, "*b T S"]:
    """Returns one link per target, to the source position with the most weight.

    Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation", section
    5.4. Of equal weights the first counts; a target that reads nothing (weights 0) has no link.
    """
    weights = jnp.asarray(weights)
    best = jax.nn.one_hot(weights.argmax(-1), weights.shape[-1], dtype=bool)
    return best & (weights > 0)


def alignment_error_rate(
    links: Bool[Array, "*b T S"],
    sure: Bool[Array, "*b T S"],
    possible: Bool[Array, "*b T S"] | None = None,
) -> Sums:
    """Returns the alignment error rate over all sequences, 0 (best) to 1.

    1 - (|A & S| + |A & P|) / (|A| + |S|), Och and Ney 2003, "A Systematic Comparison of Various
    Statistical Alignment Models", the section on evaluation.

    Args:
      links: A, what is judged.
      sure: S, links that must be there.
      possible: P, links that may be there, S among them; None: S.
    """
    links, sure = jnp.asarray(links), jnp.asarray(sure)
    possible = sure if possible is None else jnp.asarray(possible) | sure
    count = (links.sum() + sure.sum()).astype(jnp.float32)
    return Sums(count - (links & sure).sum() - (links & possible).sum(), count)


def alignment_error(weights: Float[Array, "B T S"], alignment: Int[Array, "B T"]) -> Sums:
    """Returns the alignment error rate of weights, their links drawn by `argmax_links`.

    Args:
      weights: how each target reads the source.
      alignment: the source position that each target comes from, its one sure link; -1: none or
        unknown, such a target is left out.
    """
    alignment = jnp.asarray(alignment)
    known = (alignment >= 0)[..., None]
    # one_hot of -1 is a row of False.
    sure = jax.nn.one_hot(alignment, weights.shape[-1], dtype=bool)
    return alignment_error_rate(argmax_links(weights) & known, sure)


def diagonality(
    weights: Float[Array, "B T S"],
    target_length: Int[Array, " B"],
    source_length: Int[Array, " B"],
    width: float = 0.2,
) -> Sums:
    """Returns how near the weights are to the diagonal, a mean over targets: 1 on it, 0 far away.

    The sum over s of w[t, s] exp(-(s / S - t / T)^2 / (2 width^2)), which is 1 minus the penalty of
    Tachibana et al. 2018, "Efficiently Trainable Text-to-Speech System Based on Deep Convolutional
    Networks with Guided Attention", eq. 6 (width g = 0.2 there), where weights sum to 1.

    Args:
      weights: how each target reads the source; 0 at padding.
      target_length: T of each pair, end token included.
      source_length: S of each pair, end token included.
      width: g.
    """
    weights = jnp.asarray(weights)
    t = jnp.arange(weights.shape[1])
    s = jnp.arange(weights.shape[2])
    target_length, source_length = jnp.asarray(target_length), jnp.asarray(source_length)
    # A row that counts for nothing has T = 0; it must not divide by it.
    along_target = t / jnp.maximum(target_length, 1)[:, None]
    along_source = s / jnp.maximum(source_length, 1)[:, None]
    distance = along_source[:, None, :] - along_target[:, :, None]
    near = (weights * jnp.exp(-(distance**2) / (2 * width**2))).sum(-1)
    real = t < target_length[:, None]
    return Sums((near * real).sum(), real.sum().astype(jnp.float32))


def entropy(weights: Float[Array, "B T S"], target_length: Int[Array, " B"]) -> Sums:
    """Returns the entropy of the weights of a target in nats, a mean over targets.

    0: one position is read; log S: all S alike. The spread of attention that Ghader and Monz 2017
    ("What does Attention in Neural Machine Translation Pay Attention to?") compare.

    Args:
      weights: how each target reads the source; 0 at padding.
      target_length: of each pair, end token included.
    """
    weights = jnp.asarray(weights)
    of_rows = jax.scipy.special.entr(weights).sum(-1)
    real = jnp.arange(weights.shape[1]) < jnp.asarray(target_length)[:, None]
    return Sums((of_rows * real).sum(), real.sum().astype(jnp.float32))


def monotonicity(weights: Float[Array, "B T S"], target_length: Int[Array, " B"]) -> Sums:
    """Returns the part of targets that read no further left than the one before, on average.

    Where a target reads is the mean position of its weights; the first one counts for nothing. 1 is
    a pointer that only moves forward, as speech and its transcript do.

    Args:
      weights: how each target reads the source; 0 at padding.
      target_length: of each pair, end token included.
    """
    weights = jnp.asarray(weights)
    mass = jnp.maximum(weights.sum(-1), 1e-9)
    centre = (weights * jnp.arange(weights.shape[-1])).sum(-1) / mass
    # Rounding alone is no step back.
    forward = centre[:, 1:] >= centre[:, :-1] - 1e-3
    real = jnp.arange(1, weights.shape[1]) < jnp.asarray(target_length)[:, None]
    return Sums((forward & real).sum().astype(jnp.float32), real.sum().astype(jnp.float32))


def span_scores(weights: Float[Array, "B T S"], span: Float[Array, "B T 2"]) -> dict[str, Sums]:
    """Returns measures of weights against the stretch of the source that each target belongs to.

    "on_span": the part of a target's weight that lies within its stretch. "coverage": how much
    weight the stretch of a target got from all targets, at most 1; a word that was skipped has 0.

    Args:
      weights: how each target reads the source; 0 at padding.
      span: positions where the stretch of each target begins and ends; a target whose stretch is
        empty is left out.
    """
    weights, span = jnp.asarray(weights), jnp.asarray(span)
    at = jnp.arange(weights.shape[-1]) + 0.5
    inside = (span[..., :1] <= at) & (at < span[..., 1:])
    there = inside.any(-1)
    own = (weights * inside).sum(-1)
    received = jnp.einsum("bs,bts->bt", weights.sum(1), inside.astype(weights.dtype))
    count = there.sum().astype(jnp.float32)
    return {
        "on_span": Sums((own * there).sum(), count),
        "coverage": Sums((jnp.minimum(received, 1.0) * there).sum(), count),
    }


def alignment_scores(
    weights: Float[Array, "B H T S"], batch: Mapping[str, Array]
) -> dict[str, Sums]:
    """Returns every measure that a batch allows, for each head.

    Args:
      weights: as a model's `weights` gives them for `batch`.
      batch: has "source_length" and "targets"; "alignment" where alignments are known; of speech
        "source" and "span" in its frames, of which there may be more than positions of weights.

    Returns:
      Sums (H,) of "diagonality" and "entropy"; with "alignment" of "alignment_error"; with "span"
      of "monotonicity", "on_span" and "coverage".
    """
    weights = jnp.asarray(weights)
    source_length, span = jnp.asarray(batch["source_length"]), None
    if "span" in batch:
        frames = batch["source"].shape[1] / weights.shape[-1]
        source_length = jnp.ceil(source_length / frames).astype(jnp.int32)
        span = batch["span"] / frames
    target_length = (jnp.asarray(batch["targets"]) >= 0).sum(-1)

    def one(head: Float[Array, "B T S"]) -> dict[str, Sums]:
        scores = {
            "diagonality": diagonality(head, target_length, source_length),
            "entropy": entropy(head, target_length),
        }
        if span is not None:
            scores["monotonicity"] = monotonicity(head, target_length)
            scores |= span_scores(head, span)
        if "alignment" not in batch:
            return scores
        return {"alignment_error": alignment_error(head, batch["alignment"])} | scores

    return jax.vmap(one, in_axes=1)(weights)
