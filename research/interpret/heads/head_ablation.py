"""How much each head matters: what the loss does without it.

Michel et al. 2019, "Are Sixteen Heads Really Better than One?". The loss is a function that the
caller gives: of a mask (L, H) that multiplies what each head reads, 1 for a head that is there, to
one number for each example, (N,). It may loop over batches; only `head_sensitivity` traces it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.stats import holm

Loss = Callable[[Float[Array, "L H"]], Float[Array | np.ndarray, " N"]]


def ablation_differences(loss: Loss, layers: int, heads: int) -> Float[np.ndarray, "L H N"]:
    """Returns how much the loss of each example rises without each head, all others there.

    Michel et al. 2019, section 3.2. Computes the loss 1 + L H times.
    """
    whole = np.asarray(loss(jnp.ones((layers, heads))), np.float32)
    found = np.empty((layers, heads, *whole.shape), np.float32)
    for layer, head in np.ndindex(layers, heads):
        found[layer, head] = np.asarray(loss(without([(layer, head)], layers, heads))) - whole
    return found


class HeadImportance(NamedTuple):
    """What the loss rises by without each head, (L, H) each.

    Attributes:
      mean: over examples.
      low, high: ends of its bootstrap interval, each head for itself.
      p: two-sided p-values of no difference.
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

    Percentile intervals, and the part of resampled means as far from the mean as the mean is from
    zero (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 13 and 16), never
    below 1 / (resamples + 1): with Holm's correction that times L H is the smallest there is. It is
    about other examples, not about another training run.

    Args:
      differences: of `ablation_differences`.
      seed: of the resamples, which all heads share.
      resamples: how many.
      alpha: 1 minus the level of the intervals.
    """
    shape, examples = differences.shape[:2], differences.shape[2]
    flat = differences.reshape(-1, examples).astype(np.float64)
    mean = flat.mean(-1)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, len(flat)))
    even = np.full(examples, 1 / examples)
    for i in range(resamples):
        means[i] = flat @ generator.multinomial(examples, even) / examples
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2], axis=0)
    # Sums in another order differ by rounding alone.
    noise = 1e-9 * np.abs(flat).max(-1, initial=0)
    far = (np.abs(means - mean) >= np.abs(mean) - noise).sum(0)
    p = (1 + far) / (resamples + 1)
    adjusted = np.array(holm(p.tolist()))
    return HeadImportance(*(x.reshape(shape) for x in (mean, low, high, p, adjusted)))


def head_sensitivity(
    loss: Loss, layers: int, heads: int, batch_size: int = 8
) -> Float[Array, "L H"]:
    """Returns the expected sensitivity of the loss to each head's mask, the mean of |dL / dmask|.

    Michel et al. 2019, eq. 2. One forward derivative for each head, so that the size is taken for
    each example; `loss` must be traceable and made of operations that have one, which functions
    with a hand-written gradient (`jax.custom_vjp`) do not.

    Args:
      loss: of a mask, differentiable.
      layers, heads: shape of the mask.
      batch_size: heads at once.
    """
    count = layers * heads
    _, slope = jax.linearize(loss, jnp.ones((layers, heads)))

    def of_head(direction: Float[Array, "L H"]) -> Float[Array, ""]:
        return jnp.abs(slope(direction)).mean()

    directions = jnp.eye(count).reshape(count, layers, heads)
    found = jax.lax.map(of_head, directions, batch_size=min(batch_size, count))
    return found.reshape(layers, heads)


def normalize_layers(importance: Float[Array, "L H"]) -> Float[Array, "L H"]:
    """Returns importance with every layer's Euclidean norm 1, so that layers compare.

    Michel et al. 2019, section 4.1, after Molchanov et al. 2017, "Pruning Convolutional Neural
    Networks for Resource Efficient Inference". A layer of zeros stays one.
    """
    importance = jnp.asarray(importance)
    norm = jnp.linalg.norm(importance, axis=-1, keepdims=True)
    return importance / jnp.where(norm > 0, norm, 1)


class Pruning(NamedTuple):
    """A model that loses one head after the other.

    Attributes:
      order: (N, 2) layer and head of each that goes, the first one first.
      loss: (N + 1,) mean loss before any is gone and after each; L H - i heads are kept at i.
    """

    order: Int[np.ndarray, "N 2"]
    loss: Float[np.ndarray, " N+1"]


def pruning_order(importance: Float[np.ndarray, "L H"]) -> Int[np.ndarray, "N 2"]:
    """Returns layers and heads from the least to the most important."""
    importance = np.asarray(importance)
    flat = np.argsort(importance, axis=None, kind="stable")
    return np.stack(np.unravel_index(flat, importance.shape), axis=-1)


def prune_in_order(
    loss: Loss, order: Int[np.ndarray, "N 2"], layers: int, heads: int, at_once: int = 1
) -> Pruning:
    """Returns the loss as heads go in a fixed order: Michel et al. 2019, section 4.2.

    Args:
      loss: of a mask.
      order: layer and head of each that goes, as `pruning_order` gives them.
      layers, heads: shape of the mask.
      at_once: heads that go before the loss is computed again, a tenth of all in the paper; between
        two of these points the loss is NaN.
    """
    order = np.asarray(order)
    curve = np.full(len(order) + 1, np.nan, np.float32)
    for gone in [*range(0, len(order), at_once), len(order)]:
        curve[gone] = np.mean(np.asarray(loss(without(order[:gone], layers, heads))))
    return Pruning(order, curve)


def prune_greedily(loss: Loss, layers: int, heads: int, number: int | None = None) -> Pruning:
    """Returns the loss as the head goes whose loss is least, again and again.

    The choice at each step is made with all earlier heads gone, which importance measured once on
    the whole model cannot know. Computes the loss for every head that is left at each step, about
    (L H)^2 / 2 times in all.

    Args:
      loss: of a mask.
      layers, heads: shape of the mask.
      number: of heads that go; None: all.
    """

    def mean(gone: Sequence[Sequence[int]]) -> float:
        return float(np.mean(np.asarray(loss(without(gone, layers, heads)))))

    left: list[tuple[int, ...]] = list(np.ndindex(layers, heads))
    gone: list[tuple[int, ...]] = []
    curve = [mean(gone)]
    for _ in range(len(left) if number is None else number):
        losses = [mean([*gone, head]) for head in left]
        # A head without which the loss is no number goes last.
        best = int(np.argmin(np.nan_to_num(losses, nan=np.inf)))
        gone.append(left.pop(best))
        curve.append(losses[best])
    return Pruning(np.array(gone, int).reshape(-1, 2), np.array(curve, np.float32))


def without(
    gone: Sequence[Sequence[int]] | Int[np.ndarray, "N 2"], layers: int, heads: int
) -> Float[Array, "L H"]:
    """Returns a mask (L, H) that is 0 for the heads, each a layer and a head, that are gone."""
    mask = np.ones((layers, heads), np.float32)
    for layer, head in gone:
        mask[layer, head] = 0
    return jnp.asarray(mask)
