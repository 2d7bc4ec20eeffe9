"""Ablates and prunes attention heads, and tests how much the loss depends on each.

Michel et al. 2019, "Are Sixteen Heads Really Better than One?". The caller provides the loss as a
function from a mask (L, H), which multiplies the output of each head (1 keeps it, 0 removes it), to
the loss of each example, (N,). It may loop over batches; only `head_sensitivity` traces it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.stats import holm

Loss = Callable[[Float[Array, "L H"]], Float[Array | np.ndarray, " N"]]


def ablation_differences(loss: Loss, layers: int, heads: int) -> Float[np.ndarray, "L H N"]:
    """Returns how much the loss of each example rises when one head is removed, for every head.

    Michel et al. 2019, section 3.2. Computes the loss 1 + L H times.
    """
    whole = np.asarray(loss(jnp.ones((layers, heads))), np.float32)
    found = np.empty((layers, heads, *whole.shape), np.float32)
    for layer, head in np.ndindex(layers, heads):
        found[layer, head] = np.asarray(loss(head_mask([(layer, head)], layers, heads))) - whole
    return found


class HeadImportance(NamedTuple):
    """Rise of the loss without each head, with intervals and p-values, (L, H) each.

    Attributes:
      mean: mean rise over examples.
      low, high: ends of its bootstrap interval, not corrected for the number of heads.
      p: two-sided p-values of the null hypothesis of no difference.
      adjusted: p-values corrected for the number of heads (Holm).
    """

    mean: Float[np.ndarray, "L H"]
    low: Float[np.ndarray, "L H"]
    high: Float[np.ndarray, "L H"]
    p: Float[np.ndarray, "L H"]
    adjusted: Float[np.ndarray, "L H"]


def head_importance(
    differences: Float[np.ndarray, "L H N"],
    seed: int = 0,
    resamples: int = 10_000,
    alpha: float = 0.05,
) -> HeadImportance:
    """Returns the importance of each head with a paired bootstrap over examples.

    Intervals are percentile intervals. The p-value is the fraction of resampled means at least as
    far from the mean as the mean is from zero (Efron and Tibshirani 1993, "An Introduction to the
    Bootstrap", chapters 13 and 16), never below 1 / (resamples + 1): the smallest p-value after
    Holm's correction is L H times that. The conclusions extend to other examples, not to other
    training runs.

    Args:
      differences: result of `ablation_differences`.
      seed: seed of the resamples, which all heads share.
      resamples: number of bootstrap resamples.
      alpha: 1 minus the confidence level of the intervals.
    """
    shape, examples = differences.shape[:2], differences.shape[2]
    flat = differences.reshape(-1, examples).astype(np.float64)
    mean = flat.mean(-1)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, len(flat)))
    even = np.full(examples, 1 / examples)
    # Multinomial counts are one bootstrap resample of the examples, the same for all heads.
    for i in range(resamples):
        means[i] = flat @ generator.multinomial(examples, even) / examples
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2], axis=0)
    # The tolerance counts resampled means that miss equality only by the rounding of their sums.
    noise = 1e-9 * np.abs(flat).max(-1, initial=0)
    far = (np.abs(means - mean) >= np.abs(mean) - noise).sum(0)
    p = (1 + far) / (resamples + 1)
    adjusted = np.array(holm(p.tolist()))
    return HeadImportance(*(x.reshape(shape) for x in (mean, low, high, p, adjusted)))


class Pruning(NamedTuple):
    """Loss of a model as its heads are pruned one after the other.

    Attributes:
      order: (N, 2) layer and head of each pruned head, in order of pruning.
      loss: (N + 1,) mean loss before pruning and after each step; loss[i] has i heads pruned.
    """

    order: Int[np.ndarray, "N 2"]
    loss: Float[np.ndarray, " N+1"]


def prune_greedily(loss: Loss, layers: int, heads: int, number: int | None = None) -> Pruning:
    """Returns the loss as heads are pruned greedily, at each step the one that raises it least.

    Unlike importance measured once on the whole model, each choice takes into account which heads
    have already been pruned. Computes the loss for every remaining head at each step, about
    (L H)^2 / 2 times in all.

    Args:
      loss: function of a mask.
      layers, heads: shape of the mask.
      number: number of heads to prune; None: all.
    """

    def mean(pruned: Sequence[Sequence[int]]) -> float:
        return float(np.mean(np.asarray(loss(head_mask(pruned, layers, heads)))))

    left: list[tuple[int, ...]] = list(np.ndindex(layers, heads))
    pruned: list[tuple[int, ...]] = []
    curve = [mean(pruned)]
    for _ in range(len(left) if number is None else number):
        losses = [mean([*pruned, head]) for head in left]
        # A head whose removal makes the loss NaN is pruned last.
        best = int(np.argmin(np.nan_to_num(losses, nan=np.inf)))
        pruned.append(left.pop(best))
        curve.append(losses[best])
    return Pruning(np.array(pruned, int).reshape(-1, 2), np.array(curve, np.float32))


def head_mask(
    pruned: Sequence[Sequence[int]] | Int[np.ndarray, "N 2"], layers: int, heads: int
) -> Float[Array, "L H"]:
    """Returns a mask (L, H) that is 0 at the given (layer, head) pairs and 1 elsewhere."""
    mask = np.ones((layers, heads), np.float32)
    for layer, head in pruned:
        mask[layer, head] = 0
    return jnp.asarray(mask)
