"""Measures of cross-attention weights, with and without a reference alignment.

Measures return `Sums`, totals with their divisors, so that they add up over batches. Weights are
those of one head, (B, T, S), from target position t to source position s; `alignment_scores` takes
all heads of a model. Arrays may be NumPy or JAX; all functions are traceable.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from research.tasks.task import FRACTION, Range, Sums

HIGHER_IS_BETTER: Mapping[str, bool | None] = {
    "alignment_error": False,
    "diagonality": None,
    "entropy": None,
    "monotonicity": None,
    "on_span": True,
    "coverage": True,
}
"""Direction of each measure of `alignment_scores`; None where neither direction is better."""
RANGES: Mapping[str, Range] = {
    **dict.fromkeys(("alignment_error", "on_span", "coverage"), FRACTION),
    "entropy": (0.0, None),
}
"""Lowest and highest possible value of the measures that have one."""


def argmax_links(weights: Float[Array, "*b T S"]) -> Bool[Array, "*b T S"]:
    """Returns one link per target, to the source position with the largest weight.

    Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation", section
    5.4. Ties go to the first position; a target whose weights are all 0 has no link.
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
      links: A, the links to evaluate.
      sure: S, the sure links of the reference.
      possible: P, its possible links, S included; None: S.
    """
    links, sure = jnp.asarray(links), jnp.asarray(sure)
    possible = sure if possible is None else jnp.asarray(possible) | sure
    count = (links.sum() + sure.sum()).astype(jnp.float32)
    return Sums(count - (links & sure).sum() - (links & possible).sum(), count)


def alignment_error(weights: Float[Array, "B T S"], alignment: Int[Array, "B T"]) -> Sums:
    """Returns the alignment error rate of weights, with links from `argmax_links`.

    Args:
      weights: attention weights from targets to the source.
      alignment: source position of each target's only sure link; -1 leaves the target out, as its
        alignment is unknown or it has none.
    """
    alignment = jnp.asarray(alignment)
    known = (alignment >= 0)[..., None]
    # one_hot of -1 is all False, so unknown targets add no sure links.
    sure = jax.nn.one_hot(alignment, weights.shape[-1], dtype=bool)
    return alignment_error_rate(argmax_links(weights) & known, sure)


def diagonality(
    weights: Float[Array, "B T S"],
    target_length: Int[Array, " B"],
    source_length: Int[Array, " B"],
    width: float = 0.2,
) -> Sums:
    """Returns how close the weights are to the diagonal, a mean over targets: 1 on it, 0 far away.

    The sum over s of w[t, s] exp(-(s / S - t / T)^2 / (2 width^2)), which is 1 minus the penalty of
    Tachibana et al. 2018, "Efficiently Trainable Text-to-Speech System Based on Deep Convolutional
    Networks with Guided Attention", eq. 6 (width g = 0.2 there), if the weights sum to 1.

    Args:
      weights: attention weights from targets to the source; 0 at padding.
      target_length: T of each pair, end token included.
      source_length: S of each pair, end token included.
      width: g.
    """
    weights = jnp.asarray(weights)
    t = jnp.arange(weights.shape[1])
    s = jnp.arange(weights.shape[2])
    target_length, source_length = jnp.asarray(target_length), jnp.asarray(source_length)
    # Rows that only fill up a batch have length 0; avoid 0 / 0.
    along_target = t / jnp.maximum(target_length, 1)[:, None]
    along_source = s / jnp.maximum(source_length, 1)[:, None]
    distance = along_source[:, None, :] - along_target[:, :, None]
    near = (weights * jnp.exp(-(distance**2) / (2 * width**2))).sum(-1)
    real = t < target_length[:, None]
    return Sums((near * real).sum(), real.sum().astype(jnp.float32))


def entropy(weights: Float[Array, "B T S"], target_length: Int[Array, " B"]) -> Sums:
    """Returns the entropy of the weights of a target in nats, a mean over targets.

    0 for a single position, log S for S equal weights. Ghader and Monz 2017, "What does Attention
    in Neural Machine Translation Pay Attention to?", compare attention by it.

    Args:
      weights: attention weights from targets to the source; 0 at padding.
      target_length: target length of each pair, end token included.
    """
    weights = jnp.asarray(weights)
    of_rows = jax.scipy.special.entr(weights).sum(-1)
    real = jnp.arange(weights.shape[1]) < jnp.asarray(target_length)[:, None]
    return Sums((of_rows * real).sum(), real.sum().astype(jnp.float32))


def monotonicity(weights: Float[Array, "B T S"], target_length: Int[Array, " B"]) -> Sums:
    """Returns the fraction of targets that attend no further left than the target before.

    Compares the mean source positions under the weights of consecutive targets; the first target
    has none before it and does not count. 1 means that attention only moves forward, as for speech
    and its transcript.

    Args:
      weights: attention weights from targets to the source; 0 at padding.
      target_length: target length of each pair, end token included.
    """
    weights = jnp.asarray(weights)
    mass = jnp.maximum(weights.sum(-1), 1e-9)
    centre = (weights * jnp.arange(weights.shape[-1])).sum(-1) / mass
    # The tolerance keeps rounding from counting as a step back.
    forward = centre[:, 1:] >= centre[:, :-1] - 1e-3
    real = jnp.arange(1, weights.shape[1]) < jnp.asarray(target_length)[:, None]
    return Sums((forward & real).sum().astype(jnp.float32), real.sum().astype(jnp.float32))


def span_scores(weights: Float[Array, "B T S"], span: Float[Array, "B T 2"]) -> dict[str, Sums]:
    """Returns measures of weights against the known source span of each target.

    "on_span": the share of a target's weight that lies within its span. "coverage": the weight that
    a target's span receives from all targets, at most 1; it is 0 for a word that was skipped.

    Args:
      weights: attention weights from targets to the source; 0 at padding.
      span: start and end position of each target's span; a target with an empty span is left out.
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
    """Returns every measure that the fields of a batch allow, for each head.

    Args:
      weights: result of a model's `weights` method on `batch`.
      batch: has "source_length" and "targets"; "alignment" if alignments are known; for speech,
        "source" and "span" in frames, of which there may be more than source positions of weights.

    Returns:
      Sums (H,) of "diagonality" and "entropy"; with "alignment" also of "alignment_error"; with
      "span" also of "monotonicity", "on_span" and "coverage".
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
