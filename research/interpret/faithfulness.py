"""Whether attention says why a model decided as it did: what changes when it is tampered with.

Permutations and adversaries of attention are those of Jain and Wallace 2019, "Attention is not
Explanation". Wiegreffe and Pinter 2019, "Attention is not not Explanation", show what does not
follow from them: weights of one layer are not free when the rest of the model was trained with
them. Everything can be traced.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

OfWeights = Callable[[Float[Array, " S"]], Float[Array, " C"]]
"""The output distribution of a model on one example, given its attention."""

FRACTIONS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)
"""Fractions of the tokens that are taken: DeYoung et al. 2020, section 4.2, and none."""


def jensen_shannon(p: Float[Array, "*#b S"], q: Float[Array, "*#b S"]) -> Float[Array, "*#b"]:
    """Returns the Jensen-Shannon divergence in nats, 0 to log 2.

    Lin 1991, "Divergence Measures Based on the Shannon Entropy", eq. 4.1 with equal weights. The
    gradient is finite also where both are zero.
    """
    p, q = jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32)
    found = _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2
    # Rounding can take it below.
    return jnp.maximum(found, 0)


def total_variation(p: Float[Array, "*#b C"], q: Float[Array, "*#b C"]) -> Float[Array, "*#b"]:
    """Returns the total variation distance, half the sum of differences: 0 to 1."""
    return jnp.abs(jnp.asarray(p) - jnp.asarray(q)).sum(-1) / 2


def permutation_test(
    f_weights: OfWeights,
    weights: Float[Array, " S"],
    key: Array,
    number: int = 100,
    real: Bool[Array, " S"] | None = None,
    batch_size: int = 32,
) -> Float[Array, ""]:
    """Returns the median change of the output, in total variation, over random permutations.

    Jain and Wallace 2019, section 4.2.1.

    Args:
      f_weights: the model from its attention on.
      weights: its attention.
      key: of the permutations.
      number: of permutations.
      real: positions whose weights change places; None: all. Padding is not among them.
      batch_size: outputs that are computed at once.
    """
    weights = jnp.asarray(weights, jnp.float32)
    real = jnp.ones(weights.shape, bool) if real is None else jnp.asarray(real)
    output = f_weights(weights)

    def change(key: Array) -> Float[Array, ""]:
        return total_variation(f_weights(_permuted(weights, real, key)), output)

    keys = jax.random.split(key, number)
    return jnp.median(jax.lax.map(change, keys, batch_size=min(batch_size, number)))


class Adversaries(NamedTuple):
    """Attentions that differ as much as was found from the model's, with nearly its output.

    Attributes:
      weights: (K, S), each a distribution.
      divergence: (K,) Jensen-Shannon divergence from the model's attention in nats.
      change: (K,) total variation distance from the model's output, at most epsilon.
    """

    weights: Float[Array, "K S"]
    divergence: Float[Array, " K"]
    change: Float[Array, " K"]


def adversarial_weights(
    f_weights: OfWeights,
    weights: Float[Array, " S"],
    key: Array,
    epsilon: float = 0.01,
    steps: int = 500,
    number: int = 5,
    real: Bool[Array, " S"] | None = None,
    length: float = 0.1,
) -> Adversaries:
    """Returns attentions far from the model's under which its output hardly changes.

    The search of Jain and Wallace 2019, section 4.2.2: the divergence from the model's attention
    plus that between the adversaries is climbed, with a penalty while the output's change exceeds
    epsilon. Each adversary is the furthest on its way that kept to epsilon, the model's own
    attention if none did. The largest `divergence` is the paper's epsilon-max JSD, as far as found:
    there is a local maximum in every corner, and more adversaries find better ones.

    Gradients are with respect to logits. The penalty's gradient is twice as long as the other,
    however strongly the output reacts, so that the search goes on along the constraint. With Adam
    and a fixed price of 500 it stands still where the constraint begins.

    Args:
      f_weights: the model from its attention on; differentiable.
      weights: its attention, a distribution.
      key: of where adversaries start.
      epsilon: the largest change of the output, in total variation.
      steps: of ascent.
      number: of adversaries.
      real: positions that may have weight; None: all. Padding is not among them.
      length: of the first step in logits; steps become shorter linearly.
    """
    weights = jnp.asarray(weights, jnp.float32)
    real = jnp.ones(weights.shape, bool) if real is None else jnp.asarray(real)
    output = f_weights(weights)

    def judged(logits: Float[Array, "K S"]) -> Adversaries:
        attention = jax.nn.softmax(logits, where=real)
        change = total_variation(jax.vmap(f_weights)(attention), output)
        return Adversaries(attention, jensen_shannon(attention, weights), change)

    def apart(logits: Float[Array, "K S"]) -> Float[Array, ""]:
        found = judged(logits)
        pairs = jensen_shannon(found.weights[:, None], found.weights[None]).sum() / 2
        return found.divergence.sum() + pairs / max(number * (number - 1), 1)

    def step(carry: tuple[Array, Adversaries], size: Float[Array, ""]) -> tuple:
        logits, best = carry
        found = judged(logits)
        beyond = (found.change > epsilon)[:, None]
        away = jax.grad(lambda logits: judged(logits).change.sum())(logits)
        ascent = _unit(jax.grad(apart)(logits)) - 2 * beyond * _unit(away)
        return (logits + size * ascent, _better(best, found, epsilon)), None

    logits = jax.random.normal(key, (number, *weights.shape))
    none = jnp.zeros(number)
    best = Adversaries(jnp.broadcast_to(weights, logits.shape), none, none)
    sizes = length * jnp.linspace(1, 0, steps)
    logits, best = jax.lax.scan(step, (logits, best), sizes)[0]
    return _better(best, judged(logits), epsilon)


def erasures(
    ranking: Float[Array, " S"],
    real: Bool[Array, " S"] | None = None,
    fractions: tuple[float, ...] = FRACTIONS,
) -> tuple[Bool[Array, "R S"], Bool[Array, "R S"]]:
    """Returns the tokens that are left without those that rank highest, and these alone.

    DeYoung et al. 2020, "ERASER: A Benchmark to Evaluate Rationalized NLP Models": how much the
    probability of the predicted class falls with the former is comprehensiveness (eq. 1), of a
    faithful ranking high; with the latter, sufficiency (eq. 2), low. Means over the fractions are
    the areas over the perturbation curve of section 4.2, where no token counts as one of the
    points.

    Args:
      ranking: attributions; of equal ones the first position ranks higher.
      real: tokens that there are; None: all. Padding is not among them.
      fractions: of the tokens that there are, rounded up to whole tokens.
    """
    ranking = jnp.asarray(ranking)
    real = jnp.ones(ranking.shape, bool) if real is None else jnp.asarray(real)
    # Twice a stable sort: the rank of each position, padding last.
    rank = jnp.argsort(jnp.argsort(jnp.where(real, -ranking, jnp.inf), stable=True))
    # 0.1 of 10 tokens is one, although the product can be a little more in float32.
    count = jnp.ceil(jnp.asarray(fractions) * real.sum() * (1 - 1e-6))
    chosen = rank < count[:, None]
    return real & ~chosen, real & chosen


def _entropy(p: Float[Array, "*b S"]) -> Float[Array, "*b"]:
    # At 0 the slope would be infinite.
    return jax.scipy.special.entr(jnp.maximum(p, jnp.finfo(jnp.float32).tiny)).sum(-1)


def _permuted(
    weights: Float[Array, " S"], real: Bool[Array, " S"], key: Array
) -> Float[Array, " S"]:
    # Both orders name the real positions first, then the others from left to right.
    others = 1.0 + jnp.arange(weights.shape[0])
    in_order = jnp.argsort(~real, stable=True)
    shuffled = jnp.argsort(jnp.where(real, jax.random.uniform(key, weights.shape), others))
    return weights.at[in_order].set(weights[shuffled])


def _unit(x: Float[Array, "K S"]) -> Float[Array, "K S"]:
    """Vectors of length 1, or 0 where they are 0."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-20)


def _better(best: Adversaries, found: Adversaries, epsilon: float) -> Adversaries:
    better = (found.change <= epsilon) & (found.divergence > best.divergence)
    return Adversaries(
        jnp.where(better[:, None], found.weights, best.weights),
        jnp.where(better, found.divergence, best.divergence),
        jnp.where(better, found.change, best.change),
    )
